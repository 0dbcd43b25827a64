"""Block-sparse attention: every head reads only the key blocks on its own list.

For prefills a list belongs to a query head and a block of queries; for decodes it may belong to
a KV head, whose query heads are then the rows of one product.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import LOG2_E, capability_of, power_of_two, precision_of

KERNEL_ID = "triton.sparse_attention.v1"


@triton.jit(do_not_specialize=["tokens_q", "tokens_kv", "heads_q", "heads_kv", "list_width"])
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    lists_ptr,
    counts_ptr,
    out_ptr,
    tokens_q,
    tokens_kv,
    heads_q,
    heads_kv,
    list_width,
    scale,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    lists = tl.num_programs(1)  # of one block of queries: one per head that has its own
    request = tl.program_id(2).to(tl.int64)
    head_first = tl.program_id(1) * HEADS
    head_kv = head_first // (heads_q // heads_kv)
    row = tl.arange(0, ROWS)
    token = tile * TOKENS + row // HEADS
    row_ok = (row < TOKENS * HEADS) & (token < tokens_q)
    position = tokens_kv - tokens_q + token
    dims = tl.arange(0, DIM)
    at = (request * tokens_q + token) * heads_q + head_first + row % HEADS
    place = at[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + place, mask=row_ok[:, None], other=0.0)
    kind = q_ptr.dtype.element_ty

    own = (request * lists + tl.program_id(1)) * tl.num_programs(0) + tile
    count = tl.load(counts_ptr + own)
    top = tl.full((ROWS,), -1.0e30, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    for i in range(0, count):
        block = tl.load(lists_ptr + own * list_width + i)
        key = block * BLOCK + tl.arange(0, BLOCK)
        ok = key < tokens_kv
        slot = ((request * tokens_kv + key) * heads_kv + head_kv) * DIM
        k = tl.load(k_ptr + slot[None, :] + dims[:, None], mask=ok[None, :], other=0.0)
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        seen = (key[None, :] <= position[:, None]) & ok[None, :]
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


def sparse_attention(
    q: Any, k: Any, v: Any, lists: Any, counts: Any, block: int, block_q: int
) -> Any:
    """Attend causally to listed blocks of keys.

    Parameters
    ----------
    q : Tensor (batch, tokens_q, heads_q, dim)
        The last `tokens_q` tokens of the context.
    k, v : Tensor (batch, tokens_kv, heads_kv, dim)
    lists : Tensor (batch, heads, blocks of queries, width), int32
        Indices of key blocks, without repetition; `heads` is heads_q or heads_kv.
    counts : Tensor (batch, heads, blocks of queries), int32
        Valid entries of each list.
    block, block_q : int [tokens]
        Keys, and queries, of a block; 16 keys or more.

    Returns
    -------
    Tensor (batch, tokens_q, heads_q, dim)
        Zeros for a token that sees none of its listed keys.
    """
    batch, tokens_q, heads_q, dim = q.shape
    tokens_kv, heads_kv = k.shape[1], k.shape[2]
    heads = heads_q // lists.shape[1]  # that share a list
    capability = capability_of(q.device)
    rows = max(16, power_of_two(block_q * heads))
    out = torch.empty_like(q)
    _attend[(lists.shape[2], lists.shape[1], batch)](
        q,
        k,
        v,
        lists,
        counts,
        out,
        tokens_q,
        tokens_kv,
        heads_q,
        heads_kv,
        lists.shape[3],
        dim**-0.5 * LOG2_E,
        HEADS=heads,
        TOKENS=block_q,
        ROWS=rows,
        BLOCK=block,
        DIM=dim,
        PRECISION=precision_of(q),
        num_warps=8 if rows >= 128 else 4,
        num_stages=3 if capability in (90, 100) and block * dim <= 64 * 128 else 2,
    )
    return out
