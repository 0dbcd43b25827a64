"""A histogram of durations with equal ratios between bins: quantiles in constant memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

RATIO = 1.004
"""Upper over lower edge of a bin: a quantile is known to 0.4%."""

_LOG_RATIO = math.log(RATIO)
_FLOOR_NS = 1_000
BINS = math.ceil(math.log(10**15 / _FLOOR_NS) / _LOG_RATIO)
"""Bins from 1 microsecond to 10^6 seconds."""


def bin_of(duration_ns: float) -> int:
    """Return the bin a duration [ns] falls in; durations below 1 us fall in bin 0."""
    if duration_ns <= _FLOOR_NS:
        return 0
    return min(int(math.log(duration_ns / _FLOOR_NS) / _LOG_RATIO), BINS - 1)


def upper_edge_ns(index: int) -> float:
    """Return the upper edge of a bin [ns]."""
    return _FLOOR_NS * math.exp((index + 1) * _LOG_RATIO)


def _middle_s(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the geometric middles [s] of bins, at most 0.2% from anything inside them."""
    middles: npt.NDArray[np.float64] = _FLOOR_NS * np.exp((bins + 0.5) * _LOG_RATIO) / 1e9
    return middles


class LogHistogram:
    """Weighted counts of durations in bins of equal ratio.

    Attributes
    ----------
    counts : dict of int to int
        Weight per bin that was hit.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, duration_ns: float, weight: int = 1) -> None:
        """Count a duration [ns] `weight` times."""
        index = bin_of(duration_ns)
        self.counts[index] = self.counts.get(index, 0) + weight

    def merge(self, other: LogHistogram) -> None:
        """Add another histogram's counts to this one."""
        for index, weight in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + weight

    @property
    def total(self) -> int:
        """Sum of all weights."""
        return sum(self.counts.values())

    def mean_s(self) -> float:
        """Return the mean [s], each duration taken as the middle of its bin; NaN when empty."""
        weights = np.array(list(self.counts.values()), dtype=np.float64)
        if not weights.sum():
            return math.nan
        return float(np.average(_middle_s(np.array(list(self.counts))), weights=weights))

    def quantiles_s(self, fractions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return quantiles.

        Parameters
        ----------
        fractions : array_like (n,)
            Between 0 and 1.

        Returns
        -------
        ndarray of float64 (n,) [s]
            Geometric middle of the bin that holds each quantile; NaN for an empty histogram.
        """
        wanted = np.atleast_1d(np.asarray(fractions, dtype=np.float64))
        if not self.total:
            return np.full(len(wanted), np.nan)
        bins = np.array(sorted(self.counts), dtype=np.int64)
        cumulative = np.cumsum([self.counts[int(b)] for b in bins])
        at = np.searchsorted(cumulative, wanted * cumulative[-1], side="left")
        chosen = bins[np.minimum(at, len(bins) - 1)]
        return _middle_s(chosen)
