"""The loop between programs and simulation: correct, cut, trim, confirm.

A program proposes a fleet. If the simulated fleet keeps the promise, it is trimmed; if not, no
fleet that is nowhere larger is proposed again, and pools whose requests were late count for less. A
second program, without any room for bursts but with the same cuts, gives the bound, and proposes
what is cheaper than the best so far, filled up to just below its cost: it passes more easily, and
rules out more where it fails. The answer is then simulated under seeds that had no part in finding
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from llmsim.core.errors import InputError
from llmsim.planner.judging import Judged
from llmsim.planner.packing import Packed, pack
from llmsim.planner.plan import Outcome
from llmsim.planner.simulating import Laboratory
from llmsim.planner.work import Work

DEFLATION: Final = 0.93
"""A pool that missed is believed to carry so much of what it was believed to carry."""

STEEP_DEFLATION: Final = 0.8
"""The same where it was overloaded, or missed by more than `FAR_FRAC`."""

FAR_FRAC: Final = 0.15

CONFIRMATIONS: Final = 4
"""Fleets that may fail under fresh seeds before the search gives up."""

HOPELESS: Final = 1.15
"""A fleet whose busiest pool has so many times the load that it carries is not simulated."""

PROGRAM_S: Final = 15.0
"""Longest search of one program [s]: there are many, and a bound holds whenever it is cut off."""

EPS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Proven:
    """What the loop ends with.

    Parameters
    ----------
    fleet : mapping of str to int [replicas]
        The best that passed; else the last that was tried.
    outcome : str
        As in `Plan`.
    reason : str
    floor : float [USD/h]
        No fleet that passes costs less, on the assumptions of the bound and if more replicas never
        serve worse.
    relief : float
        So many times what its replicas are believed to carry a fleet that passed does carry; the
        bound allows it to all. 1 where none does.
    """

    fleet: Mapping[str, int]
    outcome: Outcome
    reason: str
    floor: float
    relief: float


@dataclass(slots=True)
class Loop:
    """One search.

    Parameters
    ----------
    work : Work
    laboratory : Laboratory
    most_fleets : int or None
        Fleets that the laboratory may have simulated in the end; as the plan says when None.
    """

    work: Work
    laboratory: Laboratory
    most_fleets: int | None = None
    failed: list[dict[str, int]] = field(default_factory=list)
    usable_frac: dict[str, float] = field(default_factory=dict)
    best: dict[str, int] | None = None
    floor: float = 0.0
    relief: float = 1.0
    last: dict[str, int] = field(default_factory=dict)

    def run(self, first: Mapping[str, int]) -> Proven:
        """Search until a fleet is shown to do, and cheaper ones are ruled out or too many.

        Parameters
        ----------
        first : mapping of str to int [replicas]
            The fleet to begin with.
        """
        misses = 0
        self._learn()
        self._offer(dict(first), "pooled")
        while True:
            self._find()
            if self.best is None:
                return self._without_any()
            self._trim()
            closed = self._close_in()
            best = self.best
            if self._confirm(best):
                return self._answer(best, closed)
            misses += 1
            self.failed.append(best)
            self.best = None
            if misses >= CONFIRMATIONS or not self._left():
                return self._without_any()

    def _left(self) -> bool:
        most = self.most_fleets or self.work.asked.keys.prove.most_fleets
        return self.laboratory.fleets < most

    def settle(self, first: Mapping[str, int]) -> dict[str, int] | None:
        """Return a fleet that passes and from which nothing can be taken; None if none is found.

        Parameters
        ----------
        first : mapping of str to int [replicas]
            The fleet to begin with.
        """
        self._learn()
        self._offer(dict(first), "rival")
        self._find()
        self._trim()
        return self.best

    def _cost(self, fleet: Mapping[str, int]) -> float:
        return math.fsum(self.work.price(name) * count for name, count in fleet.items())

    def _learn(self) -> None:
        """Take over what is known of fleets that might be bought."""
        names = {column.name for column in self.work.candidates.columns}
        for fleet, judged in self.laboratory.known():
            if not set(fleet) <= names:
                continue
            if not judged.passed:
                self.failed.append(fleet)
            elif self._allowed(fleet):
                self._relieve(judged)
                if self.best is None or self._cost(fleet) < self._cost(self.best):
                    self.best = fleet

    def _allowed(self, fleet: Mapping[str, int]) -> bool:
        """Whether there are as many GPUs, and as much money."""
        keys = self.work.asked.keys
        taken: dict[str, int] = {}
        for name, count in fleet.items():
            column = self.work.candidates.of(name).column
            taken[column.gpu] = taken.get(column.gpu, 0) + column.gpus * count
        offers = {gpu: keys.gpus[gpu].available for gpu in taken}
        enough = all(most is None or taken[gpu] <= most for gpu, most in offers.items())
        budget = keys.budget_usd_per_hour
        return enough and (budget is None or self._cost(fleet) <= budget + EPS)

    def _offer(self, fleet: dict[str, int], stage: str) -> bool:
        """Simulate a fleet; keep it if it is the best so far, learn from it if it fails."""
        judged = self.laboratory.judge(fleet, stage)
        self.last = fleet
        if judged.passed:
            if self.best is None or self._cost(fleet) < self._cost(self.best):
                self.best = fleet
            self._relieve(judged)
            return True
        if fleet not in self.failed:
            self.failed.append(fleet)
        self._deflate(judged)
        return False

    def _relieve(self, judged: Judged) -> None:
        """Believe of all replicas what those of a fleet that passed have shown."""
        for each in judged.evidence:
            divided = self.work.split(self.work.complete(each.replicas), even=True)
            if divided is not None:
                self.relief = max(self.relief, divided.peak)

    def _deflate(self, judged: Judged) -> None:
        target = self.work.asked.keys.slo.attained_frac
        far = judged.overloaded or judged.attained_frac < target - FAR_FRAC
        for name in judged.weak:
            factor = STEEP_DEFLATION if far else DEFLATION
            self.usable_frac[name] = self.usable_frac.get(name, 1.0) * factor

    def _find(self) -> None:
        """Propose fleets until one passes."""
        while self.best is None and self._left():
            packed = self._propose(pooled=True)
            if packed is None:
                # what pools are believed to carry may be too little; the cuts alone are certain
                packed = self._propose(pooled=False)
            if packed is None:
                return
            self._offer(dict(packed.replicas), "search")

    def _propose(self, pooled: bool) -> Packed | None:
        problem = self.work.problem(self.usable_frac, self.work.lossy, pooled)
        problem = replace(problem, failed=self._cuts())
        if not pooled:
            eased = (replace(b, rate_rps=b.rate_rps / self.relief) for b in problem.buckets)
            problem = replace(problem, buckets=tuple(eased))
        solver = self.work.solver
        solver = replace(solver, time_limit_s=min(solver.time_limit_s, PROGRAM_S))
        try:
            return pack(problem, solver, break_ties=False)
        except InputError:
            return None

    def _trim(self) -> None:
        """Take away a replica at a time, the dearest first, as long as the rest passes."""
        shrunk = True
        while shrunk and self.best is not None and self._left():
            shrunk = False
            for name in sorted(self.best, key=lambda name: -self.work.price(name)):
                fleet = {**self.best, name: self.best[name] - 1}
                fleet = self.work.complete(fleet)
                if not self._left() or not fleet or self._ruled_out(fleet):
                    continue
                if self._hopeless(fleet):
                    continue
                if self._offer(fleet, "trim"):
                    shrunk = True
                    break

    def _cuts(self) -> tuple[dict[str, int], ...]:
        """Return the fleets that failed, without those that another one rules out."""

        def within(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
            return all(count <= other.get(name, 0) for name, count in one.items())

        kept: list[dict[str, int]] = []
        for fleet in self.failed:
            if not any(within(fleet, other) for other in kept):
                kept = [other for other in kept if not within(other, fleet)] + [fleet]
        return tuple(kept)

    def _ruled_out(self, fleet: Mapping[str, int]) -> bool:
        """Whether a fleet that failed is nowhere smaller."""
        return any(
            all(count <= other.get(name, 0) for name, count in fleet.items())
            for other in self.failed
        )

    def _hopeless(self, fleet: Mapping[str, int]) -> bool:
        divided = self.work.split(fleet, even=True)
        return divided is None or divided.peak > HOPELESS

    def _close_in(self) -> bool:
        """Raise the bound until the best is near it; return whether it is."""
        while self.best is not None:
            packed = self._propose(pooled=False)
            if packed is None:  # nothing else is left
                self.floor = self._cost(self.best)
                return True
            bound = packed.proof.bound
            self.floor = bound if math.isfinite(bound) else 0.0
            tolerance = self.work.asked.keys.prove.tolerance_frac
            if self._cost(self.best) <= self.floor * (1 + tolerance) + EPS:
                return True
            cheaper = dict(packed.replicas)
            if not self._left() or self._cost(cheaper) >= self._cost(self.best) - EPS:
                return False
            if self._offer(self._grown(cheaper, self._cost(self.best)), "bound"):
                self._trim()
        return False

    def _grown(self, fleet: dict[str, int], below_usd_per_hour: float) -> dict[str, int]:
        """Return the fleet with all that can be added and still costs less.

        It passes more easily, and rules out more where it fails: all that is nowhere larger.
        """
        grown = dict(fleet)
        columns = self.work.candidates.columns
        for column in sorted(columns, key=lambda each: -each.usd_per_hour):
            if self.work.complete({**grown, column.name: 1}).keys() != {*grown, column.name}:
                continue  # half of what serves a request
            while True:
                more = {**grown, column.name: grown.get(column.name, 0) + 1}
                if self._cost(more) >= below_usd_per_hour - EPS or not self._allowed(more):
                    break
                grown = more
        return grown

    def _confirm(self, fleet: dict[str, int]) -> bool:
        """Simulate under seeds that had no part in the search, and the trace as recorded."""
        if not self.laboratory.judge(fleet, "confirm", "fresh").passed:
            return False
        if self.work.asked.keys.traffic.trace is None:
            return True
        return self.laboratory.judge(fleet, "recorded", "recorded").passed

    def _answer(self, fleet: dict[str, int], closed: bool) -> Proven:
        cost = self._cost(fleet)
        floor = min(self.floor, cost)
        unsure = self.laboratory.undecided(cost)
        if unsure:
            reason = (
                f"it passes; {unsure} cheaper fleets attained enough in the mean but not surely: "
                "more seeds or requests may decide"
            )
            return Proven(fleet, "simulated", reason, floor, self.relief)
        if cost <= floor * (1 + EPS):
            reason = "it passes, and nothing cheaper does, if more replicas never serve worse"
            return Proven(fleet, "proven", reason, floor, self.relief)
        if closed:
            tolerance = self.work.asked.keys.prove.tolerance_frac
            reason = f"it passes, and is within {tolerance:.0%} of what no fleet can be below"
            return Proven(fleet, "good enough", reason, floor, self.relief)
        tried = self.laboratory.fleets
        reason = f"it passes; after {tried} fleets a cheaper one was not ruled out"
        return Proven(fleet, "simulated", reason, floor, self.relief)

    def _without_any(self) -> Proven:
        tried = self.laboratory.fleets
        if self._left():
            reason = f"{tried} fleets failed, and what is allowed holds no larger one"
        else:
            reason = f"{tried} fleets failed; prove.most_fleets allows no more"
        return Proven(self.last, "not proven", reason, self.floor, self.relief)
