"""Configurations as columns of the program: what each sustains of every range of prompts.

Also the words for requests whose promise nothing keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmsim.core.errors import Fault
from llmsim.planner.capacity import Capacity, Limits, Shape
from llmsim.planner.columns import Choice, Lost, Scored, Space, search, without_dominated
from llmsim.planner.demand import Demand
from llmsim.planner.problem import Column, Role, served
from llmsim.planner.reading import POOL, Asked
from llmsim.planner.shortlist import shortlist
from llmsim.planner.traffic import Range
from llmsim.results.slo import Slo
from llmsim.results.wording import share

Report = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration with what it sustains of every range.

    Parameters
    ----------
    choice : Choice
    column : Column
        Buckets are the ranges; a range that too many of its requests would be late in is absent.
    capacity : mapping of str to Capacity
        By bucket of the demand; of requests that are late in any case, without a promise.
    late_frac : mapping of str to float
        By range: share of its requests that cannot be kept the promise.
    in_flight : float [requests]
        That one replica has at a time when it carries all it can of the whole traffic; of prompts
        alone, that may wait there with the last of them still in time.
    slots : float [requests]
        That one replica serves at a time: prompts one after another, all others together.
    """

    choice: Choice
    column: Column
    capacity: Mapping[str, Capacity]
    late_frac: Mapping[str, float]
    in_flight: float
    slots: float

    @property
    def role(self) -> Role:
        """What it computes."""
        return self.column.role

    def bound(self, demand: Demand) -> str:
        """Return what keeps it from more, by the load of the buckets that say so.

        Parameters
        ----------
        demand : Demand
        """
        load: dict[str, float] = {}
        for bucket in demand.buckets:
            found = self.capacity[bucket.name]
            if found.rate_rps > 0:
                load[found.bound] = load.get(found.bound, 0) + bucket.rate_rps / found.rate_rps
        return max(load, key=lambda word: load[word], default="none")


@dataclass(frozen=True, slots=True)
class Candidates:
    """All configurations that may be bought.

    Parameters
    ----------
    kept : tuple of Candidate
    lost : tuple of Lost
        The others, and why.
    current : mapping of Choice to Candidate
        What runs today, where it serves anything in time, whether or not it may be of use.
    """

    kept: tuple[Candidate, ...]
    lost: tuple[Lost, ...]
    current: Mapping[Choice, Candidate]

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of those that are kept."""
        return tuple(each.column for each in self.kept)

    def of(self, name: str) -> Candidate:
        """Return the candidate of a column.

        Parameters
        ----------
        name : str
        """
        return next(
            each for each in (*self.kept, *self.current.values()) if each.column.name == name
        )


def limits_of(slo: Slo, demand: Demand, first_frac: float = 0.5) -> dict[str, Limits]:
    """Return what each bucket is promised; gaps between tokens are left to simulation.

    Parameters
    ----------
    slo : Slo
    demand : Demand
    first_frac : float
        As of `Limits`.
    """

    def limit(shape: Shape) -> Limits:
        ttft_s = math.inf if slo.ttft_s is None else slo.ttft_s
        ttft_s += slo.ttft_per_prompt_token_s * shape.prompt_tokens
        # one token has no TPOT
        free = slo.tpot_s is None or shape.output_tokens == 1
        tpot_s = math.inf if free or slo.tpot_s is None else slo.tpot_s
        e2e_s = math.inf if slo.e2e_s is None else slo.e2e_s
        return Limits(ttft_s, tpot_s, e2e_s, first_frac)

    return {name: limit(shape) for name, shape in demand.shapes.items()}


def find_candidates(
    asked: Asked, demand: Demand, ranges: Sequence[Range], report: Report | None = None
) -> Candidates:
    """Return what every configuration sustains, without those that are of no use.

    Parameters
    ----------
    asked : Asked
    demand : Demand
    ranges : sequence of Range
    report : callable, optional
        Called with (GPU cards done, all).

    Raises
    ------
    InputError
        If more requests than the SLO allows are late on everything.
    """
    slo = asked.scenario.slo.objectives()
    limits = limits_of(slo, demand, asked.first_frac)
    scored: list[Scored] = []
    lost: list[Lost] = []
    for number, (gpu, price) in enumerate(asked.usd_per_gpu_hour.items(), 1):
        priced = asked.scenario.override(
            {f"fleet.pools.{POOL}.gpu": gpu, f"fleet.pools.{POOL}.gpu_price_usd_per_hour": price}
        )
        spaces = [asked.space(gpu)]
        tried = {choice for space in spaces for choice in space.choices()}
        spaces += [_only(each) for each in asked.current if each.gpu == gpu and each not in tried]
        for space in spaces:
            found = search(
                priced,
                space,
                demand.shapes,
                limits,
                prune=False,
                late=True,
                handoff=asked.keys.handoff,
            )
            scored += found.kept
            lost += found.lost
        if report is not None:
            report(number, len(asked.usd_per_gpu_hour))
    least = {part.name: LeastLate.of(scored, demand, part) for part in ranges}
    faults = list(_impossible(scored, lost, demand, ranges, limits, slo, least))
    if faults:
        raise asked.located(faults)
    target = slo.attained_frac
    whole = [_candidate(each, demand, ranges, limits, least, target) for each in scored]
    current = {each.choice: each for each in whole if each.choice in asked.current}
    useful, idle = _useful(whole)
    kept, beaten = without_dominated([Scored(c.choice, c.column, c.capacity) for c in useful])
    names = {each.column.name for each in current.values()}
    far: dict[str, str] = {}
    for role in asked.keys.search.roles:
        own = [each.column for each in kept if each.column.role == role]
        columns, left_out = shortlist(own, asked.keys.search.most_columns)
        names |= {each.name for each in columns}
        far |= left_out
    left = tuple(each for each in useful if each.column.name in names)
    named = {each.column.name: each.choice for each in useful}
    out = [each for each in beaten if each.choice not in current]
    out += [Lost(named[name], told) for name, told in far.items() if named[name] not in current]
    return Candidates(left, (*lost, *idle, *out), current)


def _only(choice: Choice) -> Space:
    return Space(
        (choice.gpu,),
        (choice.tp,),
        (choice.pp,),
        (choice.ep,),
        (choice.quantisation,),
        (choice.max_num_seqs,),
        (choice.max_num_batched_tokens,),
        (choice.clock_frac,),
        choice.gpus,
        (choice.dp,),
        (choice.role,),
    )


def _late_frac(scored: Scored, demand: Demand, part: Range) -> float:
    """Return the share of a range's requests that a configuration cannot keep the promise."""
    rates = {bucket.name: bucket.rate_rps for bucket in demand.buckets}
    late = sum(rates[name] for name in part.buckets if not scored.capacity[name].rate_rps)
    return late / part.rate_rps


@dataclass(frozen=True, slots=True)
class LeastLate:
    """Share of a range's requests that nothing keeps the promise, by who computes.

    Parameters
    ----------
    by_role : mapping of str to float
        By role: of the configuration that is late for the fewest; 1 where there is none.
    """

    by_role: Mapping[Role, float]

    @classmethod
    def of(cls, scored: Sequence[Scored], demand: Demand, part: Range) -> LeastLate:
        """Return the least of what configurations are late for in a range."""
        found: dict[Role, float] = {"mixed": 1.0, "prefill": 1.0, "decode": 1.0}
        for each in scored:
            role = each.column.role
            found[role] = min(found[role], _late_frac(each, demand, part))
        return cls(found)

    @property
    def whole(self) -> float:
        """Share that neither one replica nor two after one another keep it."""
        return min(self.by_role["mixed"], self.by_role["prefill"] + self.by_role["decode"], 1.0)

    def beside(self, role: Role) -> float:
        """Return what the best of the other half is late for."""
        other: dict[Role, Role] = {"prefill": "decode", "decode": "prefill"}
        return self.by_role[other[role]] if role in other else 0.0


def _candidate(
    scored: Scored,
    demand: Demand,
    ranges: Sequence[Range],
    limits: Mapping[str, Limits],
    least: Mapping[str, LeastLate],
    attained_frac: float,
) -> Candidate:
    rates = {bucket.name: bucket.rate_rps for bucket in demand.buckets}
    found = {name: scored.late.get(name, each) for name, each in scored.capacity.items()}
    load = {
        name: rates[name] / each.rate_rps if each.rate_rps else math.inf
        for name, each in found.items()
    }
    role = scored.column.role
    late = {part.name: _late_frac(scored, demand, part) for part in ranges}
    throughput, handed = {}, {}
    for part in ranges:
        whole = math.fsum(load[name] for name in part.buckets)
        allowed = max(1 - attained_frac, least[part.name].whole) + 1e-12
        if late[part.name] + least[part.name].beside(role) <= allowed and whole < math.inf:
            throughput[part.name] = part.rate_rps / whole
            sizes = scored.column.handed_bytes
            total = math.fsum(rates[name] * sizes.get(name, 0.0) for name in part.buckets)
            handed[part.name] = total / part.rate_rps
    column = replace(scored.column, throughput_rps=throughput)
    if role != "mixed":
        column = replace(column, handed_bytes=handed)
    useful = [name for part in ranges if part.name in throughput for name in part.buckets]
    whole = math.fsum(load[name] for name in useful)
    if not whole:
        return Candidate(scored.choice, column, found, late, 1.0, 1.0)
    if role == "prefill":
        served_rps = math.fsum(rates[name] for name in useful) / whole
        ttft_s = min(limits[name].ttft_s for name in useful)
        fit = min(served_rps * ttft_s, float(scored.choice.max_num_seqs))
        return Candidate(scored.choice, column, found, late, max(fit, 1.0), scored.choice.dp)
    batches = math.fsum(load[name] * found[name].batch for name in useful)
    in_flight = max(batches / whole, 1.0)
    return Candidate(scored.choice, column, found, late, in_flight, in_flight)


def _useful(whole: Sequence[Candidate]) -> tuple[list[Candidate], list[Lost]]:
    """Split off what is too late for too many requests of every range."""
    useful = [each for each in whole if each.column.throughput_rps]
    reason = "is late for too many requests of every prompt range"
    return useful, [Lost(each.choice, reason) for each in whole if not each.column.throughput_rps]


def _impossible(
    scored: Sequence[Scored],
    lost: Sequence[Lost],
    demand: Demand,
    ranges: Sequence[Range],
    limits: Mapping[str, Limits],
    slo: Slo,
    least: Mapping[str, LeastLate],
) -> Iterator[Fault]:
    """Yield why the promise cannot be kept, whatever is bought."""
    if not scored:
        yield from _nothing_works(lost)
        return
    rate = demand.rate_rps
    late = sum(part.rate_rps * least[part.name].whole for part in ranges) / rate
    if late <= 1 - slo.attained_frac + 1e-12:
        return
    worst = max(ranges, key=lambda part: part.rate_rps * least[part.name].whole)
    name = max(
        (name for name in worst.buckets if not _in_time(scored, name)),
        key=lambda name: next(b.rate_rps for b in demand.buckets if b.name == name),
        default=worst.buckets[0],
    )
    shape, limit = demand.shapes[name], limits[name]
    missing = [each for each in scored if not each.capacity[name].rate_rps]
    best = min(missing or scored, key=lambda each: _misses(each.capacity[name], limit))
    told = _shortfall(best.capacity[name], limit, shape)
    message = (
        f"{share(round(late, 6))} of the requests are late on any configuration, and "
        f"attained_frac {slo.attained_frac:g} allows {share(1 - slo.attained_frac)}; most of them "
        f"have about "
        f"{shape.prompt_tokens:,} prompt tokens: {told} at best, on {best.column.name}"
    )
    yield Fault("", "slo", message)


def _in_time(scored: Sequence[Scored], bucket: str) -> bool:
    return served({each.column.role for each in scored if each.capacity[bucket].rate_rps})


def _nothing_works(lost: Sequence[Lost]) -> Iterator[Fault]:
    """Yield the reasons of all configurations, each once."""
    for reason in dict.fromkeys(each.reason for each in lost):
        names = [each.choice.name for each in lost if each.reason == reason]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        about = "slo" if reason.startswith("keeps the promise") else "gpus"
        yield Fault("", about, f"{', '.join(names[:3])}{more}: {reason}")


def _misses(found: Capacity, limit: Limits) -> float:
    """Return by which factor a limit is missed at the lowest rate."""
    parts = [found.ttft_s / limit.ttft_s, found.tpot_s / limit.tpot_s]
    return max((part for part in parts if not math.isnan(part)), default=math.inf)


def _shortfall(found: Capacity, limit: Limits, shape: Shape) -> str:
    if found.ttft_s > limit.ttft_s:
        return f"TTFT {found.ttft_s:.3g} s against {limit.ttft_s:.3g}"
    if found.tpot_s > limit.tpot_s:
        return f"TPOT {found.tpot_s:.3g} s against {limit.tpot_s:.3g}"
    if found.bound == "link":
        return "KV that is handed over takes longer than the promise leaves"
    if found.bound == "e2e":
        whole_s = found.ttft_s + (shape.output_tokens - 1) * found.tpot_s
        return f"{whole_s:.3g} s to the last token against {limit.e2e_s:.3g}"
    return "KV too large"
