"""Block 1: dense products, of nine sites, an LM head, and the model's own shapes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan, thinned
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench, in_turn

SIDES = (1024, 4096, 16384)
TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BETWEEN = (320, 384, 448, 640, 768, 896, 1152, 1280, 1536, 1792, 3072)
"""More of a model's own 16-bit products, where time rises by stairs: libraries choose other tiles
for other multiples of 64, and 448 tokens took longer than 512 on an H100."""

HEAD = (128256, 4096)
"""LM head (vocabulary, hidden) of Llama-3; its rows are samples, hence few."""

GROUP = 128
LOW_BIT_SIDE = 4096
LOW_BIT_TOKENS = (1, 16, 64, 256, 2048)


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return the grid: every weight format at every site, rising in m."""
    sides = [side // plan.shrink for side in SIDES]
    sites = [*product(sides, sides)]
    own = model_sites(plan)
    for dtype_w in weight_types(plan):
        for n, k in [*sites, *own]:
            for m in TOKENS if (n, k) in own else thinned(TOKENS, plan):
                yield gemm(plan, m, n, k, dtype_w)
    if plan.on_gpu and not plan.quick:
        for (n, k), m in product(own, BETWEEN):
            yield gemm(plan, m, n, k, plan.dtype)
    for m in (1, 8, 32, 64, 256):
        yield gemm(plan, m, HEAD[0] // plan.shrink, HEAD[1] // plan.shrink, plan.dtype)


def low_bit_rows(plan: Plan) -> Iterator[RowSpec]:
    """Return block 14: weights of 2 to 8 bits and W4A8 at one site, from few tokens to many."""
    if not plan.on_gpu:
        return
    for m, bits in product(LOW_BIT_TOKENS, (2, 3, 5, 6, 7, 8)):
        yield _low_bit(plan, m, bits)
    for m in LOW_BIT_TOKENS:
        yield _low_bit(plan, m, 4, eight_bit_activations=True)


def _low_bit(plan: Plan, m: int, bits: int, *, eight_bit_activations: bool = False) -> RowSpec:
    n = k = LOW_BIT_SIDE
    weights = n * k * (bits / 8 + 2.0 / GROUP)
    item = 1.0 if eight_bit_activations else ITEM_BYTES[plan.dtype]
    moved = weights + m * k * item + m * n * ITEM_BYTES[plan.dtype]
    key: dict[str, Any] = {
        "op": "gemm",
        "kernel_id": "triton.w4a8_gemm.v1" if eight_bit_activations else "triton.wna16_gemm.v2",
        "dtype_a": "int8" if eight_bit_activations else plan.dtype,
        "dtype_w": {4: "int4", 8: "int8"}.get(bits, f"w{bits}"),
        "dtype_out": plan.dtype,
        "m": m,
        "n": n,
        "k": k,
        "group": GROUP,
        "cold": True,
        "graph": plan.graph,
    }

    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler import triton_calls

        if eight_bit_activations:
            return triton_calls.w4a8_gemm(bench, m, n, k, GROUP, plan.dtype)
        return triton_calls.weight_only_gemm(bench, m, n, k, bits, GROUP, plan.dtype)

    return RowSpec(14, key, 2.0 * m * n * k, moved, build, "triton", moved)


def weight_types(plan: Plan) -> tuple[str, ...]:
    """Return the weight formats that this device is asked for."""
    if not plan.on_gpu:
        return (plan.dtype,)
    return (plan.dtype,) if plan.quick else (plan.dtype, "fp8", "int4")


def model_sites(plan: Plan) -> list[tuple[int, int]]:
    """Return the (n, k) of the model's matrices on one GPU, each once."""
    if plan.model is None:
        return []
    found = [
        (linear.n, linear.k)
        for layer in plan.model.layers
        for linear in layer.linears(plan.model.hidden, 1)
        if linear.copies == 1
    ]
    head = plan.model.head()
    return list(dict.fromkeys([*found, (head.n, head.k)]))


def gemm(
    plan: Plan, m: int, n: int, k: int, dtype_w: str, *, block: int = 1, holdout: bool = False
) -> RowSpec:
    """Return the row of ``y[m, n] = x[m, k] w[n, k]``.

    Parameters
    ----------
    plan : Plan
    m, n, k : int
    dtype_w : str
        bf16, fp32, fp8 (both sides) or int4 (weights only).
    block : int
    holdout : bool
    """
    dtype_a = "fp8" if dtype_w == "fp8" else plan.dtype
    kernel_id, needs, build = {
        "fp8": ("torch.scaled_mm", "fp8", _scaled(m, n, k)),
        "int4": ("triton.wna16_gemm.v2", "triton", _weight_only(plan, m, n, k)),
    }.get(dtype_w, ("torch.linear", "", _linear(m, n, k, dtype_w)))
    weights = n * k * ITEM_BYTES[dtype_w]
    outer = m * k * ITEM_BYTES[dtype_a] + m * n * ITEM_BYTES[plan.dtype]
    key: dict[str, Any] = {
        "op": "gemm",
        "kernel_id": kernel_id,
        "dtype_a": dtype_a,
        "dtype_w": dtype_w,
        "dtype_out": plan.dtype,
        "m": m,
        "n": n,
        "k": k,
        "cold": True,
        "graph": plan.graph,
    }
    if dtype_w == "int4":
        key["group"] = GROUP
    return RowSpec(
        block, key, 2.0 * m * n * k, weights + outer, build, needs, weights + outer, holdout
    )


def _linear(m: int, n: int, k: int, dtype: str) -> Build:
    def build(bench: TorchBench) -> Call:
        weights = bench.rotated((n, k), dtype, bench.copies(n * k * ITEM_BYTES[dtype]))
        x = bench.warm((m, k), dtype)
        linear = bench.torch.nn.functional.linear
        return Call(in_turn(lambda weight: linear(x, weight), weights))

    return build


def _scaled(m: int, n: int, k: int) -> Build:
    """One scale per tensor; quantising the activations is a row of block 5."""

    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        weights = bench.rotated((n, k), "fp8", bench.copies(n * k))
        x = bench.warm((m, k), "fp8")
        one = torch.ones((), dtype=torch.float32, device=bench.device)

        def call(weight: Any) -> Any:
            return torch._scaled_mm(
                x,
                weight.t(),
                scale_a=one,
                scale_b=one,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        return Call(in_turn(call, weights))

    return build


def _weight_only(plan: Plan, m: int, n: int, k: int) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler.triton_calls import weight_only_gemm

        return weight_only_gemm(bench, m, n, k, 4, GROUP, plan.dtype)

    return build
