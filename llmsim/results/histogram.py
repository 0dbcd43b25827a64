"""A histogram of durations with equal ratios between bins: quantiles in constant memory."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from llmsim.results.bins import BINS, FLOOR_NS, LOG_RATIO, RATIO, bin_of

__all__ = ["BINS", "RATIO", "LogHistogram", "bin_of", "upper_edge_ns"]


def upper_edge_ns(index: int) -> float:
    """Return the upper edge of a bin [ns]."""
    return FLOOR_NS * math.exp((index + 1) * LOG_RATIO)


def _middle_s(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the geometric middles [s] of bins, at most 0.2% from anything inside them."""
    middles: npt.NDArray[np.float64] = FLOOR_NS * np.exp((bins + 0.5) * LOG_RATIO) / 1e9
    return middles


def _bins_of(durations_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    ratio = np.log(np.maximum(durations_ns, FLOOR_NS) / FLOOR_NS) / LOG_RATIO
    bins: npt.NDArray[np.int64] = np.minimum(ratio.astype(np.int64), BINS - 1)
    return bins


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

    def add_runs(
        self,
        first_ns: npt.NDArray[np.int64],
        last_ns: npt.NDArray[np.int64],
        steps: npt.NDArray[np.int64],
        weight: npt.NDArray[np.int64],
    ) -> None:
        """Count runs of durations that change evenly from a first to a last one.

        Parameters
        ----------
        first_ns, last_ns : ndarray of int64 (n,) [ns]
        steps : ndarray of int64 (n,)
            Durations in each run, at least 1.
        weight : ndarray of int64 (n,)
            How often each duration of a run counts.

        Notes
        -----
        Where a run crosses a bin's edge, the crossing is found by linear interpolation, so a
        duration may fall one bin off; totals are exact.
        """
        # a histogram knows no order: count every run upwards
        first_ns, last_ns = np.minimum(first_ns, last_ns), np.maximum(first_ns, last_ns)
        low, high = _bins_of(first_ns), _bins_of(last_ns)
        pieces = high - low + 1
        owner = np.repeat(np.arange(len(low)), pieces)
        bins = low[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        edge = FLOOR_NS * np.exp((bins + 1) * LOG_RATIO)
        slope = np.maximum(last_ns - first_ns, 1)
        upto = np.floor((edge - first_ns[owner]) / slope[owner] * (steps[owner] - 1)) + 1
        upto = np.where(bins == high[owner], steps[owner], np.clip(upto, 1, steps[owner]))
        before = np.concatenate(([0], upto[:-1]))
        before[bins == low[owner]] = 0
        counts = np.maximum(upto - before, 0).astype(np.int64) * weight[owner]
        offset = int(bins.min()) if len(bins) else 0
        sums = np.bincount(bins - offset, weights=counts)
        for index in np.flatnonzero(sums).tolist():
            at = index + offset
            self.counts[at] = self.counts.get(at, 0) + int(sums[index])

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
        if not self.total:
            return math.nan
        # in order, so that equal histograms have equal means to the last digit
        bins = np.array(sorted(self.counts), dtype=np.int64)
        weights = np.array([self.counts[int(b)] for b in bins], dtype=np.float64)
        return float(np.average(_middle_s(bins), weights=weights))

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
