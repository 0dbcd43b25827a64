"""A planned fleet under other circumstances: more traffic, burstier, longer, dearer operators."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import yaml

from llmsim.core.errors import InputError
from llmsim.core.files import write_whole
from llmsim.core.paths import cache_folder
from llmsim.planner.judging import bounds, decided
from llmsim.planner.plan import Plan
from llmsim.planner.reading import read_plan
from llmsim.planner.requests import KIND, write_requests
from llmsim.planner.simulating import points_of
from llmsim.planner.traffic import sample_of
from llmsim.scenario import Scenario
from llmsim.study.draws import draw_costs
from llmsim.study.executor import Executor, Workers, open_workers
from llmsim.study.points import Point, PointStore

OUTLOOK: Final = "outlook.json"
"""File of a plan's folder."""

LOADS: Final = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
"""Times the planned rate, in order, up to the first that breaks the promise."""

NEAR: Final = 1.1
"""The load that breaks the promise is sought until it is less than so many times one that holds."""

OTHER: Final = 1.25
"""Times the planned burstiness and lengths."""

FIRST_SEED: Final = 2_000_000
"""Seeds lie so far from those that had a part in finding or confirming the plan."""

CONFIDENCE_FRAC: Final = 0.95
"""Of each bound, over all looks together."""

LOOKS: Final = (1, 2, 4)
"""Times the seeds asked for: more are simulated as long as these do not decide."""

Floats = npt.NDArray[np.float64]

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Tried:
    """The planned fleet under one circumstance.

    Parameters
    ----------
    what : str
        ``rate``, ``burstiness``, ``prompts`` or ``outputs``.
    factor : float
        Times as planned.
    seeds, overloaded : int
        Runs, and those in which the fleet did not keep up.
    attained_frac, low_frac, high_frac : float
        Mean share of requests that kept every limit, with its confidence bounds.
    kept : bool
        Whether the lower bound reaches the target, and no run was overloaded.
    sure : bool
        Whether that is decided: false where no run was overloaded and the target lies within the
        bounds.
    by_limit : dict of str to float
        Share of requests that kept each limit.
    busiest_frac, kv_peak_frac : float
        Busy share of the busiest replica, and highest use of KV memory, means over the seeds.
    preemptions : float
        Mean over the seeds.
    power_w : float [W]
        Of all GPUs, mean over the seeds.
    joules_per_output_token : float [J/token]
    """

    what: str
    factor: float
    seeds: int
    overloaded: int
    attained_frac: float
    low_frac: float
    high_frac: float
    kept: bool
    by_limit: dict[str, float]
    busiest_frac: float
    kv_peak_frac: float
    preemptions: float
    power_w: float
    joules_per_output_token: float
    sure: bool = True

    @property
    def word(self) -> str:
        """Whether the promise is kept, in a word or two."""
        if self.kept:
            return "kept"
        if not self.sure:
            return "not sure"
        return "overloaded" if self.overloaded else "not kept"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a planned fleet stands.

    Parameters
    ----------
    headroom : tuple of Tried
        By rate, in order; the first that breaks the promise is close to the one before.
    sensitivity : tuple of Tried
        One circumstance at a time.
    met_frac : float or None
        Share of draws of the operators' prices in which the promise is kept: P(SLO met) as far as
        the error of the cost model goes; None where none was drawn.
    draws : int
    left_out : tuple of str
        What could not be tried, and why.
    """

    headroom: tuple[Tried, ...]
    sensitivity: tuple[Tried, ...]
    met_frac: float | None
    draws: int
    left_out: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write ``outlook.json`` into a plan's folder."""
        from pydantic import TypeAdapter

        told = TypeAdapter(Outlook).dump_python(self, mode="json")
        write_whole(folder / OUTLOOK, json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Outlook | None:
        """Return what `save` wrote; None where nothing was."""
        from pydantic import TypeAdapter

        path = folder / OUTLOOK
        if not path.is_file():
            return None
        return TypeAdapter(Outlook).validate_json(path.read_text(encoding="utf-8"))


def look_ahead(
    plan: Plan,
    seeds: int = 3,
    draws: int = 10,
    executor: Executor | None = None,
    tell: Tell | None = None,
) -> Outlook:
    """Simulate a planned fleet under other circumstances than those that it was planned for.

    Runs are kept by content, as those of plans are; draws of the operators' prices are not.

    Parameters
    ----------
    plan : Plan
    seeds : int
        Of each circumstance, at least 2, and up to four times as many where these do not decide;
        the same for all, and none that the plan has seen.
    draws : int
        Of the operators' prices; 0 for none.
    executor : Executor, optional
        Where to simulate; all cores of this machine when absent.
    tell : callable, optional
        Called with (what, done, whole or None).
    """
    with open_workers(executor or Executor()) as workers:
        return _looked(plan, seeds, draws, workers, tell or _untold)


def _untold(what: str, done: int, whole: int | None) -> None:
    """Tell nobody."""


def _looked(plan: Plan, seeds: int, draws: int, workers: Workers, tell: Tell) -> Outlook:
    scenario = Scenario.parse(yaml.safe_load(plan.scenario_yaml))
    trace = scenario.traffic.trace is not None
    if trace:  # each seed draws its blocks anew
        block_s = read_plan(yaml.safe_load(plan.plan_yaml)).keys.prove.block_s
        scenario = scenario.override({"traffic.resample_s": block_s})
    target = plan.slo.get("attained_frac", 1.0)
    left_out: list[str] = []
    store = PointStore.default("plan")
    tried = 0

    def attempt(what: str, factor: float, change: Mapping[str, object]) -> Tried:
        nonlocal tried
        first = scenario.seed + FIRST_SEED
        points: list[Point] = []
        for look in LOOKS:
            more = range(len(points), look * seeds)
            seeded = [scenario.override({**change, "seed": first + n}) for n in more]
            points += points_of(seeded, workers, store)
            made = _tried(what, factor, points, target)
            if made.sure:
                break
        tried += 1
        tell("other circumstances", tried, None)
        return made

    def at_load(factor: float) -> Tried | None:
        change = _more_traffic(scenario, factor)
        return None if change is None else attempt("rate", factor, change)

    headroom = _headroom(at_load)
    if not headroom:
        left_out.append("more traffic: this traffic has no rate that can be changed")
    sensitivity = []
    for what, make in (("burstiness", _burstier), ("prompts", _longer), ("outputs", _longer)):
        folder = cache_folder() / "plan-requests"
        change = recorded_otherwise(scenario, what, folder) if trace else make(scenario, what)
        if change is None and trace:
            left_out.append(f"{what}: prompts of this trace share prefixes, which would be lost")
        elif change is None:
            left_out.append(f"{what}: this traffic has no such number that can be changed")
        else:
            sensitivity.append(attempt(what, OTHER, change))
    met, made = _under_draws(scenario, draws, workers, tell, left_out)
    return Outlook(tuple(headroom), tuple(sensitivity), met, made, tuple(left_out))


def _headroom(at_load: Callable[[float], Tried | None]) -> list[Tried]:
    """Return loads in order: up to the first that breaks the promise, and that closed in."""
    found: list[Tried] = []
    for factor in LOADS:
        made = at_load(factor)
        if made is None:
            return found
        found.append(made)
        if not made.kept:
            break
    if found[-1].kept or len(found) == 1:
        return found
    held, broke = found[-2].factor, found[-1].factor
    while broke >= NEAR * held:
        made = at_load((held + broke) / 2)
        assert made is not None
        found.append(made)
        held, broke = (made.factor, broke) if made.kept else (held, made.factor)
    return sorted(found, key=lambda each: each.factor)


def _tried(what: str, factor: float, points: Sequence[Point], target: float) -> Tried:
    def mean(name: str) -> float:
        values = [point.values.get(name, math.nan) for point in points]
        return math.fsum(values) / len(values)

    attained = [point.values["slo_attained_frac"] for point in points]
    requests = [point.values["requests"] for point in points]
    low, high = bounds(attained, requests, (1 - CONFIDENCE_FRAC) / len(LOOKS))
    overloaded = sum(point.verdict == "overloaded" for point in points)
    verdict = decided(points, low, high, target)
    by_limit = {
        limit: value
        for limit in ("ttft", "tpot", "itl", "e2e")
        if not math.isnan(value := mean(f"slo_{limit}_attained_frac"))
    }
    return Tried(
        what=what,
        factor=factor,
        seeds=len(points),
        overloaded=overloaded,
        attained_frac=math.fsum(attained) / len(attained),
        low_frac=low,
        high_frac=high,
        kept=verdict == "passed",
        sure=verdict != "undecided",
        by_limit=by_limit,
        busiest_frac=mean("busy_max_frac"),
        kv_peak_frac=mean("kv_used_peak_frac"),
        preemptions=mean("preemptions"),
        power_w=mean("power_mean_w"),
        joules_per_output_token=mean("joules_per_output_token"),
    )


def _more_traffic(scenario: Scenario, factor: float) -> dict[str, object] | None:
    """Return the same time at another rate, or a trace played faster; None if neither can be."""
    traffic = scenario.traffic
    if traffic.trace is not None:
        played = traffic.trace.params.get("rate_scale", 1.0)
        return {"traffic.trace.rate_scale": played * factor}
    rate = None if traffic.arrivals is None else traffic.arrivals.params.get("rate_rps")
    if rate is None:
        return None
    change: dict[str, object] = {"traffic.arrivals.rate_rps": rate * factor}
    if traffic.requests is not None:
        change["traffic.requests"] = round(traffic.requests * factor)
    return change


def recorded_otherwise(scenario: Scenario, what: str, folder: Path) -> dict[str, object] | None:
    """Return a trace whose requests are burstier or longer; None where prompts share prefixes.

    Parameters
    ----------
    scenario : Scenario
        With a trace.
    what : str
        ``burstiness``, ``prompts`` or ``outputs``.
    folder : Path
        Where it is written.
    """
    sample = sample_of(scenario.override({"traffic.resample_s": None}))
    if sample.shares_prefixes:
        return None
    arrival_s, prompts, outputs = sample.arrival_s, sample.prompt_tokens, sample.output_tokens
    if what == "burstiness":
        burstier = stretched(np.diff(arrival_s), OTHER)
        arrival_s = arrival_s[0] + np.concatenate(([0.0], np.cumsum(burstier)))
    elif what == "prompts":
        prompts = np.rint(prompts * OTHER).astype(np.int64)
    else:
        outputs = np.rint(outputs * OTHER).astype(np.int64)
    path = write_requests(arrival_s, prompts, outputs, folder)
    return {"traffic.trace": {"kind": KIND, "path": str(path)}}


def stretched(gaps_s: Floats, factor: float) -> Floats:
    """Return times between arrivals that vary so much more, in their order and with their sum.

    Each is raised to one power, which is found by bisection: short ones get shorter, long ones
    longer, bursts stay where they are.

    Parameters
    ----------
    gaps_s : ndarray of float (n,) [s]
    factor : float
        Of the coefficient of variation; as near as a power of 4 comes to it.
    """
    whole = float(gaps_s.sum())
    if not whole:
        return gaps_s

    def raised(power: float) -> Floats:
        found = gaps_s**power
        return np.asarray(found * (whole / found.sum()), dtype=np.float64)

    target = factor * float(gaps_s.std())  # the mean stays
    low, high = 1.0, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        if float(raised(middle).std()) < target:
            low = middle
        else:
            high = middle
    return raised(low)


def _burstier(scenario: Scenario, what: str) -> dict[str, object] | None:
    """Return arrivals whose times between one another vary more; None where there is no such."""
    del what
    arrivals = scenario.traffic.arrivals
    if arrivals is None or arrivals.kind not in ("poisson", "gamma"):
        return None
    cv = arrivals.params.get("cv", 1.0)
    kind = {"kind": "gamma", "rate_rps": arrivals.params["rate_rps"], "cv": cv * OTHER}
    return {"traffic.arrivals": kind}


def _longer(scenario: Scenario, what: str) -> dict[str, object] | None:
    """Return longer prompts or outputs; None where lengths have no mean that can be changed."""
    lengths = scenario.traffic.lengths
    word = what.removesuffix("s")
    params: dict[str, Any] = {} if lengths is None else lengths.params
    for key in (f"{word}_mean_tokens", f"{word}_tokens"):
        if isinstance(params.get(key), int | float):
            value = params[key] * OTHER
            whole = isinstance(params[key], int)
            return {f"traffic.lengths.{key}": round(value) if whole else value}
    return None


def _under_draws(
    scenario: Scenario, draws: int, workers: Workers, tell: Tell, left_out: list[str]
) -> tuple[float | None, int]:
    """Return the share of draws of the operators' prices in which the promise is kept."""
    if draws < 2:
        left_out.append("the cost model's error: no draws were asked for")
        return None, 0
    try:
        drawn = draw_costs(
            scenario,
            draws,
            workers=workers,
            report=lambda done, whole: tell("draws of prices", done, whole),
        )
    except InputError as error:
        left_out.append(f"the cost model's error: {error.faults[0].message}")
        return None, 0
    met = drawn.slo_met_frac
    return (None if math.isnan(met) else met), draws
