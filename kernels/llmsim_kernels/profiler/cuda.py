"""Timing on an NVIDIA GPU: events around replays of a captured graph."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from llmsim.core.errors import Fault, InputError
from llmsim_kernels.profiler.nvml import Board, card_of, hashed
from llmsim_kernels.profiler.spec import (
    REPLAY_S,
    WARMUPS,
    Call,
    DeviceFacts,
    DeviceLostError,
    Effort,
    RowFault,
    RowSpec,
    Sensors,
    Timing,
    timing_of,
)
from llmsim_kernels.profiler.torchbench import TorchBench

_LEAST_MEMORY_BYTES = 8 << 30
"""A GPU, or a MIG slice of one, below this cannot hold the grid's operands: refused."""

_FIRST_CALLS = 20
_MOST_CALLS = 4000
_HEADROOM = 0.85
"""Share of the free memory that operands may take: graphs and results need the rest."""

_FP8_CAPABILITY = 89  # Ada and Hopper are the first with fp8 tensor cores


class CudaDevice:
    """One CUDA device.

    Parameters
    ----------
    index : int

    Raises
    ------
    InputError
        If torch sees no such device, or it is too small.
    """

    def __init__(self, index: int = 0) -> None:
        import torch

        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise _refused(f"cuda:{index}", f"torch {torch.__version__} sees {count} CUDA devices.")
        torch.cuda.set_device(index)
        self.index = index
        properties = torch.cuda.get_device_properties(index)
        if properties.total_memory < _LEAST_MEMORY_BYTES:
            size = properties.total_memory / 2**30
            raise _refused(
                f"cuda:{index}", f"{properties.name} has {size:.1f} GiB; the grid needs 8 GiB."
            )
        uuid = str(getattr(properties, "uuid", "")).removeprefix("GPU-")
        self.board = Board(uuid)
        cache_bytes = int(getattr(properties, "L2_cache_size", 0)) or 50 << 20
        self.bench = TorchBench(f"cuda:{index}", cache_bytes)
        free_bytes = torch.cuda.mem_get_info(index)[0]
        capability = 10 * properties.major + properties.minor
        self.facts = DeviceFacts(
            properties.name,
            "cuda",
            capability,
            properties.multi_processor_count,
            cache_bytes,
            properties.total_memory,
            int(free_bytes * _HEADROOM),
            torch.cuda.device_count(),
            {
                "gpu_card": card_of(properties.name),
                "uuid_hash": hashed(uuid),
                "sm": capability,
                **self.board.details(),
            },
        )
        self._stream = torch.cuda.Stream(device=index)

    def libraries(self) -> dict[str, str]:
        """Return the versions of everything between a call and the silicon."""
        torch: Any = self.bench.torch
        found = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
        if torch.backends.cudnn.is_available():
            found["cudnn"] = str(torch.backends.cudnn.version())
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
        from importlib.metadata import PackageNotFoundError, version

        for package in ("triton", "flashinfer-python", "vllm"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        if driver := self.board.driver():
            found["driver"] = driver
        return found

    def warnings(self) -> list[str]:
        """Return other tenants, throttling, memory that is taken, absent sensors."""
        found = []
        if others := self.board.other_processes():
            found.append(f"{others} other compute process(es) on this GPU: times are not its own")
        taken = self.facts.memory_bytes - self.bench.torch.cuda.mem_get_info(self.index)[0]
        ours = self.bench.torch.cuda.memory_reserved(self.index)
        if taken - ours > 0.1 * self.facts.memory_bytes:
            found.append(f"{(taken - ours) / 2**30:.1f} GiB of memory is taken by others")
        if reasons := self.sensors().throttled:
            found.append(f"clocks are held down: {', '.join(reasons)}")
        if not self.board.there:
            found.append("no clocks or power: pip install nvidia-ml-py")
        return found

    def sensors(self) -> Sensors:
        """Return clocks, power and temperature."""
        return self.board.sensors()

    def clocks(self) -> str:
        """Return free, locked or unknown."""
        if not self.board.there:
            return "unknown"
        return "locked" if self.board.clocks_locked() else "free"

    def time(self, spec: RowSpec, effort: Effort) -> Timing:
        """Time one row, from a captured graph where its key says so."""
        self._refuse(spec)
        full = self.bench.torch.cuda.OutOfMemoryError
        try:
            try:
                return self._time(spec, effort)
            except full:
                self.bench.forget()  # the pools of other rows may be all that was in the way
            return self._time(spec, effort)
        except full as error:
            self.bench.forget()
            raise RowFault("oom", str(error).splitlines()[0][:200]) from None
        # what torch and Triton raise for a kernel that does not run here: the row keeps the reason
        except _launch_faults() as error:
            note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self._still_there(note)
            raise RowFault("error", note) from None

    def _time(self, spec: RowSpec, effort: Effort) -> Timing:
        torch = self.bench.torch
        with torch.inference_mode(), torch.cuda.device(self.index):
            if spec.measure is not None:
                return spec.measure(self)
            call = spec.build(self.bench)
            self.bench.pass_gate(call)
            timed = self.replay_graph if spec.key.get("graph") else self.run_eager
            return timing_of(timed(call, effort))

    def _refuse(self, spec: RowSpec) -> None:
        if spec.needs == "fp8" and self.facts.capability < _FP8_CAPABILITY:
            raise RowFault("unsupported", f"sm{self.facts.capability} has no fp8 tensor cores")
        module = {"fp8": "", "cuda": ""}.get(spec.needs, spec.needs)
        if module and importlib.util.find_spec(module) is None:
            raise RowFault("unsupported", f"{module} is not installed")
        if spec.resident_bytes > self.facts.free_bytes:
            need, have = spec.resident_bytes / 2**30, self.facts.free_bytes / 2**30
            raise RowFault("oom", f"needs {need:.1f} GiB of {have:.1f} GiB")

    def _still_there(self, note: str) -> None:
        """Raise `DeviceLostError` if the context is broken: then no later row can run."""
        try:
            self.bench.torch.cuda.synchronize(self.index)
        except RuntimeError as error:
            raise DeviceLostError(f"{note}; then {str(error).splitlines()[0][:120]}") from None

    # --- replaying ----------------------------------------------------------------------------

    def replay_graph(self, call: Call, effort: Effort) -> list[float]:
        """Return the time of one call in each replay of a captured graph [s].

        Notes
        -----
        The graph holds all variants at least once, so that rotation covers the cache, and enough
        calls for a replay of 1 ms, found by timing a first, shorter graph.
        """
        variants = call.variants
        self._warm_up(variants)
        calls = max(len(variants), _FIRST_CALLS)
        graph = self._capture(variants, calls)
        try:
            first = min(self._replayed(graph) for _ in range(WARMUPS))
            if first < REPLAY_S and calls < _MOST_CALLS:
                graph.reset()
                calls = min(_MOST_CALLS, int(1.1 * calls * REPLAY_S / max(first, 1e-7)) + 1)
                graph = self._capture(variants, calls)
                for _ in range(WARMUPS):
                    self._replayed(graph)
            return self._repeat(lambda: self._replayed(graph) / calls, calls, effort)
        finally:
            graph.reset()

    def run_eager(self, call: Call, effort: Effort) -> list[float]:
        """Return the time of one call in each round of eager calls [s], host time included."""
        variants = call.variants
        self._warm_up(variants)
        first = min(self._eager(variants, 1) for _ in range(WARMUPS))
        calls = max(1, min(_MOST_CALLS, int(REPLAY_S / max(first, 1e-7)) + 1))
        return self._repeat(lambda: self._eager(variants, calls) / calls, calls, effort)

    @staticmethod
    def _repeat(once: Callable[[], float], calls: int, effort: Effort) -> list[float]:
        samples: list[float] = []
        while len(samples) < effort.least_repeats or sum(samples) * calls < effort.row_s:
            samples.append(once())
        return samples

    def _warm_up(self, variants: Sequence[Callable[[], Any]]) -> None:
        """Compile, tune and allocate outside the capture, on the capturing stream."""
        torch = self.bench.torch
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for turn in range(WARMUPS):
                variants[turn % len(variants)]()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize(self.index)

    def _capture(self, variants: Sequence[Callable[[], Any]], calls: int) -> Any:
        """Capture `calls` calls, in turn.

        `torch.cuda.graph` would collect garbage and empty the allocator's cache every time,
        about 50 ms a row; instead collection is off while a capture is under way, since freeing
        CUDA objects then would break it.
        """
        torch = self.bench.torch
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin()
                try:
                    for turn in range(calls):
                        variants[turn % len(variants)]()
                finally:
                    graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        torch.cuda.synchronize(self.index)
        return graph

    def _replayed(self, graph: Any) -> float:
        return self._between(graph.replay)

    def _eager(self, variants: Sequence[Callable[[], Any]], calls: int) -> float:
        def run() -> None:
            for turn in range(calls):
                variants[turn % len(variants)]()

        return self._between(run)

    def _between(self, run: Callable[[], Any]) -> float:
        """Return the time between two events around `run` [s]."""
        torch = self.bench.torch
        with torch.cuda.stream(self._stream):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # milliseconds


def _launch_faults() -> tuple[type[Exception], ...]:
    """Return torch's errors, and Triton's, such as too much shared memory, where it is there."""
    usual = (RuntimeError, ValueError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return usual
    return (*usual, TritonError)


def _refused(device: str, message: str) -> InputError:
    return InputError("profile", [Fault("", f"--device {device}", message)])
