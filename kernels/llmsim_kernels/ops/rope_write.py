"""Rotary embedding of queries and keys, and the write of keys and values to a paged cache."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.bits import to_e4m3
from llmsim_kernels.ops.device import has_fp8

KERNEL_ID = "triton.rope_kv_write.v1"


@triton.jit
def _rope_write(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_factor,
    v_factor,
    HEADS_Q: tl.constexpr,
    HEADS_KV: tl.constexpr,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)  # queries, then keys, then values
    half = tl.arange(0, HALF)
    row = (token * (HEADS_Q + 2 * HEADS_KV) + head) * DIM
    first = tl.load(qkv_ptr + row + half).to(tl.float32)
    second = tl.load(qkv_ptr + row + HALF + half).to(tl.float32)
    if head < HEADS_Q + HEADS_KV:
        position = tl.load(positions_ptr + token).to(tl.int64)
        cos = tl.load(cos_ptr + position * HALF + half).to(tl.float32)
        sin = tl.load(sin_ptr + position * HALF + half).to(tl.float32)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    if head < HEADS_Q:
        to = q_ptr + (token * HEADS_Q + head) * DIM + half
        tl.store(to, first)
        tl.store(to + HALF, second)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        is_key = head < HEADS_Q + HEADS_KV
        place = (slot * HEADS_KV + (head - HEADS_Q) % HEADS_KV) * DIM + half
        if KIND == "fp8":
            factor = tl.where(is_key, k_factor, v_factor)
            low = to_e4m3(tl.minimum(tl.maximum(first * factor, -448.0), 448.0), NATIVE_FP8)
            high = to_e4m3(tl.minimum(tl.maximum(second * factor, -448.0), 448.0), NATIVE_FP8)
        else:
            low, high = first, second
        # one comparison a mask: the interpreter takes no product of scalar conditions
        for_keys = (place >= 0) & (head + half * 0 < HEADS_Q + HEADS_KV)
        for_values = (place >= 0) & (head + half * 0 >= HEADS_Q + HEADS_KV)
        tl.store(k_cache_ptr + place, low, mask=for_keys)
        tl.store(k_cache_ptr + place + HALF, high, mask=for_keys)
        tl.store(v_cache_ptr + place, low, mask=for_values)
        tl.store(v_cache_ptr + place + HALF, high, mask=for_values)


def rope_write(
    qkv: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    slots: Any,
    k_cache: Any,
    v_cache: Any,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Any:
    """Rotate queries and keys, write keys and values; return the queries.

    Parameters
    ----------
    qkv : Tensor (tokens, heads_q + 2 heads_kv, dim)
        Queries, keys and values of one joined projection.
    cos, sin : Tensor (positions, dim / 2)
        Of the angles; the two halves of a head are rotated against each other (Llama's layout).
    positions : Tensor (tokens,), int32 or int64
    slots : Tensor (tokens,), int64
        Place in the cache, page * page size + offset; -1 to leave a token out.
    k_cache, v_cache : Tensor (pages, page, heads_kv, dim)
        Of qkv's type or float8_e4m3fn.
    k_scale, v_scale : float
        What a number in an e4m3 cache is multiplied by when it is read.

    Returns
    -------
    Tensor (tokens, heads_q, dim)
    """
    tokens, heads, dim = qkv.shape
    heads_kv = k_cache.shape[2]
    heads_q = heads - 2 * heads_kv
    kind = "fp8" if k_cache.dtype == torch.float8_e4m3fn else "same"
    if kind == "fp8":
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    q = qkv.new_empty((tokens, heads_q, dim))
    _rope_write[(tokens, heads)](
        qkv,
        cos,
        sin,
        positions,
        slots,
        q,
        k_cache,
        v_cache,
        1.0 / k_scale,
        1.0 / v_scale,
        HEADS_Q=heads_q,
        HEADS_KV=heads_kv,
        DIM=dim,
        KIND=kind,
        NATIVE_FP8=has_fp8(qkv.device),
        num_warps=1,
    )
    return q
