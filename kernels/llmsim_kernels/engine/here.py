"""Which GPU card stands for the device that the reference engine runs on.

A CPU has none, so one is measured: its rate of copying and of multiplying, from a second of work.
Everything else on it is the prior of GPUs, which a CPU is not: such a card proves the plumbing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsim_kernels.profiler.cpu import cpu_model, last_level_cache_bytes
from llmsim_kernels.profiler.nvml import card_of

_COPY_BYTES = 256 << 20
_SIDE = 1024  # of the matrices that are multiplied
_REPEATS = 7

_CARD = """# Measured by llmsim validate --engine reference; a CPU, in the form of a GPU card.
name: cpu-here
vendor: "{vendor}"
memory_bytes: {{value: {memory:.0f}, unit: "bytes", source: "the operating system"}}
memory_bytes_per_s: {{value: {copy:.4g}, unit: "bytes/s", source: "{how_copy}"}}
cache_bytes: {{value: {cache:.0f}, unit: "bytes", source: "the operating system"}}
sm_count: {{value: 1, unit: "1", source: "one thread"}}
peak_flops_per_s:
  bf16: {{value: {flops:.4g}, unit: "FLOP/s", source: "{how_flops}"}}
link: pcie-gen4
host_link: pcie-gen4
node_gpus: {{value: 1, unit: "1", source: "one device"}}
power:
  idle_w: {{value: 1, unit: "W", source: "not measured"}}
  memory_w: {{value: 2, unit: "W", source: "not measured"}}
  compute_w: {{value: 3, unit: "W", source: "not measured"}}
  cap_w: {{value: 3, unit: "W", source: "not measured"}}
"""


def card_here(device: str, folder: Path) -> str:
    """Return the GPU card of a device: a name, or the path of one that was measured.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda:0``; empty for the first GPU, or the CPU where there is none.
    folder : Path
        Where the card of a CPU is written.

    Returns
    -------
    str
        Empty for a GPU that no card stands for.
    """
    import torch

    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        return card_of(torch.cuda.get_device_properties(device).name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cpu-here.yaml"
    path.write_text(_cpu_card(torch), encoding="utf-8")
    return str(path.resolve())


def _cpu_card(torch: Any) -> str:
    from os import sysconf

    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    side = torch.randn(_SIDE, _SIDE)
    return _CARD.format(
        vendor=cpu_model(),
        memory=sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES"),
        copy=2 * _COPY_BYTES / _best_s(lambda: target.copy_(source)),
        flops=2 * _SIDE**3 / _best_s(lambda: side @ side),
        cache=last_level_cache_bytes(),
        how_copy=f"best of {_REPEATS} copies of {_COPY_BYTES >> 20} MiB, read and write counted",
        how_flops=f"best of {_REPEATS} fp32 products of two {_SIDE} x {_SIDE} matrices",
    )


def _best_s(work: Callable[[], Any]) -> float:
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
