"""Mixture of experts as grouped products: tokens sorted by expert, blocks of one expert each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of, precision_of
from llmsim_kernels.ops.moe_align import Aligned, align

KERNEL_ID = "triton.fused_moe.v1"


@triton.jit(do_not_specialize=["size"])
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
    TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # a few blocks go through the columns together: what they share of the weights is in L2
    tiles_n = tl.cdiv(n, TILE_N)
    blocks = tl.num_programs(0) // tiles_n
    first = tl.program_id(0) // (TOGETHER * tiles_n) * TOGETHER
    together = tl.minimum(blocks - first, TOGETHER)
    within = tl.program_id(0) - first * tiles_n
    block = first + within % together
    expert = tl.load(block_expert_ptr + block).to(tl.int64)
    if expert < 0:
        return
    row = tl.load(sorted_ptr + block * TILE_M + tl.arange(0, TILE_M))
    row_ok = row < size
    column = (within // together) * TILE_N + tl.arange(0, TILE_N)
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
    together : int
        Blocks of tokens that go through the weights side by side.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    together: int = 8


def tiles_for(device: Any, tokens: int, topk: int, experts: int, item_bytes: int = 2) -> Tiles:
    """Return the cut, by the mean number of tokens that an expert gets and the size of numbers."""
    capability = capability_of(device)
    mean = tokens * topk / experts
    if capability == 0:
        return Tiles(16, 32, 32, 4, 1)
    # room in shared memory for deeper and wider tiles
    wide = capability in (90, 100) and item_bytes <= 2
    if mean <= 16:
        return Tiles(16, 128, 128, 4, 4) if wide else Tiles(16, 128, 64, 4, 3)
    if mean <= 256:
        return Tiles(64, 128, 64, 4, 3)
    return Tiles(128, 256, 64, 8, 4) if wide else Tiles(128, 128, 64, 8, 3)


def grouped_gemm(
    a: Any,
    w: Any,
    aligned: Aligned,
    topk: int,
    tiles: Tiles,
    routing: Any = None,
    partly: bool = False,
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
    partly : bool
        Some places have no expert here; their results are zero.

    Returns
    -------
    Tensor (places, n)
    """
    size, (_, n, k) = a.shape[0] * topk, w.shape
    make = torch.zeros if partly else torch.empty
    out = make((size, n), dtype=a.dtype, device=a.device)
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
        TOGETHER=tiles.together,
        PRECISION=precision_of(a),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out


def fused_moe(
    x: Any,
    gate_up: Any,
    down: Any,
    routing: Any,
    experts_of: Any,
    tiles: Tiles | None = None,
    of_experts: int = 0,
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
    of_experts : int
        Experts that there are where these are the first of them, and the others on other GPUs;
        choices of the others add nothing. 0: these are all.

    Returns
    -------
    Tensor (tokens, hidden)
    """
    (tokens, topk), experts, inter = experts_of.shape, gate_up.shape[0], down.shape[2]
    partly = of_experts > experts
    cut = tiles or tiles_for(x.device, tokens, topk, of_experts or experts, x.element_size())
    aligned = align(experts_of, experts, cut.m)
    both = grouped_gemm(x, gate_up, aligned, topk, cut, partly=partly)
    inner = torch.empty((tokens * topk, inter), dtype=x.dtype, device=x.device)
    _silu_mul[(tokens * topk, -(-inter // 1024))](both, inner, inter, 1024, num_warps=4)
    each = grouped_gemm(inner, down, aligned, 1, cut, routing.reshape(-1), partly)
    return each.view(tokens, topk, -1).sum(1)
