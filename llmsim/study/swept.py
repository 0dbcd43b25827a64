"""What a sweep found: every point with its metrics, the best of them, and those nobody beats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llmsim.results import folder as folders
from llmsim.results.metrics import EVERY_METRIC
from llmsim.scenario import Scenario
from llmsim.scenario.document import dump_yaml
from llmsim.study.axes import Axis, flow
from llmsim.study.goal import Goal, Objective
from llmsim.study.interval import student_interval
from llmsim.study.points import Point

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

Status = Literal["feasible", "unsure", "infeasible", "overloaded", "impossible", "not done"]
GOOD: Final = ("feasible", "unsure")
"""States of points that may be best."""

POINTS_CSV, POINTS, RUNS, SWEEP = "points.csv", "points.parquet", "runs.parquet", "sweep.yaml"
SCHEMA: Final = "sweep-1"
"""Version of the layout of a sweep's folder."""


class Drawing(Protocol):
    """A picture that a notebook shows."""

    def save(self, path: str | Path) -> Path:
        """Write it as an SVG file."""
        ...

    def _repr_html_(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Drawer:
    """What makes pages and pictures of a sweep; handed in, since reports lie above studies.

    Parameters
    ----------
    page : callable
        Returns the text of ``report.html``.
    heat_map : callable
        Takes a sweep, two paths (or None) and a metric.
    trade_off : callable
        Draws the Pareto front.
    """

    page: Callable[[Sweep], str]
    heat_map: Callable[[Sweep, str | None, str | None, str | None], Drawing]
    trade_off: Callable[[Sweep], Drawing]


@dataclass(frozen=True, slots=True)
class Row:
    """One point of a sweep.

    Parameters
    ----------
    change : mapping of str to object
        Its values by dotted path: what to override in the scenario to have it.
    points : tuple of (Point or None) (seeds,)
        None where a run is not done, or cannot be.
    refused : str
        Why it cannot be; empty where it can.
    """

    change: Mapping[str, Any]
    points: tuple[Point | None, ...]
    refused: str = ""

    def entered(self, at: int, made: Point | str) -> Row:
        """Return this row with what came of one seed."""
        if isinstance(made, str):
            return replace(self, refused=made)
        return replace(self, points=(*self.points[:at], made, *self.points[at + 1 :]))

    @property
    def done(self) -> bool:
        """Whether every seed is."""
        return all(point is not None for point in self.points)

    def values(self, metric: str) -> Floats:
        """Return a metric under each seed that is done, in its unit; NaN where a run has none."""
        return np.array(
            [each.values.get(metric, math.nan) for each in self.points if each is not None],
            dtype=np.float64,
        )

    def mean(self, metric: str) -> float:
        """Return the mean over the seeds; NaN where a run has no number."""
        values = self.values(metric)
        return float(np.mean(values)) if len(values) else math.nan

    def interval(self, metric: str) -> tuple[float, float]:
        """Return both ends of the 95% interval of the mean; NaN with one seed."""
        return student_interval(self.values(metric))

    def standing(self, goal: Goal) -> tuple[Status, str]:
        """Return how it stands to a goal, and why.

        Notes
        -----
        A condition is kept by the mean over the seeds; ``unsure`` says that the 95% interval of
        that mean reaches over the limit. An overloaded fleet serves nothing for ever: what it
        delivers depends on the length of the run.
        """
        if self.refused:
            return "impossible", self.refused
        if not self.done:
            return "not done", ""
        verdicts = [each.verdict for each in self.points if each is not None]
        over = verdicts.count("overloaded")
        if over and not goal.overloaded_counts:
            return "overloaded", f"under {over} of {len(verdicts)} seeds" if len(
                verdicts
            ) > 1 else ""
        broken = [each for each in goal.conditions if not each.kept(self.mean(each.metric))]
        if broken:
            return "infeasible", "not " + ", not ".join(map(str, broken))
        short = verdicts.count("too short to tell")
        note = "too short to tell whether the fleet keeps up" if short else ""
        for each in goal.conditions:
            low, high = self.interval(each.metric)
            end = high if each.below else low
            if math.isfinite(end) and not each.kept(end):
                return "unsure", f"the interval crosses {each}"
        return "feasible", note

    def __str__(self) -> str:
        return ", ".join(f"{path}={flow(value)}" for path, value in self.change.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Parameters
    ----------
    base : Scenario
    axes : tuple of Axis
    seeds : tuple of int
    goal : Goal
    rows : tuple of Row
        In the order of the grid, then of the samples; samples that fell together once.
    samples : int
        Points drawn where an axis is drawn from.
    interrupted : bool
        Ctrl-C came before the last run.
    drawer : Drawer, optional

    Examples
    --------
    ::

        sweep = ls.sweep("quickstart", {"engine.max_num_seqs": [64, 128, 256]})
        sweep.frame         # a row per point
        sweep.best.change   # {"engine.max_num_seqs": 128}
        sweep.pareto        # the points that nobody beats in everything
        sweep.heat_map()
    """

    base: Scenario
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    goal: Goal
    rows: tuple[Row, ...]
    samples: int = 1
    interrupted: bool = False
    drawer: Drawer | None = None

    @cached_property
    def standings(self) -> tuple[tuple[Status, str], ...]:
        """How each point stands to the goal, and why."""
        return tuple(row.standing(self.goal) for row in self.rows)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The shortest end of each axis' path that tells it from the others."""
        found = {}
        for axis in self.axes:
            parts = axis.path.split(".")
            for size in range(1, len(parts) + 1):
                label = ".".join(parts[-size:])
                if sum(f".{each.path}".endswith(f".{label}") for each in self.axes) == 1:
                    break
            found[axis.path] = label
        return found

    @property
    def good(self) -> list[int]:
        """Numbers of the points that may be best, in order."""
        first = self.goal.objectives[0]
        return [
            number
            for number, (status, _) in enumerate(self.standings)
            if status in GOOD and math.isfinite(self.rows[number].mean(first.metric))
        ]

    @cached_property
    def best_number(self) -> int | None:
        """Number of the best point; None if none is feasible."""

        def key(number: int) -> tuple[float, ...]:
            gains = (_gain(self.rows[number], each) for each in self.goal.trade_offs())
            return tuple(gain if math.isfinite(gain) else -math.inf for gain in gains)

        return max(self.good, key=key, default=None)

    @property
    def best(self) -> Row | None:
        """The best point, equals told apart by the trade-off; None if none is feasible."""
        return None if self.best_number is None else self.rows[self.best_number]

    @cached_property
    def ties(self) -> tuple[int, ...]:
        """Numbers of the points that cannot be told from the best under these seeds.

        Notes
        -----
        The 95% interval of the mean difference to the best, seed by seed, holds 0: all points meet
        the same requests under the same seed. Empty with one seed.
        """
        if self.best is None or len(self.seeds) < 2:
            return ()
        metric = self.goal.objectives[0].metric
        found = []
        for number in self.good:
            low, high = student_interval(
                self.rows[number].values(metric) - self.best.values(metric)
            )
            if number != self.best_number and low <= 0 <= high:
                found.append(number)
        return tuple(found)

    @cached_property
    def front(self) -> tuple[int, ...]:
        """Numbers of the points that nobody beats in everything, best first (the Pareto front)."""
        goals = self.goal.trade_offs()
        gains = {
            number: tuple(_gain(self.rows[number], each) for each in goals) for number in self.good
        }
        gains = {number: each for number, each in gains.items() if all(map(math.isfinite, each))}
        kept = [number for number, own in gains.items() if not _beaten(own, gains.values())]
        return tuple(sorted(kept, key=lambda number: gains[number], reverse=True))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per point: its values, how it stands, and the mean of every metric.

        With several seeds ``METRIC_ci_low`` and ``METRIC_ci_high`` stand beside each mean.
        """
        import pandas as pd

        columns: dict[str, Any] = {"point": range(len(self.rows))}
        for axis in self.axes:
            columns[axis.path] = _column([row.change[axis.path] for row in self.rows])
        columns["status"] = [status for status, _ in self.standings]
        columns["note"] = [note for _, note in self.standings]
        columns["best"] = [number == self.best_number for number in range(len(self.rows))]
        columns["ties_best"] = [number in self.ties for number in range(len(self.rows))]
        columns["pareto"] = [number in self.front for number in range(len(self.rows))]
        columns["runs"] = [sum(each is not None for each in row.points) for row in self.rows]
        for name in self.metrics:
            columns[name] = [row.mean(name) for row in self.rows]
            if len(self.seeds) > 1:
                ends = [row.interval(name) for row in self.rows]
                columns[f"{name}_ci_low"] = [low for low, _ in ends]
                columns[f"{name}_ci_high"] = [high for _, high in ends]
        return pd.DataFrame(columns)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run: point, values, seed, verdict, digest, every metric."""
        import pandas as pd

        found = []
        for number, row in enumerate(self.rows):
            for seed, point in zip(self.seeds, row.points, strict=True):
                if point is not None:
                    # a sweep over seeds has its own column of them
                    found.append(
                        {
                            "point": number,
                            "seed": seed,
                            **row.change,
                            "verdict": point.verdict,
                            "digest": point.digest,
                            **{name: point.values.get(name, math.nan) for name in self.metrics},
                        }
                    )
        frame = pd.DataFrame(found)
        for axis in self.axes:
            if axis.path in frame:
                frame[axis.path] = _column(frame[axis.path].tolist())
        return frame

    @property
    def metrics(self) -> list[str]:
        """Metrics that some run has, in the order of a summary."""
        met = {name for row in self.rows for each in row.points if each for name in each.values}
        return [each.name for each in EVERY_METRIC if each.name in met]

    @property
    def pareto(self) -> pd.DataFrame:
        """The rows of `frame` that nobody beats in everything, best first."""
        return self.frame.iloc[list(self.front)]

    def scenario(self, number: int) -> Scenario:
        """Return the scenario of a point.

        Raises
        ------
        ScenarioError
            If that point cannot be.
        """
        return self.base.override(self.rows[number].change)

    def heat_map(
        self, x: str | None = None, y: str | None = None, metric: str | None = None
    ) -> Drawing:
        """Return a picture of a metric over two axes.

        Parameters
        ----------
        x, y : str, optional
            Paths; the first two axes when absent.
        metric : str, optional
            The first objective when absent.
        """
        return self._drawer().heat_map(self, x, y, metric)

    def trade_off(self) -> Drawing:
        """Return a picture of the points by two objectives, the Pareto front through them."""
        return self._drawer().trade_off(self)

    def _drawer(self) -> Drawer:
        if self.drawer is None:
            raise TypeError("this sweep was made without a drawer: use llmsim.sweep")
        return self.drawer

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write the sweep into a folder, whole or not at all.

        Parameters
        ----------
        folder : str or Path
            New, empty, or with `force` one that a sweep or a run wrote.
        force : bool

        Raises
        ------
        OutputError
            If the folder is taken or cannot be written.
        """
        target = Path(folder)
        with folders.new_folder(target, force) as made:
            self.frame.to_csv(made / POINTS_CSV, index=False)
            self.frame.to_parquet(made / POINTS, compression="zstd", index=False)
            self.runs.to_parquet(made / RUNS, compression="zstd", index=False)
            (made / SWEEP).write_text(dump_yaml(self.plain()), encoding="utf-8")
            (made / folders.META).write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")
            if self.drawer is not None:
                (made / folders.REPORT).write_text(self.drawer.page(self), encoding="utf-8")
        return target

    def plain(self) -> dict[str, Any]:
        """Return the sweep as a sweep file has it: running that file gives this sweep again."""
        goal = self.goal
        found: dict[str, Any] = {
            "scenario": self.base.resolved(),
            "over": {axis.path: axis.plain() for axis in self.axes},
        }
        if any(axis.draw != "grid" for axis in self.axes):
            found["samples"] = self.samples
        if self.seeds != (self.base.seed,):
            found["seeds"] = list(self.seeds)
        found["maximise"] = [each.metric for each in goal.objectives if each.larger]
        found["minimise"] = [each.metric for each in goal.objectives if not each.larger]
        found["subject_to"] = [str(each) for each in goal.conditions]
        found["count_overloaded"] = goal.overloaded_counts
        return found

    def as_json(self) -> dict[str, Any]:
        """Return what was asked and found, points by number, as plain values."""
        counts: dict[str, int] = {}
        for status, _ in self.standings:
            counts[status] = counts.get(status, 0) + 1
        return {
            "schema": SCHEMA,
            "llmsim_version": version("llmsim"),
            "scenario": self.base.name,
            "axes": [axis.path for axis in self.axes],
            "seeds": list(self.seeds),
            "objectives": [str(each) for each in self.goal.objectives],
            "conditions": [str(each) for each in self.goal.conditions],
            "interrupted": self.interrupted,
            "points": counts,
            "best": self._point_json(self.best_number),
            "ties_best": list(self.ties),
            "pareto": [self._point_json(number) for number in self.front],
        }

    def _point_json(self, number: int | None) -> dict[str, Any] | None:
        if number is None:
            return None
        row = self.rows[number]
        names = dict.fromkeys([*self.goal.metrics, *(o.metric for o in self.goal.trade_offs())])
        means = {name: row.mean(name) for name in names}
        return {
            "point": number,
            "change": dict(row.change),
            "status": self.standings[number][0],
            "metrics": {name: v if math.isfinite(v) else None for name, v in means.items()},
        }

    def __repr__(self) -> str:
        told = f"Sweep of {self.base.name}: {len(self.rows)} points"
        if self.best is None:
            return f"{told}, none feasible"
        metric = self.goal.objectives[0].metric
        return f"{told}, best {self.best}: {metric} {self.best.mean(metric):.4g}"

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys([*self.goal.metrics]))
        shown = ["point", *(axis.path for axis in self.axes), "status", "best", "pareto", *names]
        from html import escape

        table = self.frame[shown].to_html(index=False, na_rep="", float_format="{:.4g}".format)
        drawn = ""
        if self.drawer is not None:
            drawn = f"{self.heat_map()._repr_html_()}{self.trade_off()._repr_html_()}"
        told = f"<p>{escape(repr(self))}</p>{drawn}"
        return f"{told}<details><summary>Points</summary>{table}</details>"


def _gain(row: Row, objective: Objective) -> float:
    return objective.sign * row.mean(objective.metric)


def _beaten(own: tuple[float, ...], others: Any) -> bool:
    """Say whether another is at least as good in everything and better in something."""
    return any(
        other != own and all(o >= mine for o, mine in zip(other, own, strict=True))
        for other in others
    )


def _column(values: Sequence[Any]) -> list[Any]:
    """Return values of an axis as a column of one type: numbers, or text."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return list(values)
    if all(isinstance(v, bool) for v in values):
        return list(values)
    return [flow(value) for value in values]
