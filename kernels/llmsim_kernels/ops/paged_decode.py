"""Decode attention over a paged KV cache: context split over programs, parts joined by their LSE.

One program takes one request, the query heads that share a KV head (packed as the rows of its
products) and one part of the context, parts being about as long in all of them; flash-decoding
(https://crfm.stanford.edu/2023/10/12/flashdecoding.html) describes the split. Keys and values may
be of the queries' type or e4m3, turned into numbers in registers; of 4-bit caches
`llmsim_kernels.ops.int4_decode` takes care.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.bits import e4m3_to_half
from llmsim_kernels.ops.device import LOG2_E, capability_of, has_fp8, precision_of
from llmsim_kernels.ops.int4_decode import attend_int4_part
from llmsim_kernels.ops.splits import Tiles, join_parts, kv_kind, part_tokens, tiles_for

KERNEL_ID = "triton.paged_decode.v2"


# what only addresses depend on is no reason to compile again
@triton.jit(do_not_specialize=["heads_kv", "table_width", "wanted", "most"])
def _attend_part(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    contexts_ptr,
    out_ptr,
    lse_ptr,
    heads_kv,
    table_width,
    wanted,
    most,
    k_scale,
    v_scale,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    DIRECT: tl.constexpr,
    KV: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row_blocks: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    request = tl.program_id(0).to(tl.int64)
    head_kv = tl.program_id(1) // row_blocks
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    context = tl.load(contexts_ptr + request)
    begin = context * 0
    if WINDOW > 0:
        begin = tl.maximum(context - WINDOW, 0)
    part = part_tokens(context - begin, wanted, most, TILE)
    first = begin + split * part
    last = tl.minimum(first + part, context)
    row = (tl.program_id(1) % row_blocks) * ROWS + tl.arange(0, ROWS)
    row_ok = row < GROUP
    head = request * heads_kv * GROUP + head_kv * GROUP + row
    place = head * splits + split
    if (split > 0) & (first >= context):  # this context has fewer parts than the longest
        tl.store(lse_ptr + place, tl.full((ROWS,), float("-inf"), tl.float32), mask=row_ok)
        return
    dims = tl.arange(0, DIM)
    kind: tl.constexpr = q_ptr.dtype.element_ty
    q = tl.load(q_ptr + head[:, None] * DIM + dims[None, :], mask=row_ok[:, None], other=0.0)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)

    for start in range(first, last, TILE):
        token = start + tl.arange(0, TILE)
        ok = token < last
        page = tl.load(table_ptr + request * table_width + token // PAGE, mask=ok, other=0)
        slot = (page.to(tl.int64) * PAGE + token % PAGE) * heads_kv + head_kv
        k = tl.load(k_ptr + slot[None, :] * DIM + dims[:, None], mask=ok[None, :], other=0)
        if KV == "fp8":
            k = e4m3_to_half(k, NATIVE_FP8).to(kind)
        scores = tl.dot(q, k, input_precision=PRECISION) * k_scale
        scores = tl.where(ok[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weight = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        top = higher
        total = total * fade + tl.sum(weight, 1)
        v = tl.load(v_ptr + slot[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0)
        if KV == "fp8":
            v = e4m3_to_half(v, NATIVE_FP8).to(kind)
        acc = acc * fade[:, None]
        acc += tl.dot(weight.to(kind), v, input_precision=PRECISION)

    norm = v_scale / tl.where(total > 0, total, 1.0)
    to = out_ptr + place[:, None] * DIM + dims[None, :]
    tl.store(to, acc * norm[:, None], mask=row_ok[:, None])
    if not DIRECT:
        lse = tl.where(total > 0, top + tl.log2(tl.maximum(total, 1.0e-30)), float("-inf"))
        tl.store(lse_ptr + place, lse, mask=row_ok)


def paged_decode(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    page_table: Any,
    contexts: Any,
    max_context: int,
    *,
    scale: float | None = None,
    window: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    k_terms: Any = None,
    v_terms: Any = None,
    tiles: Tiles | None = None,
    out: Any = None,
) -> Any:
    """Attend from one new token of each request to its whole context.

    Parameters
    ----------
    q : Tensor (batch, heads_q, dim)
    k_cache, v_cache : Tensor (pages, page, heads_kv, dim)
        Of q's type, or e4m3 (as such or as bytes). 4-bit caches are bytes of width dim / 2: number
        d in the low half of byte d, number d + dim / 2 in its high half.
    page_table : Tensor (batch, pages of a request), int32
    contexts : Tensor (batch,), int32 [tokens]
        The new token included.
    max_context : int [tokens]
        No context is longer.
    scale : float or None
        Of the scores; 1 / sqrt(dim) if None.
    window : int [tokens]
        Only the last so many are attended to; 0 for all.
    k_scale, v_scale : float
        Factors of what e4m3 caches hold.
    k_terms, v_terms : Tensor (pages, page, heads_kv, 2), fp16
        Of 4-bit caches, by head: nibble n means ``terms[1] + (n - 8) * terms[0]``.
    tiles : Tiles or None
        From `tiles_for` if None.
    out : Tensor or None
        Is written, if given.

    Returns
    -------
    Tensor (batch, heads_q, dim), zeros for a request without context
    """
    batch, heads_q, dim = q.shape
    page, heads_kv = k_cache.shape[1], k_cache.shape[2]
    kind = kv_kind(q, k_cache)
    if kind == "fp8":
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    group = heads_q // heads_kv
    cut = tiles or tiles_for(q.device, batch, heads_kv, group, dim, max_context, kind)
    out = torch.empty_like(q) if out is None else out
    parts, lse = out, out
    if cut.splits > 1:
        parts = q.new_empty((batch, heads_q, cut.splits, dim), dtype=torch.float32)
        lse = q.new_empty((batch, heads_q, cut.splits), dtype=torch.float32)
    scale = dim**-0.5 if scale is None else scale
    grid = (batch, heads_kv * -(-group // cut.rows), cut.splits)
    cuts = cut.wanted or cut.splits, cut.most
    places = (page_table, contexts, parts, lse, heads_kv, page_table.shape[1], *cuts)
    options = {
        "GROUP": group,
        "ROWS": cut.rows,
        "TILE": cut.tile,
        "DIM": dim,
        "PAGE": page,
        "WINDOW": window,
        "DIRECT": cut.splits == 1,
        "PRECISION": precision_of(q),
        "num_warps": cut.warps,
        "num_stages": cut.stages,
    }
    scales = scale * LOG2_E * k_scale, float(v_scale)
    if kind == "int4":
        both = k_cache, v_cache, k_terms, v_terms
        asm = capability_of(q.device) >= 80
        attend_int4_part[grid](q, *both, *places, *scales, ASM=asm, **options)
    else:
        native = has_fp8(q.device)
        _attend_part[grid](
            q, k_cache, v_cache, *places, *scales, KV=kind, NATIVE_FP8=native, **options
        )
    if cut.splits > 1:
        join_parts(parts, lse, out)
    return out
