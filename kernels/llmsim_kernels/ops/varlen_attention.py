"""Attention of prefills and decodes in one launch over a paged cache, with heads packed or not.

Packed, the query heads of one KV head are rows of the same product, so that a decode fills
`group` rows of a tile; unpacked, it fills one row and reads its keys once per query head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import LOG2_E, precision_of
from llmsim_kernels.ops.varlen_plan import Plan, Tiles, plan_batch, tiles_for

__all__ = ["KERNEL_ID", "Plan", "Tiles", "plan_batch", "tiles_for", "varlen_attention"]

KERNEL_ID = "triton.varlen_attention.v1"


@triton.jit
def _mixed(acc, top, total, scores, scale, v, PRECISION: tl.constexpr):
    """Return mix, maximum and sum of weights with one more tile of keys (online softmax)."""
    higher = tl.maximum(top, tl.max(scores, 1) * scale)
    weight = tl.exp2(scores * scale - higher[:, None])
    fade = tl.exp2(top - higher)
    acc = acc * fade[:, None]
    acc += tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
    return acc, higher, total * fade + tl.sum(weight, 1)


@triton.jit(do_not_specialize=["heads_kv", "table_width"])
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    starts_ptr,
    contexts_ptr,
    tile_request_ptr,
    tile_token_ptr,
    out_ptr,
    heads_kv,
    table_width,
    scale,
    GROUP: tl.constexpr,
    PACK: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HEADS: tl.constexpr = GROUP if PACK else 1  # packed into the rows of one program
    TOKENS: tl.constexpr = ROWS // HEADS
    tile = tl.program_id(0)
    request = tl.load(tile_request_ptr + tile).to(tl.int64)
    begin = tl.load(tile_token_ptr + tile)
    start = tl.load(starts_ptr + request)
    count = tl.load(starts_ptr + request + 1) - start
    context = tl.load(contexts_ptr + request)
    head_kv = tl.program_id(1) * HEADS // GROUP

    row = tl.arange(0, ROWS)
    token = begin + row // HEADS
    row_ok = (row < TOKENS * HEADS) & (token < count)
    head = tl.program_id(1) * HEADS + row % HEADS
    position = context - count + token
    dims = tl.arange(0, DIM)
    place = ((start + token).to(tl.int64) * heads_kv * GROUP + head)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + place, mask=row_ok[:, None], other=0.0)

    oldest = begin * 0
    if WINDOW > 0:
        oldest = tl.maximum(context - count + begin - WINDOW + 1, 0) // TILE * TILE
    newest = context - count + tl.minimum(begin + TOKENS, count)
    top = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    diagonal = oldest
    if WINDOW == 0:  # every row sees all keys before the tile of its first token: no masks
        diagonal = (context - count + begin + 1) // TILE * TILE
        for first in range(oldest, diagonal, TILE):
            key = first + tl.arange(0, TILE)
            page = tl.load(table_ptr + request * table_width + key // PAGE)
            slot = ((page.to(tl.int64) * PAGE + key % PAGE) * heads_kv + head_kv) * DIM
            k = tl.load(k_ptr + slot[None, :] + dims[:, None])
            scores = tl.dot(q, k, input_precision=PRECISION)
            v = tl.load(v_ptr + slot[:, None] + dims[None, :])
            acc, top, total = _mixed(acc, top, total, scores, scale, v, PRECISION)
    for first in range(diagonal, newest, TILE):
        key = first + tl.arange(0, TILE)
        ok = key < newest
        page = tl.load(table_ptr + request * table_width + key // PAGE, mask=ok, other=0)
        slot = ((page.to(tl.int64) * PAGE + key % PAGE) * heads_kv + head_kv) * DIM
        k = tl.load(k_ptr + slot[None, :] + dims[:, None], mask=ok[None, :], other=0.0)
        seen = (key[None, :] <= position[:, None]) & ok[None, :]
        if WINDOW > 0:
            seen = seen & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.dot(q, k, input_precision=PRECISION)
        scores = tl.where(seen, scores, float("-inf"))
        v = tl.load(v_ptr + slot[:, None] + dims[None, :], mask=ok[:, None], other=0.0)
        acc, top, total = _mixed(acc, top, total, scores, scale, v, PRECISION)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + place, acc, mask=row_ok[:, None])


def varlen_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    page_table: Any,
    contexts: Any,
    plan: Plan,
    *,
    scale: float | None = None,
    window: int = 0,
    out: Any = None,
) -> Any:
    """Attend causally from the new tokens of each request to its context.

    Parameters
    ----------
    q : Tensor (new tokens of all requests, heads_q, dim)
    k_cache, v_cache : Tensor (pages, page, heads_kv, dim)
        New tokens included.
    page_table : Tensor (requests, pages of a request), int32
    contexts : Tensor (requests,), int32 [tokens]
        New tokens included.
    plan : Plan
    scale : float or None
        Of the scores; 1 / sqrt(dim) if None.
    window : int [tokens]
        A token attends to itself and the `window` - 1 before it; 0 for all.
    out : Tensor (new tokens, heads_q, dim) or None
        Is written, if given; rows that no tile has stay as they are.

    Returns
    -------
    Tensor (new tokens, heads_q, dim)
    """
    heads_q, dim = q.shape[1], q.shape[2]
    page, heads_kv = k_cache.shape[1], k_cache.shape[2]
    scale = dim**-0.5 if scale is None else scale
    out = torch.empty_like(q) if out is None else out
    wide = q.element_size() > 2  # twice the bytes: tiles of 16-bit numbers may not fit
    _attend[(plan.tile_request.shape[0], heads_kv if plan.pack else heads_q)](
        q,
        k_cache,
        v_cache,
        page_table,
        plan.starts,
        contexts,
        plan.tile_request,
        plan.tile_token,
        out,
        heads_kv,
        page_table.shape[1],
        scale * LOG2_E,
        GROUP=heads_q // heads_kv,
        PACK=plan.pack,
        ROWS=plan.tiles.rows,
        TILE=min(plan.tiles.tile, 32) if wide else plan.tiles.tile,
        DIM=dim,
        PAGE=page,
        WINDOW=window,
        PRECISION=precision_of(q),
        num_warps=plan.tiles.warps,
        num_stages=min(plan.tiles.stages, 2) if wide else plan.tiles.stages,
    )
    return out
