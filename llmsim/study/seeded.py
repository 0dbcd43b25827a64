"""Two scenarios under the same seeds: the difference between them, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError
from llmsim.scenario import Scenario
from llmsim.study.draws import HEADLINES, UNITS
from llmsim.study.executor import run_in_order
from llmsim.study.interval import student_interval
from llmsim.study.points import Point, simulate_point

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[int, int | None], None]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """Two scenarios, each simulated under the same seeds.

    Parameters
    ----------
    names : tuple of (str, str)
        Of the scenarios.
    seeds : tuple of int (n,)
    values : mapping of str to tuple of (ndarray, ndarray), each (n,)
        Every metric of `HEADLINES` in its unit, of either scenario; NaN where a run has none.
    verdicts : tuple of (str, str) (n,)
        Whether each run kept up.
    """

    names: tuple[str, str]
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[Floats, Floats]]
    verdicts: tuple[tuple[str, str], ...]

    def differences(self, metric: str) -> Floats:
        """Return second less first of the seeds in which both have the metric, in its unit."""
        first, second = self.values[metric]
        made = second - first
        return made[np.isfinite(made)]

    def interval(self, metric: str) -> tuple[float, float]:
        """Return the 95% interval of the mean difference; NaN with fewer than two pairs.

        Notes
        -----
        Student's t over the pairs' differences: both runs of a pair meet the same requests, so
        that what they owe to the seed alone is gone.
        """
        return student_interval(self.differences(metric))

    def first_better_frac(self, metric: str) -> float:
        """Return the share of seeds in which the first is better, ties counting half."""
        made = -HEADLINES[metric] * self.differences(metric)
        return float(np.mean((made > 0) + 0.5 * (made == 0))) if len(made) else math.nan

    def table(self) -> pd.DataFrame:
        """Return a row per metric: means, mean difference with its interval, P(first better)."""
        import pandas as pd

        rows = []
        for name in HEADLINES:
            means = [_mean(side) for side in self.values[name]]
            middle = _mean(self.differences(name))
            ends = self.interval(name)
            better = self.first_better_frac(name)
            rows.append((name, UNITS[name], *means, middle, *ends, better))
        heads = ["metric", "unit", "first", "second", "difference", "ci_low", "ci_high"]
        return pd.DataFrame(rows, columns=[*heads, "first_better_frac"])


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if len(known) else math.nan


def compare_seeds(
    first: Scenario,
    second: Scenario,
    seeds: Sequence[int],
    jobs: int = -1,
    report: Report | None = None,
) -> SeedComparison:
    """Simulate two scenarios under the same seeds.

    Parameters
    ----------
    first, second : Scenario
    seeds : sequence of int
        At least two.
    jobs : int
        Processes; -1 for one per core.
    report : callable, optional
        Called with (runs done, runs in all).

    Raises
    ------
    InputError
        If a scenario is wrong, or there are fewer than two seeds.
    """
    if len(seeds) < 2:
        fault = Fault("", "seeds", f"{len(seeds)} of them; an interval needs two or more.")
        raise InputError("compare", [fault])
    asked = [(each.override({"seed": seed}),) for each in (first, second) for seed in seeds]
    points: list[Point] = []
    for point in run_in_order(simulate_point, asked, jobs):
        points.append(point)
        if report is not None:
            report(len(points), len(asked))
    sides = points[: len(seeds)], points[len(seeds) :]
    values = {name: (_column(sides[0], name), _column(sides[1], name)) for name in HEADLINES}
    verdicts = tuple((one.verdict, other.verdict) for one, other in zip(*sides, strict=True))
    return SeedComparison((first.name, second.name), tuple(seeds), values, verdicts)


def _column(points: Sequence[Point], name: str) -> Floats:
    return np.array([point.values[name] for point in points], dtype=np.float64)
