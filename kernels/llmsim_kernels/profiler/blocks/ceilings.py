"""Block 0: the best rates of the device, and what a launch costs; at start, middle and end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

MOMENTS = ("start", "middle", "end")
COPY, READ, PRODUCT, CACHE = "copy", "read", "matmul", "cache_read"
_CHAIN = 200
"""Kernels in the chain that tells launch costs: far more than the launch queue hides."""


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return the rows of the first time round, host rows included."""
    yield from at(plan, "start")
    yield from host_rows(plan)


def at(plan: Plan, moment: str) -> Iterator[RowSpec]:
    """Return the ceilings under the name of one moment.

    Parameters
    ----------
    plan : Plan
    moment : str
        One of `MOMENTS`.
    """
    copy_bytes = 1 << 30 if plan.on_gpu else 1 << 27
    yield _row(plan, f"{COPY}.{moment}", 0.0, 2.0 * copy_bytes, _copy(copy_bytes))
    yield _row(plan, f"{READ}.{moment}", 0.0, copy_bytes, _read(copy_bytes))
    side = 8192 if plan.on_gpu else 1024
    for dtype in (plan.dtype, "fp8", "int8") if plan.on_gpu else (plan.dtype,):
        moved = side * side * (2 * ITEM_BYTES[dtype] + 2)
        yield _row(
            plan,
            f"{PRODUCT}.{dtype}.{moment}",
            2.0 * side**3,
            moved,
            _product(side, dtype),
            dtype_a=dtype,
            needs="fp8" if dtype == "fp8" else "",
        )
    resident = plan.facts.cache_bytes // 4
    yield _row(plan, f"{CACHE}.{moment}", 0.0, resident, _read(resident), cold=False)


def host_rows(plan: Plan) -> Iterator[RowSpec]:
    """Return what a launch costs: one tiny kernel and a chain of 200, eager and from a graph."""
    for graph in (False, True) if plan.graph else (False,):
        word = "graph" if graph else "eager"
        yield _row(plan, f"kernel.{word}", 0.0, 8.0, _chain(1), op="host", cold=False, graph=graph)
        variant = f"chain{_CHAIN}.{word}"
        yield _row(
            plan, variant, 0.0, 8.0 * _CHAIN, _chain(_CHAIN), op="host", cold=False, graph=graph
        )


def _row(
    plan: Plan,
    variant: str,
    flops: float,
    moved: float,
    build: Build,
    *,
    op: str = "ceiling",
    dtype_a: str = "",
    needs: str = "",
    cold: bool = True,
    graph: bool | None = None,
) -> RowSpec:
    key: dict[str, Any] = {
        "op": op,
        "kernel_id": "torch",
        "dtype_a": dtype_a or None,
        "variant": variant,
        "cold": cold,
        "graph": plan.graph if graph is None else graph,
    }
    return RowSpec(0, key, flops, moved, build, needs, moved)


def _copy(size_bytes: int) -> Build:
    def build(bench: TorchBench) -> Call:
        source = bench.rotated((size_bytes // 4,), "fp32", 1)[0]
        target = bench.torch.empty_like(source)
        return Call([lambda: target.copy_(source)])

    return build


def _product(side: int, dtype: str) -> Build:
    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        a, b = bench.warm((side, side), dtype), bench.warm((side, side), dtype)
        if dtype == "fp8":
            one = torch.ones((), dtype=torch.float32, device=bench.device)

            def scaled() -> Any:
                return torch._scaled_mm(
                    a,
                    b.t(),
                    scale_a=one,
                    scale_b=one,
                    out_dtype=torch.bfloat16,
                    use_fast_accum=True,
                )

            return Call([scaled])
        if dtype == "int8":
            return Call([lambda: torch._int_mm(a, b.t())])
        out = torch.empty_like(a)
        return Call([lambda: torch.mm(a, b, out=out)])

    return build


def _read(size_bytes: int) -> Build:
    """Read and write next to nothing, as a decode step does; a copy reaches less."""

    def build(bench: TorchBench) -> Call:
        values = bench.warm((size_bytes // 4,), "fp32")
        return Call([lambda: bench.torch.sum(values)])

    return build


def _chain(length: int) -> Build:
    def build(bench: TorchBench) -> Call:
        value = bench.torch.zeros(1, device=bench.device)

        def call() -> None:
            for _ in range(length):
                value.add_(1.0)

        return Call([call])

    return build
