"""Why each configuration was not bought."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmsim.planner.candidates import Candidate
from llmsim.planner.demand import in_words
from llmsim.planner.plan import Loser
from llmsim.planner.work import Work


def losers(work: Work, fleet: Mapping[str, int]) -> tuple[Loser, ...]:
    """Return every configuration that is not bought, and why.

    Parameters
    ----------
    work : Work
    fleet : mapping of str to int
    """
    found = []
    for lost in work.candidates.lost:
        price = work.asked.usd_per_gpu_hour[lost.choice.gpu] * lost.choice.gpus
        found.append(Loser(lost.choice.name, lost.choice.gpu, price, lost.reason))
    for column in work.candidates.columns:
        if column.name not in fleet:
            reason = _dearer(work, column.name, fleet)
            found.append(Loser(column.name, column.gpu, column.usd_per_hour, reason))
    return tuple(found)


def _dearer(work: Work, name: str, fleet: Mapping[str, int]) -> str:
    """Say where a column costs more than what is bought, per request of a range."""
    own = work.candidates.of(name)
    lost: list[tuple[float, str, str, str]] = []
    for part in work.ranges:
        bought = _cheapest(work, part.name, fleet)
        ours = _cheapest(work, part.name, (c.name for c in work.candidates.columns), own)
        lost.append((ours.usd / bought.usd, part.name, bought.said, ours.beside))
    ratio, part_name, best, beside = min(lost)
    if ratio == math.inf:
        return "nothing that may be bought does the other half of a request as it needs"
    with_it = f" with {beside}" if beside else ""
    if ratio > 1.0005:
        return (
            f"dearer per request in every range: {ratio:.2f} times {best} for {in_words(part_name)}"
            f"{with_it}, where it is nearest"
        )
    return (
        f"{ratio:.2f} times the cost per request of {best} for {in_words(part_name)}{with_it}, but "
        "whole replicas and room for bursts do not pay there"
    )


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a request of a range costs per unit of rate, and by whom."""

    usd: float
    said: str = ""
    beside: str = ""


def _cheapest(work: Work, part: str, names: Iterable[str], fixed: Candidate | None = None) -> _Cost:
    """Return the cheapest way through some columns; one of them may be given."""
    best: dict[str, _Cost] = {}
    for name in names:
        column = work.candidates.of(name).column
        if fixed is not None and column.role == fixed.role:
            continue
        cost = _Cost(column.usd_per_hour * column.load_per_rps(part), name)
        best[column.role] = min(best.get(column.role, cost), cost, key=lambda each: each.usd)
    if fixed is not None:
        own = fixed.column
        best[own.role] = _Cost(own.usd_per_hour * own.load_per_rps(part), own.name)
        if own.role == "mixed":
            return best["mixed"]
        best.pop("mixed", None)
    ways = [best["mixed"]] if "mixed" in best else []
    if {"prefill", "decode"} <= best.keys():
        prompts, outputs = best["prefill"], best["decode"]
        beside = "" if fixed is None else {prompts.said, outputs.said} - {fixed.column.name}
        said = f"{prompts.said} with {outputs.said}"
        ways.append(_Cost(prompts.usd + outputs.usd, said, "".join(beside)))
    return min(ways, key=lambda each: each.usd, default=_Cost(math.inf))
