"""Narrows down, in a few passes over a row, the smallest logit that top k and top p keep.

The cut lies in an interval of fp32 patterns. A pass spreads the tokens of the interval over bins,
by value, and keeps for each bin how many there are, what they weigh, and the least and the
greatest pattern. Whoever comes next finds the bin with the cut and goes on between those two.
Weights are whole numbers (fixed point), so that sums do not depend on order: programs may add
with atomics, and a row's token depends neither on the rows beside it nor on how it is cut.
"""

from __future__ import annotations

import triton
import triton.language as tl

BINS = tl.constexpr(1024)
BLOCK = tl.constexpr(64)
"""Tokens; the k-th of a row is not below the least of the greatest of k of its blocks."""

FIELDS = tl.constexpr(8)
"""Numbers of a row's state: phase, least, most, above, goal, greatest pattern; two to spare."""

COUNT = tl.constexpr(0)  # looks for the k-th token
TOTAL = tl.constexpr(1)  # looks for the share p, and has to find first what the top k weigh
MASS = tl.constexpr(2)
FOUND = tl.constexpr(3)

_NONE = tl.constexpr(-2139095041)  # the pattern of minus infinity, in order
_ONE = tl.constexpr(1099511627776.0)  # 2^40: 2^20 tokens of this weight fit in 62 bits


@triton.jit
def logits_at(row_ptr, at, vocab):
    """Load logits, minus infinity beyond the vocabulary."""
    x = tl.load(row_ptr + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(x == 0.0, 0.0, x)  # zeros of both signs tie


@triton.jit
def order(x):
    """Return whole numbers in the order of fp32 numbers: negative patterns run backwards."""
    pattern = x.to(tl.int32, bitcast=True)
    return pattern ^ ((pattern >> 31) & 0x7FFFFFFF)


@triton.jit
def value(ordered):
    """Return the number whose order this is."""
    whole = ordered.to(tl.int32)
    return (whole ^ ((whole >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight(x, top, heat):
    """Return probabilities relative to the greatest logit, in units of 2^-40."""
    share = tl.where(x == top, 1.0, tl.exp((x - top) * heat))  # also where both are infinite
    return (share * _ONE).to(tl.int64)


@triton.jit
def _step(phase, low, high, above, p, top):
    """Go on to the next phase where only one pattern is left."""
    single = (phase < FOUND) & (low >= high)
    onward = single & (phase == COUNT) & (p < 1.0) & (low < top)
    phase = tl.where(single, tl.where(onward, TOTAL, FOUND), phase)
    return phase, tl.where(onward, top, high), tl.where(onward, 0, above)


@triton.jit
def _goal(total, p):
    """Return the least weight that is a share p of the total."""
    share = tl.ceil(p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    return tl.minimum(tl.maximum(share, 1), total)


@triton.jit
def _pick(phase, low, high, above, goal, p, counts_ptr, masses_ptr, least_ptr, most_ptr):
    """Return the interval of the bin in which the cut lies.

    The last bin is special: tokens below the others, of which only the weight is known.
    """
    bins = tl.arange(0, BINS)
    listed = bins < BINS - 1
    counts = tl.load(counts_ptr + bins).to(tl.int64)
    masses = tl.load(masses_ptr + bins)
    lowest = tl.min(tl.load(least_ptr + bins), 0).to(tl.int64)
    goal = tl.where(phase == TOTAL, _goal(tl.sum(masses, 0), p), goal)
    sizes = tl.where(listed, tl.where(phase == COUNT, counts, masses), 0)
    short = listed & (above + tl.cumsum(sizes, 0) < goal)
    bin = tl.sum(short.to(tl.int32), 0)
    above += tl.sum(tl.where(short, sizes, 0), 0)
    inside = tl.sum(tl.where(bins == bin, sizes, 0), 0)
    rest = bin == BINS - 1
    low = tl.where(rest, low, tl.load(least_ptr + bin).to(tl.int64))
    high = tl.where(rest, tl.minimum(high, lowest - 1), tl.load(most_ptr + bin).to(tl.int64))
    # all of the bin are among the k
    high = tl.where((phase == COUNT) & (above + inside == goal) & (rest == 0), low, high)
    return tl.where(phase == TOTAL, MASS, phase), low, high, above, goal


@triton.jit
def resume(state_ptr, p, counts_ptr, masses_ptr, least_ptr, most_ptr, row, rows, turn):
    """Return a row's state after the pass before a turn, and its greatest pattern."""
    before = (turn - 1) * rows + row
    from_ptr = state_ptr + before * FIELDS
    phase = tl.load(from_ptr).to(tl.int32)
    low = tl.load(from_ptr + 1)
    high = tl.load(from_ptr + 2)
    above = tl.load(from_ptr + 3)
    goal = tl.load(from_ptr + 4)
    top = tl.load(from_ptr + 5)
    if phase < FOUND:
        at = before * BINS
        counts, masses = counts_ptr + at, masses_ptr + at
        phase, low, high, above, goal = _pick(
            phase, low, high, above, goal, p, counts, masses, least_ptr + at, most_ptr + at
        )
        phase, high, above = _step(phase, low, high, above, p, top)
    return phase, low, high, above, goal, top


@triton.jit
def keep(state_ptr, row, rows, turn, phase, low, high, above, goal, top):
    """Write a row's state at a turn."""
    to_ptr = state_ptr + (turn * rows + row) * FIELDS
    tl.store(to_ptr, phase.to(tl.int64))
    tl.store(to_ptr + 1, low)
    tl.store(to_ptr + 2, high)
    tl.store(to_ptr + 3, above)
    tl.store(to_ptr + 4, goal)
    tl.store(to_ptr + 5, top)


@triton.jit(do_not_specialize=["rows", "turn"])
def spread(
    logits_ptr,
    k_ptr,
    p_ptr,
    temperature_ptr,
    ends_ptr,
    state_ptr,
    counts_ptr,
    masses_ptr,
    least_ptr,
    most_ptr,
    vocab,
    stride,
    rows,
    chunks,
    turn,
    FIRST: tl.constexpr,
    CHUNK: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Spread the tokens that the cut may be among over bins, of one chunk of one row."""
    row = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    p = tl.load(p_ptr + row)
    temperature = tl.load(temperature_ptr + row)
    each = tl.arange(0, PADDED)
    ends = ends_ptr + row * chunks + each
    smallest = tl.load(ends + rows * chunks, mask=each < chunks, other=float("inf"))
    smallest = tl.min(smallest, 0)
    # the bins end here: no token below can be the cut, unless rounding says so
    fence = smallest
    if FIRST:
        greatest = tl.load(ends, mask=each < chunks, other=float("-inf"))
        top = order(tl.max(greatest, 0)).to(tl.int64)
        k = tl.load(k_ptr + row)
        k = tl.where((k > 0) & (k < vocab), k, vocab)
        low = tl.full((), _NONE, tl.int64)
        high = tl.where(k < vocab, top, low)
        above = low * 0
        goal = k.to(tl.int64)
        phase, high, above = _step(tl.full((), COUNT, tl.int32), low, high, above, p, top)
        # k chunks, or k blocks, have k tokens that are not below the least of their maxima
        floor = tl.load(ends + 2 * rows * chunks, mask=each < chunks, other=float("inf"))
        floor = tl.where(k <= chunks, tl.where(each < chunks, greatest, float("inf")), floor)
        floored = (phase == COUNT) & (k <= (vocab + BLOCK - 1) // BLOCK)
        fence = tl.where(floored, tl.maximum(fence, tl.min(floor, 0)), fence)
    else:
        phase, low, high, above, goal, top = resume(
            state_ptr, p, counts_ptr, masses_ptr, least_ptr, most_ptr, row, rows, turn
        )
        # only masked tokens are left: fewer than k are not
        high = tl.where(high < order(smallest).to(tl.int64), low, high)
        phase, high, above = _step(phase, low, high, above, p, top)
    if chunk == 0:
        keep(state_ptr, row, rows, turn, phase, low, high, above, goal, top)
    own = tl.load(ends_ptr + row * chunks + chunk)
    if (phase < FOUND) & (order(own).to(tl.int64) >= low):
        # all tokens below weigh less than 1 - p
        share = tl.maximum(1.0 - p, 5.9604645e-8) / vocab  # 2^-24: the smallest above zero
        tail = value(top) + temperature * tl.log(share)
        fence = tl.where(phase == TOTAL, tl.maximum(fence, tail), fence)
        start = value(high)
        end = tl.minimum(tl.maximum(fence, value(low)), start)
        scale = 1.0 / tl.maximum(start - end, 1e-27) * (BINS - 2)
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = logits_at(logits_ptr + row * stride, at, vocab)
        here = order(x)
        inside = (at < vocab) & (here >= low.to(tl.int32)) & (here <= high.to(tl.int32))
        place = tl.minimum((start - x) * scale, BINS - 1.0).to(tl.int32)
        place = tl.where(x == start, 0, tl.minimum(tl.maximum(place, 0), BINS - 1))
        listed = inside & (place < BINS - 1)
        slot = (turn * rows + row) * BINS
        tl.atomic_add(counts_ptr + slot + place, 1, mask=listed, sem="relaxed")
        tl.atomic_min(least_ptr + slot + place, here, mask=listed, sem="relaxed")
        tl.atomic_max(most_ptr + slot + place, here, mask=listed, sem="relaxed")
        if phase > COUNT:
            mass = tl.where(inside, weight(x, value(top), 1.0 / temperature), 0)
            tl.atomic_add(masses_ptr + slot + place, mass, mask=listed & (mass > 0), sem="relaxed")
            unlisted = tl.sum(tl.where(listed, 0, mass), 0)
            tl.atomic_add(masses_ptr + slot + BINS - 1, unlisted, sem="relaxed")


@triton.jit
def settle(phase, low, high, goal, p, top, row_ptr, vocab, heat, TILE: tl.constexpr):
    """Return the cut, by halving the interval over and over: for what no pass could tell apart."""
    above = goal * 0
    while phase < FOUND:
        middle = tl.where(phase == TOTAL, low, low + (high - low + 1) // 2)
        sizes = tl.zeros((TILE,), tl.int64)
        least = tl.full((TILE,), 2147483647, tl.int32)
        most = tl.full((TILE,), -2147483648, tl.int32)
        for start in range(0, vocab, TILE):
            at = start + tl.arange(0, TILE)
            x = logits_at(row_ptr, at, vocab)
            here = order(x)
            valid = (at < vocab) & (here <= top.to(tl.int32))
            inside = valid & (here >= middle.to(tl.int32))
            sizes += tl.where(inside, tl.where(phase == COUNT, 1, weight(x, value(top), heat)), 0)
            least = tl.where(inside, tl.minimum(least, here), least)
            most = tl.where(valid & (inside == 0), tl.maximum(most, here), most)
        size = tl.sum(sizes, 0)
        goal = tl.where(phase == TOTAL, _goal(size, p), goal)
        enough = size >= goal
        # of the two halves, only what lies between tokens that are there
        low = tl.where(enough, tl.min(least, 0).to(tl.int64), low)
        high = tl.where(enough, high, tl.max(most, 0).to(tl.int64))
        phase = tl.where(phase == TOTAL, MASS, phase)
        phase, high, above = _step(phase, low, high, above, p, top)
    return low
