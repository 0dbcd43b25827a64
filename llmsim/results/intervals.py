"""95% intervals from one run, whose successive requests are not independent of each other.

Batch means: values in time order are cut into 20 batches of equal length; batches are nearly
independent when each is long against the memory of the queue. What is left of their dependence is
measured (lag-1 correlation of the batches) and widens the interval.

References
----------
.. [1] B. Schmeiser, "Batch size effects in the analysis of simulation output", Operations
   Research 30 (1982): 10 to 30 batches.
.. [2] A. Tafazzoli, J. R. Wilson, E. K. Lada, N. M. Steiger, "Performance of Skart", INFORMS
   Journal on Computing 23 (2011): the factor sqrt((1 + r) / (1 - r)) for correlated batches.
.. [3] M. K. Nakayama, "Confidence intervals for quantiles using sectioning when applying
   variance-reduction techniques", ACM TOMACS 24 (2014).
.. [4] E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
   JASA 22 (1927).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BATCHES: Final = 20
"""Batches per run [1]."""

MIN_PER_BATCH: Final = 10
"""Values a batch must hold; with fewer there is no interval."""

MIN_IN_TAIL: Final = 5
"""Values a batch must hold on either side of a quantile; with fewer there is no interval."""

_MAX_CORRELATION: Final = 0.95
_T95: Final = {18: 2.100922, 19: 2.093024}
"""97.5% points of Student's t by degrees of freedom (scipy.stats.t.ppf(0.975, df))."""
_Z95: Final = 1.959964
"""97.5% point of the normal law."""


class Interval(NamedTuple):
    """An estimate and its 95% interval, in the unit of the values; NaN where there is none."""

    value: float
    low: float
    high: float


NOTHING: Final = Interval(math.nan, math.nan, math.nan)


def mean_interval(values: Floats | npt.NDArray[np.bool_]) -> Interval:
    """Return the mean and its interval by batch means.

    Parameters
    ----------
    values : ndarray (n,)
        In time order, without NaN.

    Returns
    -------
    Interval
        In the unit of the values; no bounds with fewer than 200 values.
    """
    if not len(values):
        return NOTHING
    mean = float(np.mean(values, dtype=np.float64))
    if len(values) < BATCHES * MIN_PER_BATCH:
        return Interval(mean, math.nan, math.nan)
    starts = _starts(len(values))
    sums = np.add.reduceat(values.astype(np.float64, copy=False), starts)
    half = _half_width(sums / np.diff([*starts, len(values)]), mean)
    return Interval(mean, _least(mean - half, values), mean + half)


def quantile_interval(values: Floats, fraction: float) -> Interval:
    """Return a quantile and its interval by sectioning [3].

    Parameters
    ----------
    values : ndarray of float64 (n,)
        In time order, without NaN.
    fraction : float
        Such as 0.99.

    Returns
    -------
    Interval
        Linear interpolation between order statistics; the bounds come from the same quantile of
        each batch, taken around that of the whole. No bounds where a batch holds fewer than
        `MIN_IN_TAIL` values on either side: p99 needs 10,000 values.
    """
    if not len(values):
        return NOTHING
    whole = float(np.quantile(values, fraction))
    if len(values) * min(fraction, 1 - fraction) < BATCHES * MIN_IN_TAIL * (1 - 1e-9):
        return Interval(whole, math.nan, math.nan)
    parts = np.array([np.quantile(part, fraction) for part in _split(values)])
    half = _half_width(parts, whole)
    return Interval(whole, _least(whole - half, values), whole + half)


def share_interval(hits: npt.NDArray[np.bool_]) -> Interval:
    """Return a share and its interval: the wider, on each side, of batch means and Wilson's.

    Parameters
    ----------
    hits : ndarray of bool (n,)
        In time order.

    Returns
    -------
    Interval
        Between 0 and 1; no bounds with fewer than 200 values.

    Notes
    -----
    Batch means see the dependence between requests, but say "no doubt" when every request was a
    hit; Wilson's interval [4] for independent draws knows better and is the floor.
    """
    share, low, high = mean_interval(hits)
    if math.isnan(low):
        return Interval(share, low, high)
    n = len(hits)
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(share * (1 - share) / n + (_Z95 / (2 * n)) ** 2)
    return Interval(share, max(0.0, min(low, centre - half)), min(1.0, max(high, centre + half)))


def rate_interval(
    times_s: Floats, weights: Floats | None, start_s: float, end_s: float
) -> Interval:
    """Return a rate over a window and its interval from 20 equal parts of the window.

    Parameters
    ----------
    times_s : ndarray of float64 (n,) [s]
        When something ended, inside the window.
    weights : ndarray of float64 (n,) or None
        What each is worth; None for one each.
    start_s, end_s : float [s]

    Returns
    -------
    Interval
        [weight/s]; no bounds with fewer than 200 values.
    """
    width = end_s - start_s
    if not width > 0:
        return NOTHING
    rate = float(len(times_s) if weights is None else weights.sum()) / width
    if len(times_s) < BATCHES * MIN_PER_BATCH:
        return Interval(rate, math.nan, math.nan)
    edges = np.linspace(start_s, end_s, BATCHES + 1)
    inside = np.clip(times_s, start_s, end_s)  # a time rounded past an edge still counts
    parts = np.histogram(inside, edges, weights=weights)[0] / (width / BATCHES)
    half = _half_width(parts, rate)
    return Interval(rate, _least(rate - half, parts), rate + half)


def _least(low: float, values: Floats | npt.NDArray[np.bool_]) -> float:
    """Return a lower bound, no less than 0 of what is never negative: a time, a count."""
    return max(low, 0.0) if low < 0.0 and not (values < 0).any() else low


def slope_interval(parts: Floats, width_s: float) -> Interval:
    """Return the slope of a level over time and its interval.

    Parameters
    ----------
    parts : ndarray of float64 (20,)
        Time averages of the level over successive parts of equal width.
    width_s : float [s]
        Width of a part.

    Returns
    -------
    Interval
        [level/s]

    Notes
    -----
    Least squares over the parts. The lag-1 correlation of the residuals, freed of the downward
    bias that fitting a line gives it (about (2 + 4 r) / n) and taken one standard error
    (1 / sqrt(n)) higher, widens the interval as in [2]: a queue that wanders is not taken for one
    that grows. ``docs/metrics.md`` has how often that is right for M/M/1 queues.
    """
    n = len(parts)
    time = (np.arange(n) - (n - 1) / 2) * width_s
    spread = float(time @ time)
    slope = float(time @ parts) / spread
    residuals = parts - parts.mean() - slope * time
    squares = float(residuals @ residuals)
    if squares <= 1e-24 * float(parts @ parts):
        return Interval(slope, slope, slope)
    found = float(residuals[:-1] @ residuals[1:]) / squares
    factor = _widening((found + 2 / n) / (1 - 4 / n) + 1 / math.sqrt(n))
    half = _T95[n - 2] * factor * math.sqrt(squares / (n - 2) / spread)
    return Interval(slope, slope - half, slope + half)


def _split(values: Floats) -> list[Floats]:
    return np.split(values, _starts(len(values))[1:])


def _starts(n: int) -> npt.NDArray[np.int64]:
    return np.arange(BATCHES, dtype=np.int64) * n // BATCHES


def _half_width(parts: Floats, centre: float) -> float:
    """Return t * standard error of `centre` from the batches around it."""
    away = parts - centre
    squares = float(away @ away)
    if squares == 0:
        return 0.0
    factor = _widening(float(away[:-1] @ away[1:]) / squares)
    return _T95[BATCHES - 1] * factor * math.sqrt(squares / (BATCHES - 1) / BATCHES)


def _widening(correlation: float) -> float:
    r = min(max(correlation, 0.0), _MAX_CORRELATION)
    return math.sqrt((1 + r) / (1 - r))
