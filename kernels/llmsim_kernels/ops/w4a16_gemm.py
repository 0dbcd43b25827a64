"""Products of 16-bit activations and 4-bit weights, transposed: weights are the left operand.

Hopper's tensor cores take their left operand from registers and the right one from shared memory
alone, so weights that are turned into numbers in registers go straight into the product. Two
weights are turned by three instructions and a shift: their levels are put into the mantissas of
128 (bf16) or 1024 (fp16), and that and the middle are taken off again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of, multiprocessors_of, power_of_two, precision_of

GROUP = 128
BLOCK = 64
"""Weights of one column that lie together: 8 words."""


@triton.jit
def _in_mantissas(words, kind: tl.constexpr, ASM: tl.constexpr):
    """Return bits 0 to 3 and 16 to 19 of words as two numbers: the base of kind plus a level.

    Written out, as one instruction with two constants is not what compilers make of it.
    """
    if ASM and kind == tl.bfloat16:
        both = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, 0x000f000f, 0x43004300, 0xEA;",
            "=r,r",
            [words],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    elif ASM:
        both = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, 0x000f000f, 0x64006400, 0xEA;",
            "=r,r",
            [words],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        both = (words & 0x000F000F) | (0x43004300 if kind == tl.bfloat16 else 0x64006400)
    return both


@triton.jit
def _two(words, kind: tl.constexpr, ASM: tl.constexpr):
    """Return (..., 2) weights, of bits 0 to 3 and 16 to 19 of each word: -8 to 7."""
    if kind == tl.float32:
        first, second = ((words & 15) - 8).to(kind), (((words >> 16) & 15) - 8).to(kind)
    else:
        middle: tl.constexpr = 136.0 if kind == tl.bfloat16 else 1032.0
        both = _in_mantissas(words, kind, ASM)
        first = both.to(tl.int16).to(kind, bitcast=True) - middle
        second = (both >> 16).to(tl.int16).to(kind, bitcast=True) - middle
    return tl.join(first, second)


@triton.jit
def _weights(
    words, kind: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, ASM: tl.constexpr
):
    """Return (TILE_N, TILE_K) weights of (TILE_N, TILE_K / 8) words; see `pack_four`."""
    low = tl.join(_two(words, kind, ASM), _two(words >> 4, kind, ASM))
    high = tl.join(_two(words >> 8, kind, ASM), _two(words >> 12, kind, ASM))
    parts = tl.reshape(tl.join(low, high), (TILE_N, TILE_K // 64, 4, 2, 2, 2, 2))
    return tl.reshape(tl.permute(parts, (0, 1, 3, 6, 5, 2, 4)), (TILE_N, TILE_K))


@triton.jit
def _scale_pairs(pairs, kind: tl.constexpr, TILE_N: tl.constexpr):
    """Return TILE_N scales that were loaded two by two."""
    first = pairs.to(tl.int16).to(kind, bitcast=True)
    second = (pairs >> 16).to(tl.int16).to(kind, bitcast=True)
    return tl.reshape(tl.join(first, second), (TILE_N,))


@triton.jit(do_not_specialize=["m"])
def _transposed_product(
    a_ptr,
    words_ptr,
    scales_ptr,
    out_ptr,
    m,
    n,
    k,
    GROUP: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    EARLY: tl.constexpr,
    PAIRS: tl.constexpr,
    ASM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_m = tl.cdiv(m, TILE_M)
    row = (tl.program_id(0) % tiles_m) * TILE_M + tl.arange(0, TILE_M)
    begin = (tl.program_id(0) // tiles_m) * TILE_N
    column = begin + tl.arange(0, TILE_N)
    split = tl.program_id(1)
    part = tl.cdiv(k // TILE_K, tl.num_programs(1)) * TILE_K
    first = split * part
    last = tl.minimum(first + part, k)
    kind: tl.constexpr = a_ptr.dtype.element_ty
    # rows and columns beyond the last are read as the last, which needs no masks, and not written
    row_in = tl.minimum(row, m - 1).to(tl.int64)
    column_in = tl.minimum(column, n - 1)
    word = tl.arange(0, TILE_K // 8)
    a_at = a_ptr + first + row_in[:, None] * k + tl.arange(0, TILE_K)[None, :]
    words_at = words_ptr + (first // 64).to(tl.int64) * n * 8
    words_at = words_at + column_in[:, None] * 8 + (word // 8 * n * 8 + word % 8)[None, :]
    scales_at = scales_ptr + column_in
    acc = tl.zeros((TILE_N, TILE_M), tl.float32)
    if PAIRS:  # copied ahead of the product as 4 bytes are; 2 are not
        pair = tl.minimum(begin // 2 + tl.arange(0, TILE_N // 2), n // 2 - 1)
        pairs_at = scales_ptr.to(tl.pointer_type(tl.int32)) + pair
    if not EARLY:
        scale = tl.load(scales_at + (tl.minimum(first, k - 1) // GROUP) * n)
    for start in range(first, last, TILE_K):
        a = tl.trans(tl.load(a_at))
        words = tl.load(words_at)
        if EARLY:
            if PAIRS:
                pairs = tl.load(pairs_at + (start // GROUP) * (n // 2))
                scale = _scale_pairs(pairs, scales_ptr.dtype.element_ty, TILE_N)
            else:
                scale = tl.load(scales_at + (start // GROUP) * n)
            weights = _weights(words, kind, TILE_N, TILE_K, ASM) * scale.to(kind)[:, None]
            acc = tl.dot(weights, a, acc, input_precision=PRECISION)
        else:
            later = tl.load(scales_at + (tl.minimum(start + TILE_K, k - 1) // GROUP) * n)
            weights = _weights(words, kind, TILE_N, TILE_K, ASM)
            whole = tl.dot(weights, a, input_precision=PRECISION)
            acc += whole * scale.to(tl.float32)[:, None]
            scale = later
        a_at += TILE_K
        words_at += TILE_K // 8 * n
    place = (split * m + row).to(tl.int64)[None, :] * n + column[:, None]
    tl.store(out_ptr + place, acc, mask=(row < m)[None, :] & (column < n)[:, None])


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a launch is cut.

    Parameters
    ----------
    m, n, k : int
        Of a tile.
    splits : int
        Parts of k, each summed by a program of its own.
    warps, stages : int
    """

    m: int
    n: int
    k: int
    splits: int
    warps: int
    stages: int


def tiles_for_four(device: Any, m: int, n: int, k: int, item_bytes: int = 2) -> Tiles:
    """Return the cut for 4-bit weights: split-K until every multiprocessor has programs.

    H100, 14336 x 4096: 2,048 rows 326 us (128 x 128 x 64: 404), 256 rows 45 (54), 64 rows 24, 16
    rows 17 (by 64 columns and 128 of k 20).
    """
    capability = capability_of(device)
    stages = 3 if capability >= 80 else 1
    if item_bytes > 2:
        return Tiles(min(64, max(16, power_of_two(m))), 64, 64, 1, 4, min(stages, 2))
    hopper = capability in (90, 100)
    tile_m = min(256 if hopper and m > 128 else 128, max(16, power_of_two(m)))
    programs = -(-m // tile_m) * -(-n // 128)
    waves = 3.5 if m <= 16 else 2 if m <= 128 else 1
    wanted = 1 if m > 256 else round(waves * multiprocessors_of(device) / programs)
    splits = max(1, min(16, wanted, k // (4 * GROUP)))
    tile_k = GROUP if tile_m == 32 else BLOCK
    deep = hopper and m <= 64
    return Tiles(tile_m, 128, tile_k, splits, 8 if tile_m > 64 else 4, stages + deep)


def pack_four(levels: Any) -> Any:
    """Return packed weights of 4 bits, as the product takes them.

    Parameters
    ----------
    levels : Tensor (n, k), integers
        From 0 to 15; k is a multiple of 64.

    Returns
    -------
    Tensor (k / 32, 4, n), int32
        In fact (k / 64, n, 8): a thread of the tensor cores has numbers 2t, 2t + 1, 2t + 8 and
        2t + 9 of 16 along k. Its numbers of 32 are one word, those of 64 two in a row: word 2t + i
        of a block has numbers 32i + 16b + 8h + 2t + e, at bits 16e + 8b + 4h.
    """
    n, k = levels.shape
    blocks = levels.to(torch.int64).reshape(n, k // BLOCK, 2, 2, 2, 4, 2)  # .., i, b, h, t, e
    nibbles = blocks.permute(1, 0, 5, 2, 6, 3, 4).reshape(k // BLOCK, n, 8, 8)
    whole = (nibbles << torch.arange(8, device=levels.device) * 4).sum(3)
    words = torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)
    return words.reshape(k // 32, 4, n)


def launch_four(a: Any, words: Any, scales: Any, out: Any, cut: Tiles) -> None:
    """Multiply; see `llmsim_kernels.ops.wna16_gemm.wna16_gemm`.

    Parameters
    ----------
    a, words, scales : Tensor
    out : Tensor (splits, m, n) or (m, n)
        Is written.
    cut : Tiles
        From 64 rows of a tile on, weights are multiplied by their scales, rounded to a's type, and
        products of all groups add up in the tensor cores; below, a group's product is scaled.
    """
    (m, k), n = a.shape, words.shape[2]
    _transposed_product[(-(-m // cut.m) * -(-n // cut.n), cut.splits)](
        a,
        words,
        scales,
        out,
        m,
        n,
        k,
        GROUP=GROUP,
        TILE_M=cut.m,
        TILE_N=cut.n,
        TILE_K=cut.k,
        EARLY=cut.m >= 64 and a.element_size() == 2,
        PAIRS=scales.element_size() == 2 and n % 2 == 0,
        ASM=capability_of(a.device) >= 80,
        PRECISION=precision_of(a),
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
