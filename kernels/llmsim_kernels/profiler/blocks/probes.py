"""Block 15: single questions about a device that no other row answers; no price is read from them.

How fast fp16 is beside bf16, what KV costs that is still in cache, and how rates fall with the
share of multiprocessors that a kernel may use (green contexts, by torch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from llmsim_kernels.profiler.blocks import decode, gemm
from llmsim_kernels.profiler.plan import Plan
from llmsim_kernels.profiler.spec import (
    WARMUPS,
    Build,
    Call,
    RowFault,
    RowSpec,
    Timing,
    timing_of,
)
from llmsim_kernels.profiler.torchbench import TorchBench

SITE = (14336, 4096)
"""n and k of the fp16 products: an MLP matrix of Llama-3.1-8B."""

WARM = ((1, 1024), (8, 1024), (1, 8192))
"""Batch and context whose KV stays in a cache of 50 MB."""

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Of the multiprocessors."""

_ROUNDS, _EACH = 7, 5


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return every probe; none on a CPU."""
    if not plan.on_gpu:
        return
    n, k = SITE
    for m in (1, 64, 1024, 8192):
        for dtype in ("fp16", "bf16"):
            yield _probe(plan, f"{dtype}.gemm.m{m}", gemm.gemm(plan, m, n, k, dtype))
    for batch, context in WARM:
        spec = decode.decode(plan, (context,) * batch, 32, 8)
        yield _probe(plan, f"cold.decode.b{batch}.s{context}", spec)
        yield _probe(plan, f"warm.decode.b{batch}.s{context}", spec, _one_variant(spec.build))
    works = {
        "gemm": gemm.gemm(plan, 2048, 8192, 8192, plan.dtype),
        "decode": decode.decode(plan, (8192,) * 64, 32, 8),
    }
    for (name, spec), share in product(works.items(), SHARES):
        sms = max(8, round(plan.facts.sms * share / 8) * 8) if share < 1 else plan.facts.sms
        yield _probe(plan, f"share.{name}.sms{sms}", spec, measure=_on_some(spec.build, sms))


def _probe(
    plan: Plan,
    variant: str,
    work: RowSpec,
    build: Build | None = None,
    measure: Callable[[Any], Timing] | None = None,
) -> RowSpec:
    key: dict[str, Any] = {
        "op": "probe",
        "kernel_id": work.key["kernel_id"],
        "dtype_a": work.key["dtype_a"],
        "variant": variant,
        "cold": not variant.startswith("warm"),
        "graph": plan.graph and measure is None,
    }
    return RowSpec(
        15,
        key,
        work.flops,
        work.moved_bytes,
        build or work.build,
        "cuda" if measure else work.needs,
        work.resident_bytes,
        measure=measure,
    )


def _one_variant(build: Build) -> Build:
    """Return the call on one set of operands again and again, which then stay in cache."""

    def one(bench: TorchBench) -> Call:
        call = build(bench)
        return Call([call.variants[0]], call.gate, call.check, call.limit)

    return one


def _on_some(build: Build, sms: int) -> Callable[[Any], Timing]:
    """Return a measurement on some multiprocessors."""

    def measure(device: Any) -> Timing:
        torch = device.bench.torch
        call = build(device.bench)
        device.bench.pass_gate(call)
        if sms >= device.facts.sms:
            return _timed(torch, call)
        try:
            from torch.cuda.green_contexts import GreenContext
        except ImportError:
            raise RowFault("unsupported", f"torch {torch.__version__} has no contexts") from None
        torch.cuda.synchronize()
        part = GreenContext.create(num_sms=sms, device_id=device.index)
        part.set_context()
        try:
            return _timed(torch, call)
        finally:
            torch.cuda.synchronize()
            part.pop_context()

    return measure


def _timed(torch: Any, call: Call) -> Timing:
    """Time rounds of eager calls that are far longer than their launch."""
    variants = call.variants
    samples = []
    for turn in range(WARMUPS + _ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for at in range(_EACH):
            variants[(turn * _EACH + at) % len(variants)]()
        end.record()
        end.synchronize()
        if turn >= WARMUPS:
            samples.append(float(start.elapsed_time(end)) / 1e3 / _EACH)
    return timing_of(samples)
