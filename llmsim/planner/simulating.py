"""Fleets put to the test: simulated under common seeds, as many as it takes to be sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from llmsim.planner.fleets import fleet_scenario
from llmsim.planner.judging import OF_POOL, Judged, Verdict, bounds, decided, weak_pools
from llmsim.planner.plan import Evidence
from llmsim.planner.work import Tell, Work
from llmsim.results.wording import share
from llmsim.scenario import Scenario
from llmsim.study.executor import Workers
from llmsim.study.points import Point, PointStore
from llmsim.study.single import simulate_whole

FRESH: Final = 1_000_000
"""Seeds of the confirmation lie so far from those of the search."""

LIMITS_OF: Final = {
    "mixed": ("slo_attained_frac",),
    "prefill": ("slo_ttft_attained_frac",),
    "decode": ("slo_tpot_attained_frac", "slo_itl_attained_frac", "slo_e2e_attained_frac"),
}
"""What the requests of a pool are judged by, by its role."""

Seeding = Literal["common", "fresh", "recorded"]
Known = tuple[str, bool, tuple[tuple[str, int], ...]]
"""By what a fleet is known: seeding, whether anything was lost, replicas by column."""


def simulate_fleet(scenario: Scenario) -> Point:
    """Simulate a fleet; its point also has what each pool's requests attained.

    Where prompts are handed over, a pool is judged by its own part: first tokens of prompts that it
    computed for others, the pace of what it decoded.

    Parameters
    ----------
    scenario : Scenario
    """
    result = simulate_whole(scenario)
    summary = result.evaluate()
    found = dict(result.by_pool)
    if scenario.fleet.hands_over:
        found |= result.by_prefill_pool
    pools = {}
    for name, values in found.items():
        limits = LIMITS_OF[scenario.fleet.pools[name].role]
        known = [v for key in limits if math.isfinite(v := values.get(key, math.nan))]
        pools[OF_POOL + name] = min(known, default=values["slo_attained_frac"])
    return Point(summary.values() | pools, result.digest, summary.verdict.value)


def points_of(scenarios: Sequence[Scenario], workers: Workers, store: PointStore) -> list[Point]:
    """Return the point of each scenario of a fleet, kept or simulated now.

    Parameters
    ----------
    scenarios : sequence of Scenario
    workers : Workers
    store : PointStore
        Keeps each as soon as it is done.
    """
    kept = [store.kept(each) for each in scenarios]
    missing = [number for number, point in enumerate(kept) if point is None]
    tasks = [(scenarios[number],) for number in missing]
    for index, point in workers.completed(simulate_fleet, tasks):
        store.keep(scenarios[missing[index]], point)
        kept[missing[index]] = point
    return [point for point in kept if point is not None]


@dataclass(slots=True)
class Laboratory:
    """Simulates fleets, each once; what it has simulated is kept on disk.

    Parameters
    ----------
    work : Work
    workers : Workers
    store : PointStore
    tell : callable or None
    """

    work: Work
    workers: Workers
    store: PointStore
    tell: Tell | None = None
    evidence: list[Evidence] = field(default_factory=list)
    _known: dict[Known, Judged] = field(default_factory=dict)

    @property
    def columns(self) -> set[str]:
        """Names of what may be bought."""
        return {column.name for column in self.work.candidates.columns}

    @property
    def fleets(self) -> int:
        """Fleets that were put to the test."""
        return sum(seeding == "common" for seeding, _, _ in self._known)

    def known(self) -> list[tuple[dict[str, int], Judged]]:
        """Return every fleet that was put to the test as the plan asks, and what came of it.

        One that failed without any loss of replicas counts, too: it fails with one all the more.
        """
        asked = self.work.lossy
        return [
            (dict(own), judged)
            for (seeding, lossy, own), judged in self._known.items()
            if seeding == "common" and (lossy == asked or not judged.passed)
        ]

    def undecided(self, below_usd_per_hour: float) -> int:
        """Return how many cheaper fleets attained enough in the mean, but not surely.

        Parameters
        ----------
        below_usd_per_hour : float [USD/h]
        """
        target = self.work.asked.keys.slo.attained_frac
        return sum(
            not judged.passed
            and not judged.overloaded
            and judged.attained_frac >= target
            and judged.evidence[0].usd_per_hour < below_usd_per_hour - 1e-6
            for (seeding, _, _), judged in self._known.items()
            if seeding == "common"
        )

    def judge(
        self,
        fleet: Mapping[str, int],
        stage: str,
        seeding: Seeding = "common",
        lossy: bool | None = None,
    ) -> Judged:
        """Simulate a fleet, and what is left of it when something is lost.

        Parameters
        ----------
        fleet : mapping of str to int [replicas]
            By column.
        stage : str
            For the evidence.
        seeding : {"common", "fresh", "recorded"}
            Under the seeds of all fleets, or under those that no search has seen, or the trace as
            it was recorded.
        lossy : bool, optional
            Whether anything is lost; as the plan says when absent.
        """
        if lossy is None:
            lossy = self.work.lossy
        own = tuple(sorted((name, count) for name, count in fleet.items() if count))
        known = (seeding, lossy, own)
        if known in self._known:
            return self._known[known]
        tests: list[tuple[str, dict[str, int]]] = [("", dict(own))]
        if lossy:
            # who bears the loss of some bears none
            losses = self.work.losses(dict(own))
            tests = [(what, _without(own, lost)) for what, lost in losses.items()]
        cost = math.fsum(self.work.price(name) * count for name, count in own)
        found: list[Evidence] = []
        weak: list[str] = []
        for lost, left in tests:
            begun = Evidence(
                stage, left, lost, cost, (), (), 0, 0.0, 1.0, False, "", (), None, None
            )
            seen, late = self._test(begun, seeding)
            found.append(seen)
            weak += late
            if not seen.passed:
                break
        self.evidence += found
        overloaded = any(each.overloaded for each in found)
        made = Judged(tuple(found), tuple(dict.fromkeys(weak)), overloaded)
        self._known[known] = made
        if self.tell is not None:
            self.tell("fleets simulated", self.fleets, None)
        return made

    def _test(self, begun: Evidence, seeding: Seeding) -> tuple[Evidence, tuple[str, ...]]:
        """Return what one fleet attains, and which of its pools attain too little."""
        work, fleet = self.work, self.work.complete(begun.replicas)
        divided = work.split(fleet) if fleet else None
        if divided is None:
            reason = "leaves a range of prompts unserved"
            return replace(begun, high_frac=0.0, reason=reason), (begun.lost,) * (
                begun.lost in self.columns
            )
        scenario = fleet_scenario(work.asked, work.candidates, work.ranges, fleet, divided)
        target = work.asked.keys.slo.attained_frac
        if seeding == "recorded":
            points = self._points(scenario, [work.asked.keys.seed])
            mean = points[0].values["slo_attained_frac"]
            verdict = decided(points, mean, 1.0, target)
            verdict = "failed" if verdict == "undecided" else verdict
            begun = replace(begun, low_frac=mean, high_frac=mean)
        else:
            points, low, high = self._looked_at(scenario, seeding)
            verdict = decided(points, low, high, target)
            begun = replace(begun, low_frac=low, high_frac=high)
        weak = weak_pools(points, fleet, target) if verdict != "passed" else ()
        return _seen(begun, self._first_seed(seeding), points, verdict, target), weak

    def _first_seed(self, seeding: Seeding) -> int:
        return self.work.asked.keys.seed + (FRESH if seeding == "fresh" else 0)

    def _looked_at(self, scenario: Scenario, seeding: Seeding) -> tuple[list[Point], float, float]:
        """Return runs under as many seeds as it takes, with the bounds of mean attainment."""
        keys = self.work.asked.keys
        if keys.traffic.trace is not None:
            scenario = scenario.override({"traffic.resample_s": keys.prove.block_s})
        points: list[Point] = []
        looks = sorted(set(keys.prove.seeds))
        low, high = 0.0, 1.0
        for look in looks:
            first = self._first_seed(seeding)
            points += self._points(scenario, [first + n for n in range(len(points), look)])
            low, high = bounds(
                [point.values["slo_attained_frac"] for point in points],
                [point.values["requests"] for point in points],
                (1 - keys.prove.confidence_frac) / len(looks),
            )
            if decided(points, low, high, keys.slo.attained_frac) != "undecided":
                break
        return points, low, high

    def _points(self, scenario: Scenario, seeds: Sequence[int]) -> list[Point]:
        """Return a point per seed, from disk or from all cores."""
        return points_of(
            [scenario.override({"seed": seed}) for seed in seeds], self.workers, self.store
        )


def _seen(
    begun: Evidence, first_seed: int, points: Sequence[Point], verdict: Verdict, target: float
) -> Evidence:
    """Return evidence with what the runs say."""
    attained = tuple(point.values["slo_attained_frac"] for point in points)
    overloaded = sum(point.verdict == "overloaded" for point in points)
    mean, low = share(float(np.mean(attained))), share(begun.low_frac)
    if verdict == "passed":
        reason = f"{mean} attained, at least {low}"
    elif overloaded:
        reason = f"overloaded in {overloaded} of {len(points)} seeds"
    elif verdict == "failed":
        reason = f"{mean} attained, {share(target)} promised"
    else:
        reason = f"{mean} attained, but only {low} is sure"
    return replace(
        begun,
        seeds=tuple(first_seed + number for number in range(len(points))),
        attained_frac=attained,
        overloaded=overloaded,
        passed=verdict == "passed",
        reason=reason,
        digests=tuple(point.digest for point in points),
        ttft_p99_s=_mean(points, "ttft_p99_s"),
        tpot_p99_s=_mean(points, "tpot_p99_s"),
    )


def _mean(points: Sequence[Point], name: str) -> float | None:
    values = [v for point in points if math.isfinite(v := point.values.get(name, math.nan))]
    return float(np.mean(values)) if values else None


def _without(own: Sequence[tuple[str, int]], lost: Mapping[str, int]) -> dict[str, int]:
    left = {name: count - lost.get(name, 0) for name, count in own}
    return {name: count for name, count in left.items() if count > 0}
