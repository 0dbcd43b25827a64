"""Products with weights of 2 to 8 bits: 16-bit (W{2..8}A16) or 8-bit activations (W4A8).

A weight of b bits is cut into fields of 8, 4, 2 and 1 bits (5 = 4 + 1), so that 32 weights take
exactly b words of 32 bits and a field is unpacked by one shift. Weights in a group of 128 along k
share a scale, which is applied to the group's product rather than to every weight.

4-bit weights for 16-bit activations are packed and multiplied otherwise, by
`llmsim_kernels.ops.w4a16_gemm`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.bits import base_of, small_number
from llmsim_kernels.ops.device import capability_of, multiprocessors_of, power_of_two, precision_of
from llmsim_kernels.ops.w4a16_gemm import GROUP, Tiles, launch_four, pack_four, tiles_for_four

KERNEL_ID = "triton.wna16_gemm.v2"
A8_ID = "triton.w4a8_gemm.v1"


@triton.jit
def _field(
    words_ptr,
    row,
    column_ptr,
    ok,
    n,
    WIDTH: tl.constexpr,
    AT: tl.constexpr,
    BITS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """Return (DEPTH, TILE_N) numbers of one field of WIDTH bits at word AT of the BITS words."""
    EACH: tl.constexpr = 32 // WIDTH
    word = tl.arange(0, DEPTH // EACH)
    at = (row + word // WIDTH) * BITS + AT + word % WIDTH
    words = tl.load(words_ptr + at[:, None] * n + column_ptr[None, :], mask=ok[None, :], other=0)
    shift = tl.arange(0, EACH) * WIDTH
    numbers = (words[:, None, :] >> shift[None, :, None]) & ((1 << WIDTH) - 1)
    return tl.reshape(numbers, (DEPTH, TILE_N))


@triton.jit(do_not_specialize=["m"])
def _product(
    a_ptr,
    words_ptr,
    scales_ptr,
    a_scales_ptr,
    out_ptr,
    m,
    n,
    k,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    A8: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_m = tl.cdiv(m, TILE_M)
    row = (tl.program_id(0) % tiles_m) * TILE_M + tl.arange(0, TILE_M)
    column = (tl.program_id(0) // tiles_m) * TILE_N + tl.arange(0, TILE_N)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    row_ok = row < m
    column_ok = column < n
    depth = tl.arange(0, TILE_K)
    part = tl.cdiv(k // TILE_K, splits) * TILE_K
    first = split * part
    last = tl.minimum(first + part, k)
    a_at = a_ptr + row[:, None].to(tl.int64) * k + depth[None, :]
    kind: tl.constexpr = a_ptr.dtype.element_ty
    fits: tl.constexpr = kind == tl.float16 or (kind == tl.bfloat16 and BITS < 8)
    middle: tl.constexpr = 1 << (BITS - 1)
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(first, last, TILE_K):
        a = tl.load(a_at + start, mask=row_ok[:, None], other=0)
        b = tl.zeros((TILE_K, TILE_N), tl.int32)
        if BITS == 8:
            b += _field(words_ptr, start // 32, column, column_ok, n, 8, 0, BITS, TILE_K, TILE_N)
        if BITS & 4:
            b += _field(words_ptr, start // 32, column, column_ok, n, 4, 0, BITS, TILE_K, TILE_N)
        if BITS & 2:
            high = _field(
                words_ptr, start // 32, column, column_ok, n, 2, BITS & 4, BITS, TILE_K, TILE_N
            )
            b += high << (BITS & 4)
        if BITS & 1:
            top = _field(
                words_ptr, start // 32, column, column_ok, n, 1, BITS & 6, BITS, TILE_K, TILE_N
            )
            b += top << (BITS & 6)
        scale = tl.load(scales_ptr + (start // GROUP) * n + column, mask=column_ok, other=0.0)
        if A8:
            whole = tl.dot(a, (b - middle).to(tl.int8), out_dtype=tl.int32).to(tl.float32)
        elif fits:
            weights = small_number(b, kind) - (base_of(kind) + middle)
            whole = tl.dot(a, weights.to(kind), input_precision=PRECISION)
        else:
            whole = tl.dot(a, (b - middle).to(kind), input_precision=PRECISION)
        acc += whole * scale.to(tl.float32)[None, :]
    if A8:
        acc *= tl.load(a_scales_ptr + row, mask=row_ok, other=0.0)[:, None]
    place = (split * m + row).to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out_ptr + place, acc, mask=row_ok[:, None] & column_ok[None, :])


@triton.jit(do_not_specialize=["splits"])
def _sum_splits(parts_ptr, out_ptr, size, splits, TILE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    ok = at < size
    total = tl.zeros((TILE,), tl.float32)
    for split in range(0, splits):
        total += tl.load(parts_ptr + split * size + at, mask=ok, other=0.0)
    tl.store(out_ptr + at, total, mask=ok)


def tiles_for(device: Any, m: int, n: int, k: int, item_bytes: int = 2) -> Tiles:
    """Return the cut: split-K up to m = 256, so that every multiprocessor reads weights.

    H100, w4, 14336 x 4096: m = 16 by four parts of k 34 us, by two 38; m = 64 by 128 columns 42,
    by 64 48.
    """
    capability = capability_of(device)
    if m > 256:
        return Tiles(128, 128, 64, 1, 8, 3 if capability >= 80 else 1)
    tile_m = min(64, max(16, power_of_two(m)))
    hopper = capability in (90, 100) and item_bytes <= 2
    tile_n = 32 if capability < 80 else 128 if hopper and m > 16 else 64
    programs = -(-m // tile_m) * -(-n // tile_n)
    waves = 6 if hopper and m <= 16 else 2
    wanted = round(waves * multiprocessors_of(device) / programs)
    splits = max(1, min(16, wanted, k // (4 * GROUP)))
    return Tiles(tile_m, tile_n, GROUP, splits, 4, 3 if capability >= 80 else 1)


def pack_weights(levels: Any, bits: int, *, a8: bool = False) -> Any:
    """Return packed weights.

    Parameters
    ----------
    levels : Tensor (n, k), integers
        From 0 to 2^bits - 1; ``level - 2^(bits - 1)`` is multiplied by the scale.
    bits : int
        2 to 8.
    a8 : bool
        Whether activations will be int8, for which 4-bit weights are packed as other widths are.

    Returns
    -------
    Tensor (k / 32, bits, n), int32
    """
    if bits == 4 and not a8:
        return pack_four(levels)
    n, k = levels.shape
    blocks = levels.to(torch.int64).T.reshape(k // 32, 32, n)
    words = []
    shifted = 0
    for width in (8, 4, 2, 1):
        if not (bits == 8 if width == 8 else bits < 8 and bits & width):
            continue
        field = (blocks >> shifted) & ((1 << width) - 1)
        parts = field.reshape(k // 32, width, 32 // width, n)
        at = torch.arange(32 // width, device=levels.device)[None, None, :, None] * width
        words.append((parts << at).sum(2))
        shifted += width
    whole = torch.cat(words, 1)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)


def wna16_gemm(
    a: Any,
    words: Any,
    scales: Any,
    *,
    a_scales: Any = None,
    dtype: Any = None,
    tiles: Tiles | None = None,
) -> Any:
    """Multiply activations by packed weights.

    Parameters
    ----------
    a : Tensor (m, k)
        16-bit (or fp32) numbers, or int8 together with `a_scales`; k is a multiple of 128.
    words : Tensor (k / 32, bits, n), int32
        From `pack_weights`.
    scales : Tensor (k / 128, n)
    a_scales : Tensor (m,) or None
        fp32 scales of int8 activations, one per token.
    dtype : torch.dtype or None
        Of the result; a's type if None.
    tiles : Tiles or None
        From `tiles_for` if None; `tiles.k` divides 128.

    Returns
    -------
    Tensor (m, n)
    """
    (m, k), (_, bits, n) = a.shape, words.shape
    four = bits == 4 and a_scales is None
    cut = tiles or (tiles_for_four if four else tiles_for)(a.device, m, n, k, a.element_size())
    out = torch.empty((m, n), dtype=dtype or a.dtype, device=a.device)
    parts = out
    if cut.splits > 1:
        parts = torch.empty((cut.splits, m, n), dtype=torch.float32, device=a.device)
    if four:
        launch_four(a, words, scales, parts, cut)
        return _joined(parts, out)
    _product[(-(-m // cut.m) * -(-n // cut.n), cut.splits)](
        a,
        words,
        scales,
        a if a_scales is None else a_scales,
        parts,
        m,
        n,
        k,
        BITS=bits,
        GROUP=GROUP,
        TILE_M=cut.m,
        TILE_N=cut.n,
        TILE_K=cut.k,
        A8=a_scales is not None,
        PRECISION=precision_of(a),
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return _joined(parts, out)


def _joined(parts: Any, out: Any) -> Any:
    """Return the sum of parts; they are the result itself where k was not split."""
    if parts is not out:
        tiles = -(-out.numel() // 1024)
        _sum_splits[(tiles,)](parts, out, out.numel(), parts.shape[0], 1024, num_warps=4)
    return out
