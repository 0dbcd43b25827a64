"""What a plan is made from: traffic, configurations, bursts; and the program's input from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from llmsim.core.errors import InputError
from llmsim.core.holding import holding
from llmsim.planner.candidates import Candidate, Candidates, find_candidates
from llmsim.planner.demand import Demand
from llmsim.planner.packing import pack
from llmsim.planner.pooling import Burst, levels, usable
from llmsim.planner.problem import Bucket, Column, Problem
from llmsim.planner.reading import Asked
from llmsim.planner.solving import Solver
from llmsim.planner.splitting import Split, split
from llmsim.planner.traffic import Range, Sample, ranges_of, sample_of

FIRST_FRACS: Final = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
"""Shares of the time to the last token that are tried for prompts, where nothing divides it."""

Tell = Callable[[str, int, int | None], None]
"""Called with (what is being done, how much of it is done, how much there is or None)."""


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that is known before a fleet is chosen.

    Parameters
    ----------
    asked : Asked
    sample : Sample
    ranges : tuple of Range
    demand : Demand
    candidates : Candidates
    bursts : mapping of str to Burst
        By column.
    """

    asked: Asked
    sample: Sample
    ranges: tuple[Range, ...]
    demand: Demand
    candidates: Candidates
    bursts: Mapping[str, Burst]

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The ranges, as buckets of the program."""
        return tuple(Bucket(part.name, part.rate_rps) for part in self.ranges)

    @property
    def solver(self) -> Solver:
        """How programs are solved."""
        keys = self.asked.keys.solve
        return Solver(keys.solver, max(keys.gap_frac, 1e-6), keys.time_limit_s)

    def problem(
        self,
        usable_frac: Mapping[str, float] | None = None,
        lossy: bool = False,
        pooled: bool = False,
    ) -> Problem:
        """Return the program's input.

        Parameters
        ----------
        usable_frac : mapping of str to float, optional
            By column: share of what the pool carries that may be used; all where absent.
        lossy : bool
            Whether replicas, nodes or a zone may be lost, as the plan says.
        pooled : bool
            Whether small pools carry less than their replicas' capacity.
        """
        keys = self.asked.keys
        columns = self.candidates.columns
        if pooled:
            columns = tuple(self._pooled(each, usable_frac or {}) for each in columns)
        limits = {
            gpu: offer.available for gpu, offer in keys.gpus.items() if offer.available is not None
        }
        there = {column.gpu for column in columns}
        names = {column.name for column in columns}
        current = {c.name: n for c, n in self.asked.current.items() if c.name in names}
        return Problem(
            self.buckets,
            columns,
            available_gpus={gpu: most for gpu, most in limits.items() if gpu in there},
            budget_usd_per_hour=keys.budget_usd_per_hour or math.inf,
            spare_replicas=keys.spare_replicas if lossy else 0,
            current=current,
            # what a change must save is no cost, and has no place in a bound
            change_usd_per_hour=keys.change_usd_per_hour if pooled else 0.0,
            port_usable_frac=keys.search.port_frac,
            spare_nodes=keys.spare_nodes if lossy else 0,
            zones=keys.zones if lossy else 0,
        )

    @property
    def lossy(self) -> bool:
        """Whether the plan must stand the loss of anything."""
        keys = self.asked.keys
        return bool(keys.spare_replicas or keys.spare_nodes or keys.zones)

    def spare(self, column: str) -> int:
        """Return how many replicas of a column may be lost, beside a zone's.

        Parameters
        ----------
        column : str
        """
        keys = self.asked.keys
        node = self.candidates.of(column).column.node_replicas
        return max(keys.spare_replicas, keys.spare_nodes * node)

    def complete(self, fleet: Mapping[str, int]) -> dict[str, int]:
        """Return a fleet without replicas that can do nothing: prompts alone, or outputs alone.

        Parameters
        ----------
        fleet : mapping of str to int [replicas]
        """
        role = {name: self.candidates.of(name).role for name, count in fleet.items() if count}
        paired = {"prefill", "decode"} <= set(role.values())
        return {name: fleet[name] for name, each in role.items() if paired or each == "mixed"}

    def losses(self, fleet: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Return what a fleet may lose at a time, by what is lost: a column's name, or ``zone``.

        Parameters
        ----------
        fleet : mapping of str to int [replicas]
        """
        found = {name: {name: lost} for name in fleet if (lost := self.spare(name))}
        zones = self.asked.keys.zones
        if zones:
            found["zone"] = {name: -(-count // zones) for name, count in fleet.items()}
        return found

    def price(self, column: str) -> float:
        """Return what a replica costs [USD/h].

        Parameters
        ----------
        column : str
        """
        return self.candidates.of(column).column.usd_per_hour

    def carried(self, column: str, replicas: int) -> float:
        """Return what a pool carries [replicas], bursts and size considered.

        Parameters
        ----------
        column : str
        replicas : int
        """
        if replicas < 1:
            return 0.0
        slots = self.candidates.of(column).slots
        return usable(replicas, slots, self.bursts[column])

    def split(self, fleet: Mapping[str, int], even: bool = False) -> Split | None:
        """Return the most even split over a fleet; None where a range has no pool.

        Parameters
        ----------
        fleet : mapping of str to int [replicas]
        even : bool
            As if requests came evenly, so that a pool carries its replicas' capacity.
        """
        columns = {name: self.candidates.of(name).column for name in fleet}
        carried = {
            name: float(count) if even else max(self.carried(name, count), 1e-9)
            for name, count in fleet.items()
            if count
        }
        usable_frac = self.asked.keys.search.port_frac
        ports = {
            name: usable_frac * columns[name].port_bytes_per_s * count
            for name, count in fleet.items()
        }
        return split(self.buckets, columns, carried, ports)

    def _pooled(self, column: Column, usable_frac: Mapping[str, float]) -> Column:
        share = usable_frac.get(column.name, 1.0)
        able = [bucket for bucket in self.buckets if bucket.name in column.throughput_rps]
        load = math.fsum(b.rate_rps * column.load_per_rps(b.name) for b in able)
        slots, burst = self.candidates.of(column.name).slots, self.bursts[column.name]
        found = levels(load / share, slots, burst)
        return replace(
            column,
            usable=tuple(share * each for each in found),
            usable_beyond=share * found[-1] / len(found),
        )


def prepare(asked: Asked, tell: Tell | None = None) -> Work:
    """Read traffic and price every configuration.

    Parameters
    ----------
    asked : Asked
    tell : callable, optional

    Raises
    ------
    InputError
        If there is no traffic, or the SLO cannot be kept.
    """
    try:
        sample = sample_of(asked.scenario)
    except InputError as error:
        if error.source == "plan":
            raise asked.located(error.faults) from None
        raise
    ranges, demand = ranges_of(sample)
    report = None if tell is None else lambda done, whole: tell("configurations", done, whole)

    def priced(asked: Asked) -> Work:
        found = find_candidates(asked, demand, ranges, report)
        every = {each.column.name: each for each in (*found.kept, *found.current.values())}
        bursts = {name: _burst(asked, sample, demand, each) for name, each in every.items()}
        return Work(asked, sample, ranges, demand, found, bursts)

    with holding():
        if not asked.undivided:
            return priced(asked)
        return _divided([replace(asked, first_frac=frac) for frac in FIRST_FRACS], priced)


def _divided(ways: Sequence[Asked], priced: Callable[[Asked], Work]) -> Work:
    """Return the work of the division whose program with room for bursts is the cheapest.

    Of equal ones, or where no division leaves that room, the one whose naive program is.
    """
    best: tuple[tuple[float, float], Work] | None = None
    refused: list[InputError] = []
    for way in ways:
        try:
            work = priced(way)
        except InputError as error:
            refused.append(error)
            continue
        # rounded: what solvers differ by in the last digits is no difference
        cost = (round(_cost(work, pooled=True), 6), round(_cost(work, pooled=False), 6))
        if best is None or cost < best[0]:
            best = (cost, work)
    if best is None:
        raise refused[0]
    return best[1]


def _cost(work: Work, pooled: bool) -> float:
    """Return what a program's fleet costs; infinite where it has none, which the plan tells."""
    try:
        return pack(work.problem(pooled=pooled), work.solver).usd_per_hour
    except InputError:
        return math.inf


def _burst(asked: Asked, sample: Sample, demand: Demand, of: Candidate) -> Burst:
    """Return how uneven traffic is for one configuration, in its own service times."""
    rates = {bucket.name: bucket.rate_rps for bucket in demand.buckets}
    times = {
        name: each.batch / each.rate_rps for name, each in of.capacity.items() if each.rate_rps
    }
    whole = math.fsum(rates[name] for name in times)
    service_s = math.fsum(rates[name] * time_s for name, time_s in times.items()) / whole
    slo = asked.scenario.slo.objectives()
    if of.role == "prefill":
        return _prompt_burst(asked, sample, of, service_s)
    room_s = 0.0
    if slo.ttft_s is not None and slo.tpot_s is None:
        firsts = math.fsum(rates[name] * of.capacity[name].ttft_s for name in times) / whole
        room_s = max(slo.ttft_s - firsts, 0.0)
    return Burst(
        sample.dispersion(service_s), sample.output_scv, room_s / service_s, 1 - slo.attained_frac
    )


def _prompt_burst(asked: Asked, sample: Sample, of: Candidate, service_s: float) -> Burst:
    """Return how uneven prompts are for a replica that computes them one after another."""
    slo = asked.scenario.slo.objectives()
    firsts_s = slo.e2e_s if slo.ttft_s is None else slo.ttft_s
    if asked.undivided and slo.e2e_s is not None:
        firsts_s = asked.first_frac * slo.e2e_s
    room_s = math.inf if firsts_s is None else max(firsts_s - service_s, 0.0)
    # what comes within the allowed wait is what a queue of prompts is made of
    window_s = max(service_s, min(room_s, sample.duration_s / 10))
    late = 1 - slo.attained_frac
    return Burst(sample.dispersion(window_s), sample.prompt_scv, room_s / service_s, late)
