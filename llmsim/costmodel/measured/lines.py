"""A rising curve as few straight pieces: how decode prices become `PriceLine`s."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmsim.costmodel.contract import FOREVER, PriceLine
from llmsim.costmodel.measured.means import Floats

MOST_PIECES = 64
TOLERANCE = 0.001
"""Largest relative error of a straight piece at the points it skips."""

LEAST_PART_TOKENS = 256
MOST_PARTS = 64
"""Of the kernel that cuts all contexts into as many parts, ``triton.paged_decode.v1``."""


@dataclass(frozen=True)
class Pieces:
    """A continuous function of the padded context sum, straight between its knots.

    Parameters
    ----------
    untils : list of int [tokens]
        Last sum of each piece; the last one never ends.
    bases, slopes : list of float [ns], [ns/token]
    error : float
        Largest relative error at the points that were skipped.
    """

    untils: list[int]
    bases: list[float]
    slopes: list[float]
    error: float

    def at(self, size: int) -> float:
        """Return the value at a sum [ns]."""
        index = bisect_left(self.untils, size)
        return self.bases[index] + self.slopes[index] * size


@dataclass(frozen=True)
class Tail:
    """What the longest context of a batch adds: its parts run on when the others have ended.

    Parameters
    ----------
    token_ns : float [ns/token]
        Pace of one part alone, all layers.
    slots : int
        Programs that the kernel wants in a launch.
    programs : int
        Programs of one part of one request.
    """

    token_ns: float
    slots: int
    programs: int

    def wanted(self, batch: int) -> int:
        """Return the parts of each context where contexts are long enough."""
        return min(MOST_PARTS, -(-self.slots // (self.programs * batch)))

    def parts(self, batch: int, longest: int) -> int:
        """Return the parts that each context of a batch is cut into.

        Parameters
        ----------
        batch : int [requests]
        longest : int [tokens]
        """
        return max(1, min(self.wanted(batch), longest // LEAST_PART_TOKENS))


def tail_of(
    tails: Sequence[Tail], batch: int, even_tokens: int, overhang_tokens: int
) -> tuple[float, int]:
    """Return what an overhang adds, and the largest even sum up to which it does.

    Parameters
    ----------
    tails : sequence of Tail
    batch : int [requests]
    even_tokens : int [tokens]
        Padded context sum without the overhang.
    overhang_tokens : int [tokens]

    Returns
    -------
    tuple of float [ns] and int [tokens]
    """
    longest = even_tokens // batch + overhang_tokens
    added = 0.0
    until = FOREVER
    for tail in tails:
        parts = tail.parts(batch, longest)
        added += tail.token_ns * overhang_tokens / parts
        if parts < tail.wanted(batch):
            next_cut = (parts + 1) * LEAST_PART_TOKENS - overhang_tokens
            until = min(until, batch * next_cut - 1)
    return added, until


Straight = tuple[float, float, int]
"""A line without host and window: base [ns], slope [ns/token], last padded sum [tokens]."""


def uneven_piece(
    pieces: Pieces, tails: Sequence[Tail], batch: int, padded_tokens: int, overhang_tokens: int
) -> Straight:
    """Return the GPU time of a batch whose longest context hangs over the others, as a line.

    Parameters
    ----------
    pieces : Pieces
        Of even batches, without the windowed part.
    tails : sequence of Tail
    batch : int [requests]
    padded_tokens : int [tokens]
    overhang_tokens : int [tokens]
        The longest context less the mean of the others. It stays while the requests stay, so
        that the line is as straight as that of an even batch.
    """
    even = padded_tokens - overhang_tokens
    index = bisect_left(pieces.untils, even)
    slope = pieces.slopes[index]
    tail, until = tail_of(tails, batch, even, overhang_tokens)
    until = min(until, pieces.untils[index])
    until = FOREVER if until >= FOREVER else until + overhang_tokens
    # one context alone is read no faster than all of them
    base = pieces.bases[index] + max(0.0, tail - slope * overhang_tokens)
    return base, slope, until


def with_host(
    gpu: Straight,
    padded_tokens: int,
    host_ns: tuple[float, float],
    windowed: tuple[float, int],
) -> PriceLine:
    """Return the line of a step: the longer of GPU and host at this sum, and until when.

    Parameters
    ----------
    gpu : Straight
    padded_tokens : int [tokens]
    host_ns : tuple of float [ns]
        Host work that adds, and that runs beside the GPU.
    windowed : tuple of float [ns/token] and int [tokens]
        Slope of the windowed part; clipped sum of contexts that fill the window.
    """
    added, beside = host_ns
    per_windowed, edge = windowed
    base, rise, until = gpu
    if base + rise * padded_tokens + per_windowed * min(padded_tokens, edge) > beside:
        return PriceLine(added + base, rise, per_windowed, until)
    if per_windowed and padded_tokens < edge:
        rise += per_windowed
        until = min(until, edge)
    else:
        base += per_windowed * edge
    if rise > 0.0:
        until = max(padded_tokens, min(until, int((beside - base) / rise)))
    return PriceLine(added + beside, 0.0, 0.0, until)


def host_until(pieces: Pieces, per_windowed_ns: float, edge_tokens: int, beside_ns: float) -> int:
    """Return the largest padded sum at which the host is the longer, contexts equal.

    Parameters
    ----------
    pieces : Pieces
        GPU time without the windowed part.
    per_windowed_ns : float [ns/token]
    edge_tokens : int [tokens]
        Clipped sum of contexts that fill the window.
    beside_ns : float [ns]
        Host work that runs beside the GPU.
    """
    start = 0
    for end, base, steep in zip(pieces.untils, pieces.bases, pieces.slopes, strict=True):
        for low, high, flat, rise in (
            (start, min(end, edge_tokens), base, steep + per_windowed_ns),
            (max(start, edge_tokens), end, base + per_windowed_ns * edge_tokens, steep),
        ):
            if high > low and flat + rise * high > beside_ns:
                return min(high, max(low, int((beside_ns - flat) / rise))) if rise else low
        start = end
    return FOREVER


def simplify(sizes: Floats, values: Floats, tolerance: float = TOLERANCE) -> list[int]:
    """Return the fewest-looking subset of points whose chords stay within a tolerance.

    Parameters
    ----------
    sizes, values : ndarray (n,)
        Sizes rising, values positive.
    tolerance : float
        Relative, at every point that is skipped.

    Returns
    -------
    list of int
        Indices, the first and the last among them.
    """
    x, y = sizes.tolist(), values.tolist()
    kept = [0]
    while kept[-1] < len(x) - 1:
        kept.append(_reach(x, y, kept[-1], tolerance))
    return kept


def _reach(x: list[float], y: list[float], start: int, tolerance: float) -> int:
    """Return the farthest point whose chord from `start` stays within the tolerance.

    Each skipped point leaves a cone of slopes that pass it closely enough; the chord's must lie
    in all of them.
    """
    from_x, from_y = x[start], y[start]
    reach = start + 1
    low, high = -math.inf, math.inf
    for index in range(start + 1, len(x)):
        run, rise = x[index] - from_x, y[index] - from_y
        if low * run <= rise <= high * run:
            reach = index
        room = tolerance * y[index]
        low, high = max(low, (rise - room) / run), min(high, (rise + room) / run)
        if low > high:
            break
    return reach


def pieces_of(sizes: Floats, values: Floats, scale: Floats | None = None) -> Pieces:
    """Return a curve as at most `MOST_PIECES` pieces.

    Parameters
    ----------
    sizes : ndarray (n,) [tokens]
        Whole numbers, rising.
    values : ndarray (n,) [ns]
    scale : ndarray (n,) or None [ns]
        What the error is relative to; None for the values themselves.
    """
    whole = values if scale is None else scale
    offset = whole - values
    tolerance = TOLERANCE
    while True:
        kept = simplify(sizes, values + offset, tolerance)
        if len(kept) <= MOST_PIECES:
            break
        tolerance *= 1.5
    x, y = sizes[kept], values[kept]
    slopes = np.diff(y) / np.diff(x)
    bases = y[:-1] - slopes * x[:-1]
    untils = [*(int(size) for size in x[1:-1]), FOREVER]
    chords = np.interp(sizes, x, y)
    error = float(np.max(np.abs(chords - values) / whole))
    return Pieces(untils, bases.tolist(), slopes.tolist(), error)


def decode_lines(
    pieces: Pieces, added_ns: float, beside_ns: float, per_windowed_ns: float, until: int
) -> tuple[list[int], list[PriceLine]]:
    """Return the price lines of one batch size, in order of the sums they end at.

    Parameters
    ----------
    pieces : Pieces
        GPU time without the windowed part.
    added_ns, beside_ns : float [ns]
        Host work that adds, and that runs beside the GPU.
    per_windowed_ns : float [ns/token]
    until : int [tokens]
        Largest sum at which the host is the longer of the two; below 1 for never.
    """
    untils: list[int] = []
    lines: list[PriceLine] = []
    if until >= 1:
        untils.append(until)
        lines.append(PriceLine(added_ns + beside_ns, 0.0, 0.0, until))
    parts: Sequence[tuple[int, float, float]] = list(
        zip(pieces.untils, pieces.bases, pieces.slopes, strict=True)
    )
    for end, base, slope in parts:
        if end > until:
            untils.append(end)
            lines.append(PriceLine(added_ns + base, slope, per_windowed_ns, end))
    return untils, lines
