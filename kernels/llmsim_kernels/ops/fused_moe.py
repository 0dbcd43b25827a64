"""Mixture of experts as grouped products: tokens sorted by expert, blocks of one expert each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of
from llmsim_kernels.ops.paged_decode import precision_of

KERNEL_ID = "triton.fused_moe.v1"


@triton.jit
def _count(experts_ptr, counts_ptr, size, TILE: tl.constexpr):
    expert = tl.program_id(0)
    total = tl.zeros((TILE,), tl.int32)
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        chosen = tl.load(experts_ptr + at, mask=at < size, other=-1)
        total += (chosen == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(total, 0))


@triton.jit
def _sort(
    experts_ptr,
    counts_ptr,
    sorted_ptr,
    block_expert_ptr,
    size,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    expert = tl.program_id(0)
    each = tl.arange(0, PADDED)
    counts = tl.load(counts_ptr + each, mask=each < EXPERTS, other=0)
    blocks = (counts + BLOCK - 1) // BLOCK
    before = tl.sum(tl.where(each < expert, blocks, 0), 0)
    own = tl.sum(tl.where(each == expert, blocks, 0), 0)
    for block in range(before, before + own):
        tl.store(block_expert_ptr + block, expert)
    place = before * BLOCK
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        mine = tl.load(experts_ptr + at, mask=at < size, other=-1) == expert
        rank = tl.cumsum(mine.to(tl.int32), 0)
        tl.store(sorted_ptr + place + rank - 1, at, mask=mine)
        place += tl.max(rank, 0)


@triton.jit
def _product(
    a_ptr,
    w_ptr,
    sorted_ptr,
    block_expert_ptr,
    routing_ptr,
    out_ptr,
    size,
    n,
    k,
    TOPK: tl.constexpr,
    WEIGHTED: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_n = tl.cdiv(n, TILE_N)
    block = tl.program_id(0) // tiles_n
    expert = tl.load(block_expert_ptr + block).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(sorted_ptr + block * TILE_M + tl.arange(0, TILE_M))
    row_ok = row < size
    column = (tl.program_id(0) % tiles_n) * TILE_N + tl.arange(0, TILE_N)
    column_ok = column < n
    depth = tl.arange(0, TILE_K)
    a_at = a_ptr + (row // TOPK).to(tl.int64)[:, None] * k + depth[None, :]
    w_at = w_ptr + expert * n * k + column[None, :].to(tl.int64) * k + depth[:, None]
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, k, TILE_K):
        inside = start + depth < k
        a = tl.load(a_at + start, mask=row_ok[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_at + start, mask=inside[:, None] & column_ok[None, :], other=0.0)
        acc += tl.dot(a, w, input_precision=PRECISION)
    if WEIGHTED:
        acc *= tl.load(routing_ptr + row, mask=row_ok, other=0.0).to(tl.float32)[:, None]
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(out_ptr + place, acc, mask=row_ok[:, None] & column_ok[None, :])


@triton.jit
def _silu_mul(x_ptr, out_ptr, width, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    ok = at < width
    gate = tl.load(x_ptr + row * 2 * width + at, mask=ok, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + at, gate * up / (1.0 + tl.exp(-gate)), mask=ok)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How grouped products are cut.

    Parameters
    ----------
    m, n, k : int
        Of a tile; m tokens of one expert, 16, 64 or 128.
    warps, stages : int
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int


def tiles_for(device: Any, tokens: int, topk: int, experts: int) -> Tiles:
    """Return the cut, by the mean number of tokens that an expert gets."""
    capability = capability_of(device)
    mean = tokens * topk / experts
    if capability == 0:
        return Tiles(16, 32, 32, 4, 1)
    if mean <= 16:
        return Tiles(16, 128, 64, 4, 3)
    if mean <= 256:
        return Tiles(64, 128, 64, 4, 3)
    return Tiles(128, 128, 64, 8, 3)


@dataclass(frozen=True, slots=True)
class Aligned:
    """Token places sorted by expert, every expert's padded to whole blocks.

    Parameters
    ----------
    places : Tensor (blocks * block,), int32
        ``token * topk + choice``; a place beyond the last one is padding.
    block_expert : Tensor (blocks,), int32
        Expert of each block; -1 for a block that nobody needed.
    block : int
    """

    places: Any
    block_expert: Any
    block: int


def align(experts_of: Any, experts: int, block: int) -> Aligned:
    """Sort the choices of all tokens by expert, in order within an expert; no host waits.

    Parameters
    ----------
    experts_of : Tensor (tokens, topk), int32
    experts : int
    block : int
        Choices in a block.
    """
    size = experts_of.numel()
    blocks = min(size, experts) + max(0, size - experts) // block  # most that rounding up can need
    device = experts_of.device
    counts = torch.empty(experts, dtype=torch.int32, device=device)
    places = torch.full((blocks * block,), size, dtype=torch.int32, device=device)
    block_expert = torch.full((blocks,), -1, dtype=torch.int32, device=device)
    padded = 1 << (experts - 1).bit_length()
    tile = 1024 if capability_of(device) else 256
    _count[(experts,)](experts_of, counts, size, tile, num_warps=4)
    _sort[(experts,)](
        experts_of, counts, places, block_expert, size, experts, padded, block, tile, num_warps=4
    )
    return Aligned(places, block_expert, block)


def grouped_gemm(
    a: Any, w: Any, aligned: Aligned, topk: int, tiles: Tiles, routing: Any = None
) -> Any:
    """Multiply every place's row by the weights of its expert.

    Parameters
    ----------
    a : Tensor (places / topk, k)
        Row ``place // topk`` is taken.
    w : Tensor (experts, n, k)
    aligned : Aligned
    topk : int
    tiles : Tiles
    routing : Tensor (places,) or None
        Factors of the results.

    Returns
    -------
    Tensor (places, n)
    """
    size, (_, n, k) = a.shape[0] * topk, w.shape
    out = torch.empty((size, n), dtype=a.dtype, device=a.device)
    blocks = aligned.block_expert.shape[0]
    _product[(blocks * -(-n // tiles.n),)](
        a,
        w,
        aligned.places,
        aligned.block_expert,
        a if routing is None else routing,
        out,
        size,
        n,
        k,
        TOPK=topk,
        WEIGHTED=routing is not None,
        TILE_M=tiles.m,
        TILE_N=tiles.n,
        TILE_K=tiles.k,
        PRECISION=precision_of(a),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


def fused_moe(
    x: Any, gate_up: Any, down: Any, routing: Any, experts_of: Any, tiles: Tiles | None = None
) -> Any:
    """Run the chosen experts of every token and add them up.

    Parameters
    ----------
    x : Tensor (tokens, hidden)
    gate_up : Tensor (experts, 2 * inter, hidden)
    down : Tensor (experts, hidden, inter)
    routing : Tensor (tokens, topk), fp32
    experts_of : Tensor (tokens, topk), int32
    tiles : Tiles or None
        From `tiles_for` if None.

    Returns
    -------
    Tensor (tokens, hidden)
    """
    (tokens, topk), experts, inter = experts_of.shape, gate_up.shape[0], down.shape[2]
    cut = tiles or tiles_for(x.device, tokens, topk, experts)
    aligned = align(experts_of, experts, cut.m)
    both = grouped_gemm(x, gate_up, aligned, topk, cut)
    inner = torch.empty((tokens * topk, inter), dtype=x.dtype, device=x.device)
    _silu_mul[(tokens * topk, -(-inter // 1024))](both, inner, inter, 1024, num_warps=4)
    each = grouped_gemm(inner, down, aligned, 1, cut, routing.reshape(-1))
    return each.view(tokens, topk, -1).sum(1)
