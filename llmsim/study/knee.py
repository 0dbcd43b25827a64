"""The knee: the largest load at which a fleet still keeps its promises.

Doubled until a promise breaks, then bisected; every load meets the same requests in the same order
(common random numbers), so that neighbouring loads differ by load alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.results.metrics import EVERY_METRIC
from llmsim.scenario import Scenario
from llmsim.study.executor import run_in_order
from llmsim.study.interval import student_interval
from llmsim.study.points import Point, PointStore

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[int, int | None], None]

TOLERANCE_FRAC: Final = 0.02
"""Largest gap between the load that holds and the one that does not, as a share of it."""

MOST_DOUBLINGS: Final = 14
"""Doublings, or halvings, before a search gives up: a factor of 16,384 either way."""

FIRST_STEP: Final = 2.0
"""Factor between loads until one holds and one does not."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a load must keep to count as served.

    Parameters
    ----------
    limits : mapping of str to float
        Metrics by name with the largest value each may have, such as ``itl_p99_s: 0.1``. Empty: the
        scenario's own SLO, by the share of requests that must attain it.

    Notes
    -----
    A fleet that is overloaded serves nothing for ever: a load at which the run's own verdict is
    ``overloaded`` never counts, whatever its latencies are after so many requests.
    """

    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {each.name for each in EVERY_METRIC}
        faults = [
            Fault("", name, "unknown metric.", nearest(name, known))
            for name in self.limits
            if name not in known
        ]
        if faults:
            raise InputError("limits", faults)

    def kept(self, point: Point, attained_frac: float | None) -> bool:
        """Say whether a run kept it.

        Parameters
        ----------
        point : Point
        attained_frac : float or None
            Share of requests that must attain the SLO; None without an SLO.
        """
        if point.verdict == "overloaded":
            return False
        if self.limits:
            # NaN, and what a run without token times has not, is no value below a limit
            got = point.values
            return all(got.get(name, math.nan) <= limit for name, limit in self.limits.items())
        ratio = point.values.get("slo_class_least_ratio")
        if ratio is not None:  # every class by its own share
            return ratio >= 1.0
        return attained_frac is None or point.values["slo_attained_frac"] >= attained_frac


@dataclass(frozen=True, slots=True)
class Knee:
    """The knee of one scenario under one seed.

    Parameters
    ----------
    load : float
        The largest load found to hold, in the unit of its key; 0 if none does, infinite if no load
        was found that does not.
    point : Point or None
        The run at that load; None without one.
    tried : tuple of (float, bool)
        Every load simulated, and whether it held, in order.
    """

    load: float
    point: Point | None
    tried: tuple[tuple[float, bool], ...]


@dataclass(frozen=True, slots=True)
class KneeStudy:
    """The knees of one scenario under several seeds.

    Parameters
    ----------
    name : str
        Of the scenario.
    key : str
        Dotted path of the load.
    seeds : tuple of int (n,)
    knees : tuple of Knee (n,)
    gpus : int
        GPUs of the whole fleet.
    """

    name: str
    key: str
    seeds: tuple[int, ...]
    knees: tuple[Knee, ...]
    gpus: int

    @property
    def loads(self) -> tuple[float, ...]:
        """The knee of every seed."""
        return tuple(knee.load for knee in self.knees)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.loads))

    def interval(self) -> tuple[float, float]:
        """Return both ends of the 95% interval of the mean; NaN with one seed."""
        return student_interval(self.loads)

    def table(self) -> pd.DataFrame:
        """Return a row per seed: seed, load, load per GPU, runs simulated."""
        import pandas as pd

        rows = [
            (seed, knee.load, knee.load / self.gpus, len(knee.tried))
            for seed, knee in zip(self.seeds, self.knees, strict=True)
        ]
        return pd.DataFrame(rows, columns=["seed", "load", "load_per_gpu", "runs"])


def load_key(scenario: Scenario) -> str:
    """Return the dotted path that scales a scenario's load.

    Raises
    ------
    InputError
        If the load of its arrivals is no rate (a closed loop).
    """
    traffic = scenario.traffic
    if traffic.trace is not None:
        return "traffic.trace.rate_scale"
    assert traffic.arrivals is not None
    if "rate_rps" in traffic.arrivals.params:
        return "traffic.arrivals.rate_rps"
    message = f"{traffic.arrivals.kind} has no rate to search over."
    fault = Fault("", "traffic.arrivals", message, "Name the path with `key`.")
    raise InputError(scenario.name, [fault])


def find_knee(
    scenario: Scenario,
    promise: Promise | None = None,
    key: str | None = None,
    tolerance_frac: float = TOLERANCE_FRAC,
    store: PointStore | None = None,
) -> Knee:
    """Search the largest load that one scenario holds, under its own seed.

    Parameters
    ----------
    scenario : Scenario
        Its own load is where the search begins.
    promise : Promise, optional
        The scenario's SLO when absent.
    key : str, optional
        Dotted path of the load; found by `load_key` when absent.
    tolerance_frac : float
        Above 0.
    store : PointStore, optional
        Keeps the runs; nothing is kept when absent.

    Raises
    ------
    InputError
        If the load has no path, or is no number.
    """
    promise = promise or Promise()
    path = key or load_key(scenario)
    store = store or PointStore(None)
    needed = scenario.slo.attained_frac if scenario.slo.objectives().is_set else None
    tried: list[tuple[float, bool]] = []
    held: dict[float, Point] = {}

    def holds(load: float) -> bool:
        point = store.point(scenario.override({path: load}))
        kept = promise.kept(point, needed)
        tried.append((load, kept))
        if kept:
            held[load] = point
        return kept

    low, high = _bracket(_load_of(scenario, path), holds)
    while low > 0 and math.isfinite(high) and high > low * (1 + tolerance_frac):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    load = math.inf if math.isinf(high) else low
    return Knee(load, held.get(low), tuple(tried))


def _bracket(start: float, holds: Callable[[float], bool]) -> tuple[float, float]:
    """Return a load that holds and one that does not; 0 or infinity where there is none."""
    load = start
    if holds(load):
        for _ in range(MOST_DOUBLINGS):
            if not holds(load * FIRST_STEP):
                return load, load * FIRST_STEP
            load *= FIRST_STEP
        return load, math.inf
    for _ in range(MOST_DOUBLINGS):
        if holds(load / FIRST_STEP):
            return load / FIRST_STEP, load
        load /= FIRST_STEP
    return 0.0, load


def _load_of(scenario: Scenario, path: str) -> float:
    found: Any = scenario.resolved()
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or found <= 0:
        message = f"read {found!r}, but a load to start from is a positive number."
        raise InputError(scenario.name, [Fault("", path, message)])
    return float(found)


def find_knees(
    scenario: Scenario,
    seeds: Sequence[int],
    promise: Promise | None = None,
    key: str | None = None,
    tolerance_frac: float = TOLERANCE_FRAC,
    jobs: int = -1,
    report: Report | None = None,
) -> KneeStudy:
    """Search the knee of a scenario under several seeds.

    Parameters
    ----------
    scenario : Scenario
    seeds : sequence of int
        At least one.
    promise, key, tolerance_frac
        As for `find_knee`.
    jobs : int
        Processes; -1 for one per core.
    report : callable, optional
        Called with (seeds done, seeds in all).

    Raises
    ------
    InputError
        If there is no seed, the tolerance is not positive, or the load has no path.
    """
    faults = []
    if not seeds:
        faults.append(Fault("", "seeds", "is empty."))
    if not tolerance_frac > 0:
        faults.append(Fault("", "tolerance_frac", f"{tolerance_frac}, must be above 0."))
    if faults:
        raise InputError("knee", faults)
    path = key or load_key(scenario)
    _load_of(scenario, path)
    seeded = [scenario.override({"seed": seed}) for seed in seeds]
    tasks = [(each, promise, path, tolerance_frac) for each in seeded]
    knees = []
    for done, knee in enumerate(run_in_order(find_knee, tasks, jobs), 1):
        knees.append(knee)
        if report is not None:
            report(done, len(seeds))
    gpus = sum(pool.gpus for pool in scenario.fleet.pools.values())
    return KneeStudy(scenario.name, path, tuple(seeds), tuple(knees), gpus)
