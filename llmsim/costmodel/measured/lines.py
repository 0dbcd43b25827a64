"""A rising curve as few straight pieces: how decode prices become `PriceLine`s."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmsim.costmodel.contract import PriceLine
from llmsim.costmodel.measured.means import Floats

MOST_PIECES = 64
TOLERANCE = 0.001
"""Largest relative error of a straight piece at the points it skips."""
FOREVER = 2**62


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
