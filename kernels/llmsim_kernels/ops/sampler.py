"""Draws the next token from the top k and top p of each row, without sorting.

Both limits become one threshold on the logits, found by halving the interval of fp32 patterns
that it may lie in; a last pass walks the kept tokens in order of their number until their summed
probability passes the row's uniform draw.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import capability_of

KERNEL_ID = "triton.sampler.v1"


@triton.jit
def _logits(row_ptr, start, vocab, TILE: tl.constexpr):
    at = start + tl.arange(0, TILE)
    return tl.load(row_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)


@triton.jit
def _order(x):
    """Return whole numbers in the order of fp32 numbers: negative patterns run backwards."""
    pattern = x.to(tl.int32, bitcast=True)
    return (pattern ^ ((pattern >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _above(row_ptr, vocab, least, top, heat, TILE: tl.constexpr):
    """Return how many tokens are not below a threshold, and their unnormalised probability."""
    count = tl.zeros((TILE,), tl.int32)
    mass = tl.zeros((TILE,), tl.float32)
    for start in range(0, vocab, TILE):
        x = _logits(row_ptr, start, vocab, TILE)
        kept = (_order(x) >= least) & (start + tl.arange(0, TILE) < vocab)
        count += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp((x - top) * heat), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _sample(
    logits_ptr, k_ptr, p_ptr, heat_ptr, uniform_ptr, out_ptr, vocab, stride, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride
    k = tl.load(k_ptr + row)
    k = tl.where((k > 0) & (k < vocab), k, vocab)
    p = tl.load(p_ptr + row)
    heat = 1.0 / tl.load(heat_ptr + row)
    lanes = tl.arange(0, TILE)

    greatest = tl.full((TILE,), float("-inf"), tl.float32)
    smallest = tl.full((TILE,), float("inf"), tl.float32)
    for start in range(0, vocab, TILE):
        x = _logits(row_ptr, start, vocab, TILE)
        greatest = tl.maximum(greatest, x)
        smallest = tl.minimum(smallest, tl.where(start + lanes < vocab, x, float("inf")))
    top = tl.max(greatest, 0)

    low = _order(tl.min(smallest, 0))
    high = _order(top) + 1
    count = vocab
    while (high - low > 1) & (count > k):
        middle = low + (high - low) // 2
        found, mass = _above(row_ptr, vocab, middle, top, heat, TILE)
        enough = found >= k
        low = tl.where(enough, middle, low)
        count = tl.where(enough, found, count)
        high = tl.where(enough, high, middle)

    count, total = _above(row_ptr, vocab, low, top, heat, TILE)
    high = tl.where(p < 1.0, _order(top) + 1, low + 1)
    fewer = 0
    kept = total
    while (high - low > 1) & (count - fewer > 1):
        middle = low + (high - low) // 2
        found, mass = _above(row_ptr, vocab, middle, top, heat, TILE)
        enough = mass >= p * total
        low = tl.where(enough, middle, low)
        count = tl.where(enough, found, count)
        kept = tl.where(enough, mass, kept)
        high = tl.where(enough, high, middle)
        fewer = tl.where(enough, fewer, found)

    target = tl.load(uniform_ptr + row) * kept
    passed = target * 0.0
    chosen = vocab
    latest = -1
    start = 0
    while (start < vocab) & (chosen == vocab):
        x = _logits(row_ptr, start, vocab, TILE)
        at = start + lanes
        inside = (_order(x) >= low) & (at < vocab)
        running = passed + tl.cumsum(tl.where(inside, tl.exp((x - top) * heat), 0.0), 0)
        chosen = tl.min(tl.where(inside & (running > target), at, vocab), 0)
        latest = tl.maximum(latest, tl.max(tl.where(inside, at, -1), 0))
        passed = tl.max(running, 0)
        start += TILE
    # rounding may leave the last kept token short of the target
    tl.store(out_ptr + row, tl.where(chosen < vocab, chosen, latest))


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
    """
    rows, vocab = logits.shape
    out = torch.empty((rows,), dtype=torch.int32, device=logits.device)
    tile = 4096 if capability_of(logits.device) else 1024
    _sample[(rows,)](
        logits,
        top_k,
        top_p,
        temperature,
        uniform,
        out,
        vocab,
        logits.stride(0),
        TILE=tile,
        num_warps=8,
    )
    return out
