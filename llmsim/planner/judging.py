"""What simulations under several seeds say of a fleet, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from llmsim.planner.fleets import pool_name
from llmsim.planner.plan import Evidence
from llmsim.study.points import Point

Verdict = Literal["passed", "failed", "undecided"]

OF_POOL: Final = "slo_attained_frac of pool "
"""What a point calls the attainment of a pool's own requests, with the pool's name."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What simulations say of a fleet.

    Parameters
    ----------
    evidence : tuple of Evidence
        One, or one for each kind of which replicas were taken away.
    weak : tuple of str
        Columns whose own requests attained too little, where the fleet failed.
    overloaded : bool
        In some seed of one of them.
    """

    evidence: tuple[Evidence, ...]
    weak: tuple[str, ...]
    overloaded: bool

    @property
    def passed(self) -> bool:
        """Whether all of them passed."""
        return all(each.passed for each in self.evidence)

    @property
    def attained_frac(self) -> float:
        """Mean attainment of the worst."""
        return min(float(np.mean(each.attained_frac or (0.0,))) for each in self.evidence)


def bounds(
    attained: Sequence[float], requests: Sequence[float], risk: float
) -> tuple[float, float]:
    """Return the one-sided confidence bounds of mean attainment, the lower and the upper one.

    Parameters
    ----------
    attained : sequence of float (n,)
        By seed.
    requests : sequence of float (n,)
    risk : float
        That the mean lies beyond one of them.

    Notes
    -----
    Student's t over the seeds, which sees how requests of one run hang together; Wilson's bound of
    all requests together, as if they did not, is the floor of the doubt: where every seed attains
    the same, t has none.
    """
    from scipy.stats import norm, t

    values = np.asarray(attained, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return 0.0, 1.0
    half = float(t.ppf(1 - risk, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    count, z = float(np.sum(requests)), float(norm.ppf(1 - risk))
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    wide = z / (1 + z * z / count)
    wide *= math.sqrt(mean * (1 - mean) / count + (z / (2 * count)) ** 2)
    return max(min(mean - half, centre - wide), 0.0), min(max(mean + half, centre + wide), 1.0)


def decided(points: Sequence[Point], low: float, high: float, target: float) -> Verdict:
    """Return whether these simulations decide about a fleet.

    Parameters
    ----------
    points : sequence of Point
    low, high : float
        Confidence bounds of attainment.
    target : float
    """
    if any(point.verdict == "overloaded" for point in points) or high < target:
        return "failed"
    return "passed" if low >= target else "undecided"


def weak_pools(points: Sequence[Point], fleet: Mapping[str, int], target: float) -> tuple[str, ...]:
    """Return the pools whose own requests attain too little; the worst one where none does.

    Parameters
    ----------
    points : sequence of Point
    fleet : mapping of str to int [replicas]
    target : float
    """
    means = {}
    for name, count in fleet.items():
        key = OF_POOL + pool_name(name)
        known = [v for p in points if math.isfinite(v := p.values.get(key, math.nan))]
        if count and known:
            means[name] = float(np.mean(known))
    weak = tuple(name for name, mean in means.items() if mean < target)
    return weak or tuple(sorted(means, key=lambda name: means[name])[:1])
