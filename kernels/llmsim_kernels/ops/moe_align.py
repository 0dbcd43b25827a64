"""Sorts the choices of a mixture of experts by expert, padded to blocks of one expert each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of


@triton.jit(do_not_specialize=["size"])
def _count(experts_ptr, counts_ptr, size, TILE: tl.constexpr):
    expert = tl.program_id(0)
    total = tl.zeros((TILE,), tl.int32)
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        chosen = tl.load(experts_ptr + at, mask=at < size, other=-1)
        total += (chosen == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(total, 0))


@triton.jit(do_not_specialize=["size"])
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
