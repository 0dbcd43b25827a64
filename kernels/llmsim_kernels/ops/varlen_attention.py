"""Attention of prefills and decodes in one launch over a paged cache, with heads packed or not.

Packed, the query heads of one KV head are rows of the same product, so that a decode fills
`group` rows of a tile; unpacked, it fills one row and reads its keys once per query head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import LOG2_E, capability_of, precision_of

KERNEL_ID = "triton.varlen_attention.v1"


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
    kind = q_ptr.dtype.element_ty

    oldest = begin * 0
    if WINDOW > 0:
        oldest = tl.maximum(context - count + begin - WINDOW + 1, 0) // TILE * TILE
    newest = context - count + tl.minimum(begin + TOKENS, count)
    top = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    for first in range(oldest, newest, TILE):
        key = first + tl.arange(0, TILE)
        ok = key < newest
        page = tl.load(table_ptr + request * table_width + key // PAGE, mask=ok, other=0)
        slot = ((page.to(tl.int64) * PAGE + key % PAGE) * heads_kv + head_kv) * DIM
        k = tl.load(k_ptr + slot[None, :] + dims[:, None], mask=ok[None, :], other=0.0)
        seen = (key[None, :] <= position[:, None]) & ok[None, :]
        if WINDOW > 0:
            seen = seen & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weight = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        top = higher
        total = total * fade + tl.sum(weight, 1)
        v = tl.load(v_ptr + slot[:, None] + dims[None, :], mask=ok[:, None], other=0.0)
        acc = acc * fade[:, None]
        acc += tl.dot(weight.to(kind), v, input_precision=PRECISION)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + place, acc, mask=row_ok[:, None])


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a launch is cut.

    Parameters
    ----------
    rows, tile : int
        Rows of a query tile (tokens times packed heads); keys read at a time.
    warps, stages : int
    """

    rows: int
    tile: int
    warps: int
    stages: int


def tiles_for(device: Any, dim: int, longest: int, heads: int) -> Tiles:
    """Return the cut of a launch.

    Parameters
    ----------
    device : torch.device
    dim : int
        Width of a head.
    longest : int [tokens]
        Most new tokens of one request.
    heads : int
        Query heads packed into a tile; 1 if unpacked.
    """
    capability = capability_of(device)
    if capability == 0:
        return Tiles(max(16, heads), 32, 4, 1)
    rows = 16 if longest * heads <= 16 else 64 if longest * heads <= 1024 or dim > 128 else 128
    rows = max(rows, 1 << (heads - 1).bit_length())
    stages = 3 if capability in (90, 100) and dim <= 128 else 2
    return Tiles(rows, 64 if dim <= 128 else 32, 8 if rows >= 128 else 4, stages)


@dataclass(frozen=True, slots=True)
class Plan:
    """A mixed batch, cut into query tiles; made once per step, outside the launch.

    Parameters
    ----------
    starts : Tensor (requests + 1,), int32 [tokens]
        Where each request's new tokens begin.
    tile_request, tile_token : Tensor (tiles,), int32
        Request and first new token of each tile.
    pack : bool
    tiles : Tiles
    """

    starts: Any
    tile_request: Any
    tile_token: Any
    pack: bool
    tiles: Tiles


def plan_batch(
    new_tokens: Sequence[int],
    group: int,
    dim: int,
    device: Any,
    *,
    pack: bool = True,
    tiles: Tiles | None = None,
) -> Plan:
    """Cut a mixed batch into query tiles, longest requests first so that they do not end last.

    Parameters
    ----------
    new_tokens : sequence of int (requests,) [tokens]
        1 for a decode, the chunk for a prefill.
    group, dim : int
        Query heads of a KV head; width of a head.
    device : torch.device
    pack : bool
        Whether the heads of a group share a tile.
    tiles : Tiles or None
        From `tiles_for` if None.
    """
    heads = group if pack else 1
    cut = tiles or tiles_for(device, dim, max(new_tokens), heads)
    each = cut.rows // heads
    order = sorted(range(len(new_tokens)), key=lambda request: -new_tokens[request])
    found = [(r, first) for r in order for first in range(0, new_tokens[r], each)]
    starts = [0]
    for count in new_tokens:
        starts.append(starts[-1] + count)
    whole = torch.tensor(found, dtype=torch.int32, device=device).reshape(-1, 2).T.contiguous()
    table = torch.tensor(starts, dtype=torch.int32, device=device)
    return Plan(table, whole[0], whole[1], pack, cut)


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

    Returns
    -------
    Tensor (new tokens, heads_q, dim)
    """
    heads_q, dim = q.shape[1], q.shape[2]
    page, heads_kv = k_cache.shape[1], k_cache.shape[2]
    scale = dim**-0.5 if scale is None else scale
    out = torch.empty_like(q)
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
        TILE=plan.tiles.tile,
        DIM=dim,
        PAGE=page,
        WINDOW=window,
        PRECISION=precision_of(q),
        num_warps=plan.tiles.warps,
        num_stages=plan.tiles.stages,
    )
    return out
