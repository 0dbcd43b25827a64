"""Timing on a CPU: a real, small profile through the same code, which proves the plumbing."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmsim_kernels.profiler.spec import (
    REPLAY_S,
    WARMUPS,
    DeviceFacts,
    Effort,
    RowFault,
    RowSpec,
    Sensors,
    Timing,
    timing_of,
)
from llmsim_kernels.profiler.torchbench import TorchBench

_CPUS = Path("/sys/devices/system/cpu")
_CACHE_IF_UNKNOWN_BYTES = 32 << 20


class CpuDevice:
    """One thread of this machine's CPU.

    Two threads under a container's CPU quota gave times that snapped to its 8 ms periods.
    """

    def __init__(self) -> None:
        import torch

        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        cache_bytes = last_level_cache_bytes()
        memory_bytes, free_bytes = _memory()
        self.bench = TorchBench("cpu", cache_bytes)
        details = {"virtualised": "hypervisor" in _cpu_flags()}
        self.facts = DeviceFacts(
            f"CPU {cpu_model()}",
            "cpu",
            0,
            1,
            cache_bytes,
            memory_bytes,
            free_bytes,
            1,
            details,
        )

    def libraries(self) -> dict[str, str]:
        """Return the versions of torch and of its CPU library."""
        torch = self.bench.torch
        return {"torch": torch.__version__, "mkldnn": str(torch.backends.mkldnn.is_available())}

    def warnings(self) -> list[str]:
        """Say that this is no serving device, and what else the machine does."""
        found = ["a CPU profile: it proves the plumbing, its times say nothing about a GPU"]
        busy, cores = os.getloadavg()[0], os.cpu_count() or 1
        if busy > 0.5 * cores:
            found.append(f"the machine is busy: load {busy:.1f} on {cores} cores")
        return found

    def sensors(self) -> Sensors:
        """Return nothing: there are no sensors that an ordinary user can read everywhere."""
        return Sensors()

    def time(self, spec: RowSpec, effort: Effort) -> Timing:
        """Time one row with `time.perf_counter`."""
        if spec.needs:
            raise RowFault("unsupported", f"needs {spec.needs}")
        torch = self.bench.torch
        try:
            with torch.inference_mode():
                if spec.measure is not None:
                    return spec.measure(self)
                call = spec.build(self.bench)
                self.bench.pass_gate(call)
                return timing_of(replay(call.variants, effort))
        except MemoryError:
            raise RowFault("oom", "no memory left") from None
        except RuntimeError as error:
            kind = "oom" if "allocate memory" in str(error) else "error"
            raise RowFault(kind, str(error).splitlines()[0][:200]) from None


def replay(variants: Sequence[Callable[[], Any]], effort: Effort) -> list[float]:
    """Return the time of one call in each replay [s]."""
    turn, count = 0, len(variants)

    def run(calls: int) -> float:
        nonlocal turn
        start = time.perf_counter()
        for _ in range(calls):
            variants[turn]()
            turn = turn + 1 if turn + 1 < count else 0
        return time.perf_counter() - start

    first = min(run(1) for _ in range(WARMUPS))
    calls = max(1, -int(-REPLAY_S // max(first, 1e-8)))
    samples: list[float] = []
    total = 0.0
    while len(samples) < effort.least_repeats or total < effort.row_s:
        taken = run(calls)
        samples.append(taken / calls)
        total += taken
    return samples


def last_level_cache_bytes() -> int:
    """Return the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = []
    for path in _CPUS.glob("cpu0/cache/index*/size"):
        text = path.read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=_CACHE_IF_UNKNOWN_BYTES)


def _memory() -> tuple[int, int]:
    """Return (all, available) memory [bytes]."""
    lines = Path("/proc/meminfo")
    if not lines.exists():
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole, whole // 2
    found = dict(line.split(":", 1) for line in lines.read_text().splitlines() if ":" in line)
    size = {name: int(found[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")}
    return size["MemTotal"], size["MemAvailable"]


def cpu_model() -> str:
    """Return the CPU's name."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
