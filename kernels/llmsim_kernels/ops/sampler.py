"""Draws the next token from the top k and top p of each row, without sorting.

A row is cut into chunks, a program each. Both limits become one threshold on the logits, which a
few passes over bins find (`sampler_cut`); then chunks weigh the tokens they keep, and one program
walks the chunks, and the tokens of one of them, until they weigh more than the row's uniform draw.
Chunks whose greatest logit is below the cut are not read again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of, multiprocessors_of, power_of_two
from llmsim_kernels.ops.sampler_cut import (
    BINS,
    BLOCK,
    FIELDS,
    keep,
    logits_at,
    order,
    resume,
    settle,
    spread,
    value,
    weight,
)

KERNEL_ID = "triton.sampler.v2"

TURNS = 5
"""Passes that narrow the cut down; what they leave open is halved on, exactly but slowly."""


@triton.jit(do_not_specialize=["rows", "turns"])
def _survey(
    logits_ptr,
    ends_ptr,
    counts_ptr,
    masses_ptr,
    least_ptr,
    most_ptr,
    vocab,
    stride,
    rows,
    chunks,
    turns,
    CHUNK: tl.constexpr,
):
    """Find a chunk's greatest logit, its smallest finite one, and the least maximum of its blocks.

    Empties the row's bins as well.
    """
    row = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = logits_at(logits_ptr + row * stride, at, vocab)
    end = ends_ptr + row * chunks + chunk
    tl.store(end, tl.max(x, 0))
    tl.store(end + rows * chunks, tl.min(tl.where(x > float("-inf"), x, float("inf")), 0))
    blocks = tl.max(tl.reshape(x, (CHUNK // BLOCK, BLOCK)), 1)
    starts = chunk * CHUNK + tl.arange(0, CHUNK // BLOCK) * BLOCK
    tl.store(end + 2 * rows * chunks, tl.min(tl.where(starts < vocab, blocks, float("inf")), 0))
    bins = tl.arange(0, BINS)
    for turn in range(chunk, turns, chunks):
        slot = (turn * rows + row) * BINS + bins
        tl.store(counts_ptr + slot, tl.zeros((BINS,), tl.int32))
        tl.store(masses_ptr + slot, tl.zeros((BINS,), tl.int64))
        tl.store(least_ptr + slot, tl.full((BINS,), 2147483647, tl.int32))
        tl.store(most_ptr + slot, tl.full((BINS,), -2147483648, tl.int32))


@triton.jit(do_not_specialize=["rows", "turns"])
def _weigh(
    logits_ptr,
    p_ptr,
    temperature_ptr,
    ends_ptr,
    state_ptr,
    counts_ptr,
    masses_ptr,
    least_ptr,
    most_ptr,
    kept_ptr,
    vocab,
    stride,
    rows,
    chunks,
    turns,
    CHUNK: tl.constexpr,
):
    """Write what the kept tokens of a chunk weigh, and the cut."""
    row = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    row_ptr = logits_ptr + row * stride
    p = tl.load(p_ptr + row)
    heat = 1.0 / tl.load(temperature_ptr + row)
    phase, low, high, above, goal, top = resume(
        state_ptr, p, counts_ptr, masses_ptr, least_ptr, most_ptr, row, rows, turns
    )
    # every chunk does this by itself: it is rare, and one launch less for all others
    low = settle(phase, low, high, goal, p, top, row_ptr, vocab, heat, CHUNK)
    if chunk == 0:
        keep(state_ptr, row, rows, turns, phase, low, low, above, goal, top)
    own = tl.load(ends_ptr + row * chunks + chunk)
    kept = low * 0
    if order(own).to(tl.int64) >= low:
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = logits_at(row_ptr, at, vocab)
        here = order(x)
        inside = (at < vocab) & (here >= low.to(tl.int32)) & (here <= top.to(tl.int32))
        kept = tl.sum(tl.where(inside, weight(x, value(top), heat), 0), 0)
    tl.store(kept_ptr + row * chunks + chunk, kept)


@triton.jit(do_not_specialize=["rows", "turns"])
def _walk(
    logits_ptr,
    temperature_ptr,
    uniform_ptr,
    state_ptr,
    kept_ptr,
    out_ptr,
    vocab,
    stride,
    rows,
    chunks,
    turns,
    CHUNK: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Find the chunk, and in it the token, at which the kept weight passes the draw."""
    row = tl.program_id(0).to(tl.int64)
    heat = 1.0 / tl.load(temperature_ptr + row)
    state = state_ptr + (turns * rows + row) * FIELDS
    low = tl.load(state + 1).to(tl.int32)
    top = tl.load(state + 5).to(tl.int32)
    each = tl.arange(0, PADDED)
    kept = tl.load(kept_ptr + row * chunks + each, mask=each < chunks, other=0)
    total = tl.sum(kept, 0)
    draw = tl.load(uniform_ptr + row).to(tl.float64) * total.to(tl.float64)
    target = tl.minimum(draw.to(tl.int64), total - 1)
    short = tl.cumsum(kept, 0) <= target
    chunk = tl.minimum(tl.sum((short & (each < chunks)).to(tl.int32), 0), chunks - 1)
    before = tl.sum(tl.where(each < chunk, kept, 0), 0)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    x = logits_at(logits_ptr + row * stride, at, vocab)
    inside = (at < vocab) & (order(x) >= low) & (order(x) <= top)
    running = before + tl.cumsum(tl.where(inside, weight(x, value(top), heat), 0), 0)
    tl.store(out_ptr + row, tl.min(tl.where(inside & (running > target), at, vocab - 1), 0))


def sample(logits: Any, top_k: Any, top_p: Any, temperature: Any, uniform: Any) -> Any:
    """Draw one token per row.

    Parameters
    ----------
    logits : Tensor (rows, vocab)
    top_k : Tensor (rows,), int32
        Tokens to keep; 0 for all. Tokens that tie with the last one are kept as well.
    top_p : Tensor (rows,), fp32
        The likeliest of them are kept until their share of the top k reaches this; 1 for all.
    temperature : Tensor (rows,), fp32
        Above zero.
    uniform : Tensor (rows,), fp32
        Draws from [0, 1).

    Returns
    -------
    Tensor (rows,), int32

    Notes
    -----
    Weights are multiples of 2^-40 of the likeliest token's: what weighs less is never drawn, and
    is left out of a top p below 1. The host waits for nothing, and the launches are always the
    same, so that a CUDA graph can hold them.
    """
    rows, vocab = logits.shape
    device = logits.device
    chunk = _chunk_for(device, rows, vocab)
    chunks = -(-vocab // chunk)
    padded = power_of_two(chunks)
    ends = torch.empty((3, rows, chunks), dtype=torch.float32, device=device)
    kept = torch.empty((rows, chunks), dtype=torch.int64, device=device)
    state = torch.empty((TURNS + 1, rows, FIELDS.value), dtype=torch.int64, device=device)
    masses = torch.empty((TURNS, rows, BINS.value), dtype=torch.int64, device=device)
    listed = torch.empty((3, TURNS, rows, BINS.value), dtype=torch.int32, device=device)
    counts, least, most = listed.unbind()
    out = torch.empty((rows,), dtype=torch.int32, device=device)
    bins = (counts, masses, least, most)
    sizes = (vocab, logits.stride(0), rows, chunks)
    # waiting is most of what these programs do: registers for more of them at a time
    how = {"num_warps": max(4, chunk // 256), "maxnreg": 64}
    limits = (top_k, top_p, temperature)
    grid = (chunks, rows)
    _survey[grid](logits, ends, *bins, *sizes, TURNS, chunk, **how)
    for turn in range(TURNS):
        cut = (turn, turn == 0, chunk, padded)
        spread[grid](logits, *limits, ends, state, *bins, *sizes, *cut, **how)
    drawn = (logits, top_p, temperature, ends, state)
    _weigh[grid](*drawn, *bins, kept, *sizes, TURNS, chunk, **how)
    walked = (logits, temperature, uniform, state, kept, out)
    _walk[(rows,)](*walked, *sizes, TURNS, chunk, padded, **how)
    return out


def _chunk_for(device: Any, rows: int, vocab: int) -> int:
    """Return the tokens of a chunk: short where few rows leave multiprocessors idle."""
    if not capability_of(device):
        return 256
    return 1024 if rows * vocab <= 4096 * multiprocessors_of(device) else 2048
