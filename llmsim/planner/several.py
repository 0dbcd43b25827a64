"""Fleets of several models from one inventory and one budget, each shown by simulation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from llmsim.core.errors import Fault, InputError
from llmsim.planner.correcting import correct
from llmsim.planner.packing import Packed, pack
from llmsim.planner.plan import Evidence, Outcome, Plan
from llmsim.planner.planning import kept_runs, own_words, plan_work
from llmsim.planner.problem import Problem
from llmsim.planner.reading import MODELS, read_plan
from llmsim.planner.several_reading import Several, read_several
from llmsim.planner.together import fleets_of, together
from llmsim.planner.work import Tell, Work, prepare
from llmsim.study.executor import Executor, open_workers

Taken = tuple[dict[str, int], float]
"""GPUs by card, and their cost [USD/h]."""

MOST_DIVISIONS: Final = 8
"""How often what there is may be divided among the models."""

WORST: tuple[Outcome, ...] = (
    "not proven",
    "not simulated",
    "simulated",
    "good enough",
    "proven",
)
"""Outcomes, the one first that decides about all."""


@dataclass(frozen=True, slots=True)
class Plans:
    """What to buy for each of several models.

    Parameters
    ----------
    name : str
    plans : dict of str to Plan
        By model. Each plan's bound is that within its part: another division might be cheaper.
    available_gpus : dict of str to int [GPUs]
        By GPU card, for all; a card that is absent was not limited.
    budget_usd_per_hour : float or None [USD/h]
        For all.
    plan_yaml : str
        What was asked for.
    seconds : float [s]
    divisions : int
        How often what there is was divided among the models.
    """

    name: str
    plans: dict[str, Plan]
    available_gpus: dict[str, int]
    budget_usd_per_hour: float | None
    plan_yaml: str
    seconds: float
    divisions: int = 1

    @property
    def usd_per_hour(self) -> float:
        """Cost of all fleets [USD/h]."""
        return math.fsum(each.usd_per_hour for each in self.plans.values())

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs of all fleets by card."""
        found: dict[str, int] = {}
        for each in self.plans.values():
            for gpu, count in _of_plan(each)[0].items():
                found[gpu] = found.get(gpu, 0) + count
        return found

    @property
    def outcome(self) -> Outcome:
        """Outcome of the model that came off worst."""
        return min((each.outcome for each in self.plans.values()), key=WORST.index)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        from pydantic import TypeAdapter

        told: dict[str, Any] = TypeAdapter(Plans).dump_python(self, mode="json")
        return told


def plan_several(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    *,
    simulate: bool = True,
    executor: Executor | None = None,
    progress: Tell | None = None,
) -> Plans:
    """Plan a fleet for each model of a plan file, from one inventory and one budget.

    Parameters
    ----------
    source : str, Path or mapping
        A plan file with `models`, the bare name of a shipped one, or what a file would say.
    overrides : mapping of str to object, optional
        Values by dotted path, such as ``{"models.chat.slo.ttft_s": 1.0}``.
    simulate, executor, progress
        As for `plan`.

    Raises
    ------
    InputError
        With every fault of the file; or what all models together, or one of them, lack.
    """
    several = read_several(source, overrides)
    if several is None:
        raise InputError(str(source), [Fault("", MODELS, "there are none: a plan of one model")])
    return _plan_all(several, simulate, executor, progress)


def plan_models(
    sources: Mapping[str, str | Path | Mapping[str, Any]],
    available_gpus: Mapping[str, int] | None = None,
    budget_usd_per_hour: float | None = None,
    *,
    simulate: bool = True,
    executor: Executor | None = None,
    progress: Tell | None = None,
) -> dict[str, Plan]:
    """Plan a fleet for each of several plan files, from one inventory and one budget.

    Parameters
    ----------
    sources : mapping of str to str, Path or mapping
        By model: a plan file, a shipped plan's name, or what a file would say; without `available`
        and `budget_usd_per_hour` of their own.
    available_gpus : mapping of str to int, optional [GPUs]
        By GPU card, for all models; a card that is absent is not limited.
    budget_usd_per_hour : float, optional [USD/h]
        For all models.
    simulate, executor, progress
        As for `plan`.

    Raises
    ------
    InputError
        With every fault of a file, or what all models together, or one of them, lack.
    """
    asked = {model: read_plan(source) for model, source in sources.items()}
    several = Several(
        name="plans",
        asked=asked,
        available_gpus=dict(available_gpus or {}),
        budget_usd_per_hour=budget_usd_per_hour,
        text="",
        source="plan",
        places={},
        own=dict.fromkeys(asked, frozenset()),
    )
    return _plan_all(several, simulate, executor, progress).plans


def _plan_all(
    several: Several, simulate: bool, executor: Executor | None, tell: Tell | None
) -> Plans:
    """Divide what there is by one program, then plan each model within its part.

    Where simulation finds nothing in a model's part that passes, what failed there is ruled out of
    the program, which divides anew.
    """
    begun_s = time.perf_counter()
    works = {model: _prepared(several, model, tell) for model in several.asked}
    known = _corrected(works, executor, tell) if simulate else works
    given = _divide(several, known, strict=not simulate)
    best = plans = _within(several, works, given, simulate, executor, tell)
    seen = [given]
    failed: dict[str, list[dict[str, int]]] = {model: [] for model in works}
    while simulate and len(seen) < MOST_DIVISIONS and _short(plans):
        for model in _short(plans):
            failed[model] += [each.replicas for each in plans[model].evidence if _fails(each)]
        try:
            given = _divide(several, known, strict=False, failed=failed)
        except InputError:
            break
        if given in seen:
            break
        seen.append(given)
        plans = _within(several, works, given, simulate, executor, tell)
        best = min(best, plans, key=_badness)
    return Plans(
        several.name,
        best,
        dict(several.available_gpus),
        several.budget_usd_per_hour,
        several.text,
        time.perf_counter() - begun_s,
        len(seen),
    )


def _within(
    several: Several,
    works: Mapping[str, Work],
    given: Mapping[str, Taken],
    simulate: bool,
    executor: Executor | None,
    tell: Tell | None,
) -> dict[str, Plan]:
    """Plan each model within its part.

    To its part comes what nobody is given, in the order of the models, so that what simulation asks
    for beyond a program is there as long as anything is left.
    """
    plans: dict[str, Plan] = {}
    for model, work in works.items():
        later = [taken for other, taken in given.items() if other != model and other not in plans]
        others = [*later, *(_of_plan(each) for each in plans.values())]
        left = {
            gpu: most - sum(taken.get(gpu, 0) for taken, _ in others)
            for gpu, most in several.available_gpus.items()
        }
        money = several.budget_usd_per_hour
        if money is not None:
            money -= math.fsum(cost for _, cost in others)
        own = replace(work, asked=work.asked.limited(left, money))
        try:
            plans[model] = plan_work(
                own, simulate=simulate, executor=executor, progress=_of(model, tell)
            )
        except InputError as error:
            raise several.of_model(model, error.faults) from None
    return plans


def _short(plans: Mapping[str, Plan]) -> list[str]:
    """Return the models for which nothing in their part was seen to pass."""
    return [model for model, each in plans.items() if each.outcome == "not proven"]


def _fails(each: Evidence) -> bool:
    """Whether a whole fleet was simulated and did not pass."""
    return not each.passed and not each.lost


def _badness(plans: Mapping[str, Plan]) -> tuple[int, float]:
    return len(_short(plans)), math.fsum(each.usd_per_hour for each in plans.values())


def _prepared(several: Several, model: str, tell: Tell | None) -> Work:
    """Return what a model's plan is made from; its faults are told by the keys of the file."""
    try:
        return prepare(several.asked[model], _of(model, tell))
    except InputError as error:
        raise several.of_model(model, error.faults) from None


def _of(model: str, tell: Tell | None) -> Tell | None:
    """Return a report of progress that names the model."""
    if tell is None:
        return None

    def told(what: str, done: int, whole: int | None, tell: Callable[..., None] = tell) -> None:
        tell(f"{model}: {what}", done, whole)

    return told


def _corrected(
    works: Mapping[str, Work], executor: Executor | None, tell: Tell | None
) -> dict[str, Work]:
    """Return capacities as single replicas have them, where plans ask for these; they are kept."""
    store, folder = kept_runs()
    with open_workers(executor or Executor()) as workers:
        return {
            model: correct(work, workers, store, folder, _of(model, tell))[0]
            if work.asked.keys.prove.micro_columns
            else work
            for model, work in works.items()
        }


def _divide(
    several: Several,
    works: Mapping[str, Work],
    strict: bool,
    failed: Mapping[str, Sequence[Mapping[str, int]]] = MappingProxyType({}),
) -> dict[str, Taken]:
    """Return what one program gives to each model, with room for bursts if that can be.

    Parameters
    ----------
    several : Several
    works : mapping of str to Work
        By model.
    strict : bool
        Whether there must be room for bursts.
    failed : mapping of str to sequence of mapping of str to int [replicas]
        By model: fleets that no division may leave it with, nor with less.

    Raises
    ------
    InputError
        If all together do not get what they need.
    """
    for pooled in (True, False):
        problems = {
            model: replace(
                work.problem(lossy=work.lossy and pooled, pooled=pooled),
                failed=tuple(failed.get(model, ())),
            )
            for model, work in works.items()
        }
        there = {column.gpu for problem in problems.values() for column in problem.columns}
        limits = {gpu: most for gpu, most in several.available_gpus.items() if gpu in there}
        money = several.budget_usd_per_hour
        try:
            shared = together(problems, limits, math.inf if money is None else money)
            packed = pack(shared, next(iter(works.values())).solver)
        except InputError as error:
            if strict or not pooled:
                raise several.located(own_words(error.faults)) from None
            continue
        return _parts(packed, problems)
    raise AssertionError("a program without an answer raises")


def _parts(packed: Packed, problems: Mapping[str, Problem]) -> dict[str, Taken]:
    fleets = fleets_of(packed, problems)
    return {model: _taken(problems[model], fleet) for model, fleet in fleets.items()}


def _taken(problem: Problem, fleet: Mapping[str, int]) -> Taken:
    """Return the GPUs of a fleet by card, and its cost [USD/h]."""
    of = {column.name: column for column in problem.columns}
    gpus: dict[str, int] = {}
    for name, count in fleet.items():
        gpus[of[name].gpu] = gpus.get(of[name].gpu, 0) + of[name].gpus * count
    return gpus, math.fsum(of[name].usd_per_hour * count for name, count in fleet.items())


def _of_plan(made: Plan) -> Taken:
    """Return the same of a plan."""
    gpus: dict[str, int] = {}
    for each in made.used:
        gpus[each.gpu] = gpus.get(each.gpu, 0) + each.gpus * each.replicas
    return gpus, made.usd_per_hour
