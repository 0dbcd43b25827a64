"""What a plan is measured against: each GPU card alone, and what runs today."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from llmsim.core.errors import InputError
from llmsim.planner.candidates import Candidates
from llmsim.planner.packing import pack
from llmsim.planner.plan import Current, Rival
from llmsim.planner.problem import Column, served
from llmsim.planner.proving import Loop
from llmsim.planner.simulating import Laboratory
from llmsim.planner.work import Work

FLEETS: Final = 6
"""Fleets of one card to simulate at most."""


def rivals(work: Work, laboratory: Laboratory | None = None) -> tuple[Rival, ...]:
    """Return a cheap fleet of each GPU card alone, cheapest first.

    Parameters
    ----------
    work : Work
    laboratory : Laboratory, optional
        Without it nothing is simulated.
    """
    found = [_alone(work, gpu, laboratory) for gpu in work.asked.keys.gpus]
    return tuple(sorted(found, key=lambda each: (each.usd_per_hour or math.inf, each.gpu)))


def _alone(work: Work, gpu: str, laboratory: Laboratory | None) -> Rival:
    own = tuple(each for each in work.candidates.kept if each.column.gpu == gpu)
    if not own:
        return Rival(gpu, None, {}, "no configuration keeps the promise", False)
    columns = [each.column for each in own]
    late = [part.low_tokens for part in work.ranges if not _able(columns, part.name)]
    if late:
        told = f"late for too many prompts of {late[0]:,} tokens and more, on any replica"
        return Rival(gpu, None, {}, told, False)
    keys = work.asked.keys.model_copy(
        update={"budget_usd_per_hour": None, "change_usd_per_hour": 0.0}
    )
    candidates = Candidates(own, (), work.candidates.current)
    alone = replace(work, asked=replace(work.asked, keys=keys), candidates=candidates)
    problems = [alone.problem(pooled=True, lossy=work.lossy)]
    if laboratory is not None:  # it may know better than the formula for bursts
        problems.append(alone.problem(lossy=work.lossy))
    packed, told = None, ""
    for problem in problems:
        try:
            packed = packed or pack(problem, work.solver)
        except InputError as error:
            told = "; ".join(fault.message.rstrip(".") for fault in error.faults)
    if packed is None:
        return Rival(gpu, None, {}, told, False)
    fleet = dict(packed.replicas)
    if laboratory is not None:
        loop = Loop(alone, laboratory, laboratory.fleets + FLEETS)
        shown = loop.settle(fleet)
        if shown is None:
            return Rival(gpu, None, {}, "no fleet of it that was simulated passes", False)
        return Rival(gpu, _cost(work, shown), shown, "", True)
    return Rival(gpu, packed.usd_per_hour, fleet, "", False)


def _cost(work: Work, fleet: Mapping[str, int]) -> float:
    return math.fsum(work.price(name) * count for name, count in fleet.items())


def _able(columns: Sequence[Column], part: str) -> bool:
    return served({column.role for column in columns if column.serves(part)})


def current_fleet(work: Work) -> Current | None:
    """Return what runs today, its cost and how busy it is; None where nothing was said.

    Parameters
    ----------
    work : Work
    """
    asked = work.asked
    if not asked.current:
        return None
    fleet = {choice.name: count for choice, count in asked.current.items()}
    cost = math.fsum(
        asked.usd_per_gpu_hour[choice.gpu] * choice.gpus * count
        for choice, count in asked.current.items()
    )
    known = {c.name: n for c, n in asked.current.items() if c in work.candidates.current}
    divided = work.split(known, even=True) if known else None
    if divided is None:
        late = [part.name for part in work.ranges if not _served(work, part.name, known)]
        reason = f"nothing there keeps the promise to {', '.join(late)}"
        return Current(fleet, cost, None, reason)
    return Current(fleet, cost, divided.peak, "")


def _served(work: Work, part: str, fleet: Mapping[str, int]) -> bool:
    return _able([work.candidates.of(name).column for name in fleet], part)
