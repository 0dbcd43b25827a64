"""Writes keys and values to a 4-bit paged cache, rotated by a Hadamard matrix of order 64.

The rotation spreads outliers over 64 numbers, so that 16 levels suffice (as in SAW-INT4). Queries
are rotated alike, which leaves their products with keys as they were; what attention returns is
rotated back, the matrix being its own inverse.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.bits import nearest
from llmsim_kernels.ops.device import power_of_two, precision_of

KERNEL_ID = "triton.kv_write_int4.v1"
ROTATE_ID = "triton.hadamard64.v1"
ORDER = 64


@triton.jit
def _rotated(x, PRECISION: tl.constexpr):
    """Multiply rows of 64 numbers by the Hadamard matrix, in fp32.

    Sylvester's matrix has (-1)^(bits that i and j share) at (i, j); 1 / 8 makes it orthogonal.
    """
    i = tl.arange(0, 64)
    shared = i[:, None] & i[None, :]
    shared ^= shared >> 4
    shared ^= shared >> 2
    shared ^= shared >> 1
    matrix = (1 - 2 * (shared & 1)).to(x.dtype)
    return tl.dot(x, matrix, input_precision=PRECISION) * 0.125


@triton.jit(do_not_specialize=["rows"])
def _rotate(x_ptr, out_ptr, rows, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place = row[:, None] * 64 + tl.arange(0, 64)[None, :]
    ok = (row < rows)[:, None]
    x = tl.load(x_ptr + place, mask=ok, other=0.0)
    tl.store(out_ptr + place, _rotated(x, PRECISION), mask=ok)


@triton.jit
def _write(
    x_ptr,
    slots_ptr,
    cache_ptr,
    terms_ptr,
    stride,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    DIM: tl.constexpr,
    ROTATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    HALF: tl.constexpr = DIM // 2
    BLOCKS: tl.constexpr = PADDED * DIM // 64
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    row = tl.arange(0, BLOCKS)
    place = row[:, None] * 64 + tl.arange(0, 64)[None, :]
    x = tl.load(x_ptr + token * stride + place, mask=place < HEADS * DIM, other=0.0)
    if ROTATE:
        numbers = _rotated(x, PRECISION)
    else:
        numbers = x.to(tl.float32)
    numbers = tl.reshape(numbers, (PADDED, DIM))
    least = tl.min(numbers, 1)
    span = (tl.max(numbers, 1) - least) / 15.0
    step = tl.where(span > 0, span, 1.0).to(tl.float16).to(tl.float32)
    middle = (least + 8.0 * step).to(tl.float16)
    level = nearest((numbers - middle.to(tl.float32)[:, None]) / step[:, None] + 8.0)
    level = tl.minimum(tl.maximum(level, 0.0), 15.0).to(tl.uint8)
    pairs = tl.permute(tl.reshape(level, (PADDED, 2, HALF)), (0, 2, 1))
    low, high = tl.split(pairs)

    head = tl.arange(0, PADDED)
    to = slot * HEADS + head
    ok = (head < HEADS) & (to >= 0)
    tl.store(
        cache_ptr + to[:, None] * HALF + tl.arange(0, HALF)[None, :],
        low | (high << 4),
        mask=ok[:, None],
    )
    tl.store(terms_ptr + to * 2, step.to(tl.float16), mask=ok)
    tl.store(terms_ptr + to * 2 + 1, middle, mask=ok)


def write_int4(x: Any, slots: Any, cache: Any, terms: Any, *, rotate: bool = True) -> None:
    """Write the keys (or values) of new tokens into a 4-bit cache.

    Parameters
    ----------
    x : Tensor (tokens, heads_kv, dim)
        `dim` is 64 or more; heads of one token lie together.
    slots : Tensor (tokens,), int64
        Place of each token in the cache, page * page size + offset; -1 to leave it out.
    cache : Tensor (pages, page, heads_kv, dim / 2), uint8
        Written as `paged_decode` reads it.
    terms : Tensor (pages, page, heads_kv, 2), fp16
        Step and middle of each token's head.
    rotate : bool
        Whether blocks of 64 numbers are rotated first.
    """
    tokens, heads, dim = x.shape
    padded = max(power_of_two(heads), 16 * ORDER // dim)  # products have 16 rows or more
    _write[(tokens,)](
        x,
        slots,
        cache,
        terms,
        x.stride(0),
        HEADS=heads,
        PADDED=padded,
        DIM=dim,
        ROTATE=rotate,
        PRECISION=precision_of(x),
        num_warps=4,
    )


def rotate64(x: Any) -> Any:
    """Rotate blocks of 64 numbers; twice is the identity.

    Parameters
    ----------
    x : Tensor (..., width)
        Contiguous; `width` is a multiple of 64.
    """
    out = torch.empty_like(x)
    rows = x.numel() // ORDER
    each = 64 if rows >= 1024 else 16
    grid = (-(-rows // each),)
    _rotate[grid](x, out, rows, ROWS=each, PRECISION=precision_of(x), num_warps=4)
    return out
