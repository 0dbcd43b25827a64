"""Block 3: attention of decoding requests, paged; tile steps, skew, low-bit KV, MLA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from llmsim_kernels.profiler.blocks.prefill import heads_for
from llmsim_kernels.profiler.collectors import COLLECTORS, importable, paged_decode
from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench, in_turn

HEADS = ((32, 8), (8, 1), (8, 8), (64, 8), (16, 1))
BATCHES = (1, 8, 32, 128, 256)
CONTEXTS = (128, 1024, 8192, 32768, 131072)
TILE_CONTEXTS = (32, 129, 257)
"""Around the 128-token tiles that kernels read KV in: the step must show."""

SKEWED = (
    (8, 1024, 4.0),
    (8, 8192, 4.0),
    (32, 1024, 4.0),
    (32, 8192, 4.0),
    (128, 1024, 4.0),
    (128, 1024, 8.0),
)
"""Batch, mean context, longest over mean: one request is long and the others share the rest."""

HEAD_DIM = 128
PAGE = 16
LATENT, ROTARY = 512, 64
"""DeepSeek V2 and V3: width of the compressed KV, and of the rotary key beside it."""


@dataclass(frozen=True, slots=True)
class DecodeShape:
    """One decode launch.

    Parameters
    ----------
    contexts : tuple of int (batch,) [tokens]
        Of each request, its new token included.
    heads_q, heads_kv, head_dim : int
    dtype, dtype_kv : str
    window, page : int [tokens]
    """

    contexts: tuple[int, ...]
    heads_q: int
    heads_kv: int
    head_dim: int
    dtype: str
    dtype_kv: str
    window: int = 0
    page: int = PAGE

    @property
    def kv_bytes(self) -> float:
        """Keys and values that one call reads [bytes]."""
        seen = sum(min(c, self.window) if self.window else c for c in self.contexts)
        return 2.0 * self.heads_kv * self.head_dim * seen * ITEM_BYTES[self.dtype_kv]


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return the grid, then tile steps, windows, skewed batches, low-bit KV and MLA."""
    heads = heads_for(plan, HEADS)
    usual = heads[0]
    contexts = CONTEXTS[:4] if plan.quick else CONTEXTS
    batches = (1, 8, 64) if plan.quick else BATCHES
    for (heads_q, heads_kv), batch, context in product(heads, batches, contexts):
        if plan.quick or fits_grid(batch, context):
            yield decode(plan, (context,) * batch, heads_q, heads_kv)
    for (heads_q, heads_kv, width), batch, context in product(
        plan.model_heads(), batches, contexts
    ):
        if fits_grid(batch, context):
            yield decode(plan, (context,) * batch, heads_q, heads_kv, head_dim=width)
    for batch, context in product((1, 64), TILE_CONTEXTS):
        yield decode(plan, (context,) * batch, *usual)
    if plan.quick:
        return
    for context in (1024, 8192):
        yield decode(plan, (context,) * 64, *usual, window=1024)
    for batch, mean, ratio in SKEWED:
        yield decode(plan, skewed(batch, mean, ratio), *usual)
    if plan.on_gpu:
        for dtype_kv, batch, context in product(("fp8", "int4"), BATCHES, CONTEXTS):
            if fits_grid(batch, context):
                yield decode(plan, (context,) * batch, 32, 8, dtype_kv=dtype_kv)
        for kernel_id, batch, context in product(importable(), BATCHES, CONTEXTS):
            if fits_grid(batch, context):
                yield borrowed(plan, (context,) * batch, *usual, kernel_id)
    for heads_q, batch, context in product((16, 128), (1, 32), (128, 1024, 8192, 32768)):
        yield latent_decode(plan, batch, context, heads_q)


def fits_grid(batch: int, context: int) -> bool:
    """Whether a point is on the grid: at most 2 Mi tokens of context in one batch."""
    return batch * context <= 1 << 21


def skewed(batch: int, mean: int, ratio: float) -> tuple[int, ...]:
    """Return contexts with this mean whose longest is `ratio` times it."""
    longest = int(mean * ratio)
    rest = max(1, (batch * mean - longest) // (batch - 1))
    return (longest, *(rest,) * (batch - 1))


def decode(
    plan: Plan,
    contexts: Sequence[int],
    heads_q: int,
    heads_kv: int,
    *,
    head_dim: int = HEAD_DIM,
    dtype_kv: str = "",
    window: int = 0,
    block: int = 3,
    holdout: bool = False,
) -> RowSpec:
    """Return the row of a decode batch; on a CPU from contiguous KV, by torch.

    Parameters
    ----------
    plan : Plan
    contexts : sequence of int (batch,) [tokens]
    heads_q, heads_kv, head_dim : int
    dtype_kv : str
        Of the cache; empty for that of the activations.
    window : int [tokens]
    block : int
    holdout : bool

    Notes
    -----
    FLOPs: two products of 2 D per query head and cached token.
    """
    dtype_kv = dtype_kv or plan.dtype
    shape = DecodeShape(tuple(contexts), heads_q, heads_kv, head_dim, plan.dtype, dtype_kv, window)
    batch, total = len(contexts), sum(contexts)
    seen = sum(min(c, window) if window else c for c in contexts)
    own = 2 * batch * heads_q * head_dim * ITEM_BYTES[plan.dtype]
    uneven = max(contexts) * batch > 1.01 * total
    paged = plan.on_gpu
    key: dict[str, Any] = {
        "op": "attention_decode",
        "kernel_id": "triton.paged_decode.v2" if paged else "torch.sdpa",
        "dtype_a": plan.dtype,
        "dtype_kv": dtype_kv,
        "phase": "decode",
        "batch": batch,
        "kv_len": round(total / batch),
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "head_dim": head_dim,
        "window": window,
        "page": PAGE if paged else None,
        "skew": max(contexts) * batch / total if uneven else None,
        "cold": True,
        "graph": plan.graph,
    }
    return RowSpec(
        block,
        key,
        4.0 * heads_q * head_dim * seen,
        shape.kv_bytes + own,
        _paged(shape) if paged else _contiguous(shape),
        "triton" if paged else "cuda" if uneven or window else "",
        2.0 * heads_kv * head_dim * total * ITEM_BYTES[dtype_kv],
        holdout,
    )


def _paged(shape: DecodeShape) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler import triton_calls

        return triton_calls.paged_decode(bench, shape)

    return build


def _contiguous(shape: DecodeShape) -> Build:
    def build(bench: TorchBench) -> Call:
        batch, context = len(shape.contexts), shape.contexts[0]
        cache = (2, batch, shape.heads_kv, context, shape.head_dim)
        caches = bench.rotated(cache, shape.dtype, bench.copies(shape.kv_bytes))
        q = bench.warm((batch, shape.heads_q, 1, shape.head_dim), shape.dtype)
        attend = bench.torch.nn.functional.scaled_dot_product_attention
        shared = shape.heads_q != shape.heads_kv
        return Call(in_turn(lambda kv: attend(q, kv[0], kv[1], enable_gqa=shared), caches))

    return build


def borrowed(
    plan: Plan, contexts: Sequence[int], heads_q: int, heads_kv: int, kernel_id: str
) -> RowSpec:
    """Return the row of a decode batch by the kernel of an installed engine.

    Parameters
    ----------
    plan : Plan
    contexts : sequence of int (batch,) [tokens]
    heads_q, heads_kv : int
    kernel_id : str
        Of `llmsim_kernels.profiler.collectors`.
    """
    ours = decode(plan, contexts, heads_q, heads_kv)
    shape = DecodeShape(tuple(contexts), heads_q, heads_kv, HEAD_DIM, plan.dtype, plan.dtype)

    def build(bench: TorchBench) -> Call:
        return paged_decode(bench, shape, kernel_id)

    package = COLLECTORS[kernel_id][0]
    return replace(ours, key={**ours.key, "kernel_id": kernel_id}, build=build, needs=package)


def latent_decode(plan: Plan, batch: int, context: int, heads: int) -> RowSpec:
    """Return the row of absorbed MLA: every head attends to one compressed vector per token.

    Parameters
    ----------
    plan : Plan
    batch : int [requests]
    context : int [tokens]
    heads : int
    """
    item = ITEM_BYTES[plan.dtype]
    cache_bytes = batch * context * (LATENT + ROTARY) * item
    own = batch * heads * (2 * LATENT + ROTARY) * item
    key: dict[str, Any] = {
        "op": "mla_decode",
        "kernel_id": "torch.mla_absorbed",
        "dtype_a": plan.dtype,
        "dtype_kv": plan.dtype,
        "phase": "decode",
        "batch": batch,
        "kv_len": context,
        "heads_q": heads,
        "cold": True,
        "graph": plan.graph,
    }

    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        caches = bench.rotated(
            (batch, context, LATENT + ROTARY), plan.dtype, bench.copies(cache_bytes)
        )
        q = bench.warm((batch, heads, LATENT + ROTARY), plan.dtype)
        scale = (128 + ROTARY) ** -0.5  # of the width before absorption

        def call(cache: Any) -> Any:
            scores = torch.bmm(q, cache.transpose(1, 2)) * scale
            return torch.bmm(scores.softmax(-1), cache[..., :LATENT])

        return Call(in_turn(call, caches))

    flops = 2.0 * (2 * LATENT + ROTARY) * heads * batch * context
    scores_bytes = batch * heads * context * item
    return RowSpec(3, key, flops, cache_bytes + own, build, "", cache_bytes + 3 * scores_bytes)
