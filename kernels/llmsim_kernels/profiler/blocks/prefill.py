"""Block 2: attention of prompts, whole, behind a history, within a window, and over pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench, in_turn

HEADS = ((32, 8), (8, 1), (8, 8), (64, 8))
HEAD_DIM = 128
MOST_TOKENS = 65536
"""Of one launch."""


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return the grid: (batch, length, heads), then histories, then windows."""
    batches = (1, 4) if plan.quick else (1, 4, 16)
    lengths = (128, 512, 2048, 8192) if plan.quick else (128, 512, 2048, 8192, 16384)
    heads = heads_for(plan, HEADS)
    usual = heads[0]
    for (heads_q, heads_kv), batch, new in product(heads, batches, lengths):
        if batch * new <= MOST_TOKENS:
            yield prefill(plan, batch, new, 0, heads_q, heads_kv)
    for (heads_q, heads_kv, width), new in product(plan.model_heads(), lengths):
        yield prefill(plan, 1, new, 0, heads_q, heads_kv, head_dim=width)
    for past, new in product((4096, 16384, 65536), (256, 1024, 4096)):
        if not plan.quick or (past, new) in ((4096, 256), (16384, 1024)):
            yield prefill(plan, 1, new, past, *usual)
    if not plan.quick:
        for window, new in product((1024, 4096), (2048, 8192, 16384)):
            yield prefill(plan, 1, new, 0, *usual, window=window)
    if plan.on_gpu and not plan.quick:
        yield from _paged(plan, usual)


def _paged(plan: Plan, usual: tuple[int, int]) -> Iterator[RowSpec]:
    """Return prompts whose keys and values lie in pages, by our kernel; short ones, too."""
    for batch, new in product((1, 4, 16), (32, 128, 512, 2048, 8192)):
        if batch * new <= MOST_TOKENS:
            yield prefill(plan, batch, new, 0, *usual, paged=True)
    for (heads_q, heads_kv, width), new in product(plan.model_heads(), (128, 512, 2048, 8192)):
        yield prefill(plan, 1, new, 0, heads_q, heads_kv, head_dim=width, paged=True)
    for past, new in product((512, 4096, 16384), (64, 512, 4096)):
        yield prefill(plan, 1, new, past, *usual, paged=True)


def heads_for(plan: Plan, heads: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (query heads, KV heads) for this device: the first two in a quick run."""
    chosen = heads[:2] if plan.quick else heads
    return [(q // plan.shrink, max(1, kv // plan.shrink)) for q, kv in chosen]


def prefill(
    plan: Plan,
    batch: int,
    new: int,
    past: int,
    heads_q: int,
    heads_kv: int,
    *,
    head_dim: int = HEAD_DIM,
    window: int = 0,
    paged: bool = False,
    block: int = 2,
    holdout: bool = False,
) -> RowSpec:
    """Return the row of `batch` prompts of `new` tokens behind `past` cached ones.

    Parameters
    ----------
    plan : Plan
    batch : int [requests]
    new, past : int [tokens]
    heads_q, heads_kv, head_dim : int
    window : int [tokens]
        0 for full attention.
    paged : bool
        Keys and values lie in pages, as they do behind a window.
    block : int
    holdout : bool

    Notes
    -----
    FLOPs: two products of 2 D per query head and causal pair. Bytes: query, result, and the keys
    and values once (tiles read them again from L2).
    """
    item = ITEM_BYTES[plan.dtype]
    width = heads_q * head_dim
    kv_bytes = 2 * batch * heads_kv * head_dim * (min(past, window) if window else past) * item
    kv_bytes += 2 * batch * heads_kv * head_dim * new * item
    own_bytes = 2 * batch * width * new * item
    key: dict[str, Any] = {
        "op": "attention_prefill",
        "kernel_id": _kernel(plan, paged=paged or window > 0),
        "dtype_a": plan.dtype,
        "dtype_kv": plan.dtype,
        "phase": "prefill",
        "batch": batch,
        "q_len": new,
        "kv_len": past,
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "head_dim": head_dim,
        "window": window,
        "cold": True,
        "graph": plan.graph,
    }
    flops = 4.0 * width * batch * causal_pairs(new, past, window)
    shape = (batch, new, past, heads_q, heads_kv, head_dim)
    own = paged or window > 0
    build = _by_pages(plan, *shape, window) if own else _sdpa(plan, *shape)
    return RowSpec(
        block,
        key,
        flops,
        kv_bytes + own_bytes,
        build,
        "triton" if own else "",
        kv_bytes + 2 * own_bytes,
        holdout,
    )


def _kernel(plan: Plan, *, paged: bool) -> str:
    if paged:
        return "triton.varlen_attention.v1"
    return "torch.sdpa.flash" if plan.on_gpu else "torch.sdpa"


def causal_pairs(new: int, past: int, window: int = 0) -> float:
    """Return the query-key pairs of one prompt, each query's keys clipped to the window."""
    if not window:
        return new * (past + (new + 1) / 2)
    rising = max(0, min(new, window - past))
    return rising * (past + (rising + 1) / 2) + (new - rising) * window


def _sdpa(
    plan: Plan, batch: int, new: int, past: int, heads_q: int, heads_kv: int, head_dim: int
) -> Build:
    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        cache = (2, batch, heads_kv, past + new, head_dim)
        size = 2 * batch * heads_kv * (past + new) * head_dim * ITEM_BYTES[plan.dtype]
        caches = bench.rotated(cache, plan.dtype, bench.copies(size))
        q = bench.warm((batch, heads_q, new, head_dim), plan.dtype)
        attend = torch.nn.functional.scaled_dot_product_attention
        shared = heads_q != heads_kv
        if past and bench.on_gpu:
            from torch.nn.attention.bias import causal_lower_right

            how: dict[str, Any] = {"attn_mask": causal_lower_right(new, past + new)}
        elif past:  # on a CPU the lazy mask is not known to the fused kernel
            rows_, columns = torch.arange(new)[:, None], torch.arange(past + new)[None]
            how = {"attn_mask": columns <= rows_ + past}
        else:
            how = {"is_causal": True}

        def plain(kv: Any) -> Any:
            return attend(q, kv[0], kv[1], enable_gqa=shared, **how)

        def flash(kv: Any) -> Any:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return plain(kv)

        call = plain
        if bench.on_gpu:  # torch would choose by version and GPU; the row says which kernel ran
            from torch.nn.attention import SDPBackend, sdpa_kernel

            call = flash

        return Call(in_turn(call, caches))

    return build


def _by_pages(
    plan: Plan,
    batch: int,
    new: int,
    past: int,
    heads_q: int,
    heads_kv: int,
    head_dim: int,
    window: int,
) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler.blocks.mixed import VarlenShape
        from llmsim_kernels.profiler.triton_calls import varlen_attention

        shape = VarlenShape(((new, past),) * batch, heads_q, heads_kv, head_dim, plan.dtype, window)
        return varlen_attention(bench, shape)

    return build
