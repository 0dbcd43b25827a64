"""Block 11: board power over three seconds of one kind of work; NVML averages about 100 ms."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llmsim_kernels.profiler.blocks import ceilings, decode, gemm
from llmsim_kernels.profiler.plan import Plan
from llmsim_kernels.profiler.spec import Call, Effort, RowFault, RowSpec, Timing, timing_of

PHASE_S = 3.0
_SETTLE_S = 0.5
"""Of a phase, before its power counts: the sensor still averages what was before."""


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return idle, copy, three products from memory-bound to compute-bound, decode attention."""
    works = {
        "copy": next(iter(ceilings.at(plan, "energy"))),
        **{f"gemm.m{m}": gemm.gemm(plan, m, 8192, 8192, plan.dtype) for m in (16, 256, 8192)},
        "attention_decode": decode.decode(plan, (8192,) * 64, 32, 8),
    }
    yield _row("idle", None)
    for name, spec in works.items():
        yield _row(name, spec)


def _row(variant: str, work: RowSpec | None) -> RowSpec:
    key: dict[str, Any] = {
        "op": "energy",
        "kernel_id": "none" if work is None else work.key["kernel_id"],
        "variant": variant,
        "cold": True,
        "graph": work is not None,
    }

    def nothing(bench: Any) -> Call:
        raise RowFault("unsupported", "power is measured over seconds, not by replays")

    flops, moved = (0.0, 0.0) if work is None else (work.flops, work.moved_bytes)
    build = nothing if work is None else work.build
    return RowSpec(11, key, flops, moved, build, "cuda", moved, measure=_measure(work))


def _measure(work: RowSpec | None) -> Any:
    def measure(device: Any) -> Timing:
        if device.sensors().power_w is None:
            raise RowFault("unsupported", "no power reading: pip install nvidia-ml-py")
        watts: list[float] = []
        began = time.monotonic()
        if work is None:
            while time.monotonic() - began < PHASE_S:
                time.sleep(0.1)
                _sample(device, began, watts)
            return replace(timing_of([PHASE_S]), power_w=statistics.median(watts))
        call = work.build(device.bench)
        device.bench.pass_gate(call)
        samples: list[float] = []
        while time.monotonic() - began < PHASE_S:
            samples += device.replay_graph(call, Effort(1, 1.0))
            _sample(device, began, watts)
        if not watts:
            raise RowFault("error", "no power reading after the phase had settled")
        return replace(timing_of(samples), power_w=statistics.median(watts))

    return measure


def _sample(device: Any, began: float, watts: list[float]) -> None:
    power_w = device.sensors().power_w
    if power_w is not None and time.monotonic() - began > _SETTLE_S:
        watts.append(power_w)
