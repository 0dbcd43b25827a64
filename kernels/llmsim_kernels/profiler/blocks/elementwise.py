"""Block 5: norms, rope, activations and the like, on activations that are still in cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

TOKENS = (1, 16, 64, 256, 1024, 4096, 8192)
WIDTHS = (4096, 8192)
HEAD_DIM = 128
KV_HEADS = 8
_VOCAB = 128256
FUSED = ("norm", "act_quant")
"""Operators that torch does in several launches and a Triton kernel of ours in one."""

OPS = ("norm", "rope", "activation", "residual_add", "kv_write", "act_quant", "gather")


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return every operator at every token count and width."""
    widths = [width // plan.shrink for width in (WIDTHS[:1] if plan.quick else WIDTHS)]
    for op in OPS:
        for width in widths:
            for tokens in TOKENS[::3] if plan.quick else TOKENS:
                yield elementwise(plan, op, tokens, width)
    if plan.on_gpu and not plan.quick:
        for op in FUSED:
            for width in WIDTHS:
                for tokens in TOKENS:
                    yield elementwise(plan, op, tokens, width, fused=True)


def elementwise(
    plan: Plan,
    op: str,
    tokens: int,
    width: int,
    *,
    fused: bool = False,
    kv_heads: int = 0,
    block: int = 5,
    holdout: bool = False,
) -> RowSpec:
    """Return the row of an elementwise operator.

    Parameters
    ----------
    plan : Plan
    op : str
        One of `OPS`.
    tokens : int
    width : int
        Model width; for ``activation`` that of the MLP, for rope heads times 128.
    fused : bool
        By one Triton kernel; for those of `FUSED`.
    kv_heads : int
        Of ``rope`` and ``kv_write``; 0 for eight, or in proportion to the width.
    block : int
    holdout : bool

    Notes
    -----
    Bytes as values read and written: residual + norm 4 (x, residual in; both out), addition 3,
    gated activation 3, rope 2 per element of query, key and value, a KV write 4 per KV element,
    quantisation 1.5 (8 bits out), gather 2.
    """
    heads = width // HEAD_DIM
    axes: dict[str, Any]
    if op == "activation":
        axes, values = {"inter": width}, 3.0 * width
    elif op == "rope":
        kv_heads = kv_heads or KV_HEADS // plan.shrink
        axes = {"heads_q": heads, "heads_kv": kv_heads, "head_dim": HEAD_DIM}
        values = 2.0 * (heads + 2 * kv_heads) * HEAD_DIM
    elif op == "kv_write":
        kv_heads = kv_heads or KV_HEADS * width // WIDTHS[0]
        axes = {"heads_kv": kv_heads, "head_dim": HEAD_DIM}
        values = 4.0 * kv_heads * HEAD_DIM
    else:
        words = {"norm": 4.0, "residual_add": 3.0, "act_quant": 1.5, "gather": 2.0}[op]
        axes, values = {"hidden": width}, words * width
    moved = values * tokens * ITEM_BYTES[plan.dtype]
    key: dict[str, Any] = {
        "op": op,
        "kernel_id": _FUSED_KERNELS[op] if fused else _KERNELS[op],
        "dtype_a": plan.dtype,
        "dtype_out": "fp8" if op == "act_quant" else plan.dtype,
        "tokens": tokens,
        **axes,
        "cold": False,
        "graph": plan.graph,
    }
    build = (
        _fused(plan, op, tokens, width) if fused else _BUILDERS[op](plan, tokens, width, kv_heads)
    )
    return RowSpec(block, key, 0.0, moved, build, "triton" if fused else "", moved, holdout)


_KERNELS = {
    "norm": "torch.add_rms_norm",
    "rope": "torch.rope",
    "activation": "torch.silu_mul",
    "residual_add": "torch.add",
    "kv_write": "torch.index_copy",
    "act_quant": "torch.cast_fp8",
    "gather": "torch.index_select",
}


_FUSED_KERNELS = {"norm": "triton.rmsnorm.v1", "act_quant": "triton.quantise.v1"}


def _fused(plan: Plan, op: str, tokens: int, width: int) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler.triton_calls import fused_norm, quantise

        call = fused_norm if op == "norm" else quantise
        return call(bench, tokens, width, plan.dtype)

    return build


def _norm(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        x, rest = bench.warm((tokens, width), plan.dtype), bench.warm((tokens, width), plan.dtype)
        weight = bench.warm((width,), plan.dtype)
        norm = bench.torch.nn.functional.rms_norm

        def call() -> Any:
            total = x + rest
            return norm(total, (width,), weight, 1e-5), total

        return Call([call])

    return build


def _rope(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        heads = width // HEAD_DIM + kv_heads
        x = bench.warm((tokens, heads, HEAD_DIM), plan.dtype)
        angles = bench.warm((2, tokens, 1, HEAD_DIM // 2), plan.dtype)
        out = bench.torch.empty_like(x)

        def call() -> Any:
            first, second = x.chunk(2, dim=-1)
            half = HEAD_DIM // 2
            out[..., :half] = first * angles[0] - second * angles[1]
            out[..., half:] = second * angles[0] + first * angles[1]
            return out

        return Call([call])

    return build


def _activation(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        both = bench.warm((tokens, 2 * width), plan.dtype)
        silu = bench.torch.nn.functional.silu
        return Call([lambda: silu(both[:, :width]) * both[:, width:]])

    return build


def _residual_add(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        x, rest = bench.warm((tokens, width), plan.dtype), bench.warm((tokens, width), plan.dtype)
        return Call([lambda: x + rest])

    return build


def _kv_write(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        slots = max(tokens, 16384)
        cache = bench.warm((2, slots, kv_heads, HEAD_DIM), plan.dtype)
        new = bench.warm((2, tokens, kv_heads, HEAD_DIM), plan.dtype)
        where = bench.torch.randperm(slots)[:tokens].to(bench.device)

        def call() -> None:
            cache[0].index_copy_(0, where, new[0])
            cache[1].index_copy_(0, where, new[1])

        return Call([call])

    return build


def _act_quant(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        x = bench.warm((tokens, width), plan.dtype)
        top = torch.finfo(torch.float8_e4m3fn).max

        def call() -> Any:
            scale = x.abs().amax(-1, keepdim=True).float() / top
            return (x / scale).to(torch.float8_e4m3fn), scale

        return Call([call])

    return build


def _gather(plan: Plan, tokens: int, width: int, kv_heads: int) -> Build:
    def build(bench: TorchBench) -> Call:
        vocab = _VOCAB if bench.on_gpu else 8192
        table = bench.rotated((vocab, width), plan.dtype, 1)[0]
        which = bench.integers((tokens,), vocab)
        return Call([lambda: table.index_select(0, which)])

    return build


_BUILDERS = {
    "norm": _norm,
    "rope": _rope,
    "activation": _activation,
    "residual_add": _residual_add,
    "kv_write": _kv_write,
    "act_quant": _act_quant,
    "gather": _gather,
}
