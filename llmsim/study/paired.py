"""Two arms under common random numbers: the ratio between them, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmsim.study.interval import student_interval


@dataclass(frozen=True, slots=True)
class Paired:
    """The gain of one arm over another, from pairs that share a seed.

    Parameters
    ----------
    gains : tuple of float (pairs,)
        Ratio of each pair; above 1 the treatment is better. NaN where a pair has none.
    """

    gains: tuple[float, ...]

    @property
    def known(self) -> tuple[float, ...]:
        """The gains that are numbers."""
        return tuple(gain for gain in self.gains if math.isfinite(gain))

    @property
    def mean(self) -> float:
        """Geometric mean; NaN without a pair, 0 where a pair has gain 0."""
        known = self.known
        if not known:
            return math.nan
        return 0.0 if min(known) <= 0 else float(np.exp(np.mean(np.log(known))))

    def interval(self) -> tuple[float, float]:
        """Return both ends of the 95% interval of the mean gain.

        Returns
        -------
        low, high : float
            NaN with fewer than two pairs, or where a pair has gain 0.

        Notes
        -----
        Student's t over the logarithms of the pairs' ratios: ratios multiply, and a pair shares
        its seed, so what both arms owe to the seed is gone before anything is averaged.
        """
        known = self.known
        if len(known) < 2 or min(known) <= 0:
            return math.nan, math.nan
        low, high = student_interval(np.log(known))
        return math.exp(low), math.exp(high)


def gain(baseline: float, treatment: float, higher_is_better: bool) -> float:
    """Return how many times better the treatment is; NaN if either value is missing or both are 0.

    Parameters
    ----------
    baseline, treatment : float
        Not negative, in one unit.
    higher_is_better : bool
    """
    better, worse = (treatment, baseline) if higher_is_better else (baseline, treatment)
    if not (math.isfinite(better) and math.isfinite(worse)) or worse == better == 0:
        return math.nan
    return better / worse if worse else math.inf


def paired(baseline: Sequence[float], treatment: Sequence[float], higher_is_better: bool) -> Paired:
    """Return the gains of pairs, in order.

    Raises
    ------
    ValueError
        If the arms differ in length.
    """
    pairs = zip(baseline, treatment, strict=True)
    return Paired(tuple(gain(one, other, higher_is_better) for one, other in pairs))
