"""Fleets of several models from one inventory and one budget: one program for all of them.

Models share no replicas, so that each keeps its buckets and its columns, with its name before
theirs; what they share is how many GPUs there are and how much money. Without such limits the
cheapest fleets are those of each model alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from llmsim.core.errors import Fault, InputError
from llmsim.planner.packing import Packed, pack
from llmsim.planner.plan import Plan
from llmsim.planner.planning import plan
from llmsim.planner.problem import Bucket, Column, Problem
from llmsim.planner.reading import read_plan
from llmsim.planner.work import Tell, prepare
from llmsim.study.executor import Executor

T = TypeVar("T", int, float)

OF_ALL: Final[tuple[str, ...]] = (
    "usable_frac",
    "slices",
    "spare_replicas",
    "change_usd_per_hour",
    "port_usable_frac",
    "spare_nodes",
    "zones",
)
"""What must be the same of every model's problem."""


def plan_models(
    sources: Mapping[str, str | Path | Mapping[str, Any]],
    available_gpus: Mapping[str, int] | None = None,
    budget_usd_per_hour: float | None = None,
    *,
    simulate: bool = True,
    executor: Executor | None = None,
    progress: Tell | None = None,
) -> dict[str, Plan]:
    """Plan a fleet for each of several models, from one inventory and one budget.

    One program says what is whose; then each model is planned within its part and what nobody is
    given, in the order of `sources`, so that what simulation asks for beyond a program is there as
    long as anything is left.

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

    Returns
    -------
    dict of str to Plan
        Each plan's bound is that within its part: another division might be cheaper in sum.

    Raises
    ------
    InputError
        With every fault of a file, or what all models together lack.
    """
    works = {model: prepare(read_plan(source), progress) for model, source in sources.items()}
    problems = {model: work.problem(lossy=work.lossy, pooled=True) for model, work in works.items()}
    inventory = dict(available_gpus or {})
    budget = math.inf if budget_usd_per_hour is None else budget_usd_per_hour
    there = {column.gpu for problem in problems.values() for column in problem.columns}
    shared = together(
        problems, {gpu: most for gpu, most in inventory.items() if gpu in there}, budget
    )
    packed = pack(shared, next(iter(works.values())).solver)
    given = {
        model: _taken(problems[model], fleet)
        for model, fleet in fleets_of(packed, problems).items()
    }
    plans: dict[str, Plan] = {}
    for model, source in sources.items():
        del given[model]
        others = [*given.values(), *(_of_plan(each) for each in plans.values())]
        overrides: dict[str, object] = {
            f"gpus.{gpu}.available": most - sum(taken.get(gpu, 0) for taken, _ in others)
            for gpu, most in inventory.items()
            if gpu in works[model].asked.keys.gpus
        }
        if budget < math.inf:
            overrides["budget_usd_per_hour"] = budget - math.fsum(cost for _, cost in others)
        plans[model] = plan(
            source, overrides, simulate=simulate, executor=executor, progress=progress
        )
    return plans


def _taken(problem: Problem, fleet: Mapping[str, int]) -> tuple[dict[str, int], float]:
    """Return the GPUs of a fleet by card, and its cost [USD/h]."""
    of = {column.name: column for column in problem.columns}
    gpus: dict[str, int] = {}
    for name, count in fleet.items():
        gpus[of[name].gpu] = gpus.get(of[name].gpu, 0) + of[name].gpus * count
    return gpus, math.fsum(of[name].usd_per_hour * count for name, count in fleet.items())


def _of_plan(made: Plan) -> tuple[dict[str, int], float]:
    """Return the same of a plan."""
    gpus: dict[str, int] = {}
    for each in made.used:
        gpus[each.gpu] = gpus.get(each.gpu, 0) + each.gpus * each.replicas
    return gpus, made.usd_per_hour


def together(
    problems: Mapping[str, Problem],
    available_gpus: Mapping[str, int] | None = None,
    budget_usd_per_hour: float = math.inf,
) -> Problem:
    """Return one problem of several models.

    Parameters
    ----------
    problems : mapping of str to Problem
        By model. Their own limits count for them alone and are not for here.
    available_gpus : mapping of str to int, optional [GPUs]
        By GPU card, for all models.
    budget_usd_per_hour : float [USD/h]
        For all models.

    Raises
    ------
    InputError
        If there are none, a problem has limits of its own, or they differ in what is one for all.
    """
    faults = list(_not_shared(problems))
    if faults:
        raise InputError("plan", faults)
    buckets: list[Bucket] = []
    columns: list[Column] = []
    failed: list[Mapping[str, int]] = []
    current: dict[str, int] = {}
    for model, problem in problems.items():
        buckets += [replace(each, name=of_model(model, each.name)) for each in problem.buckets]
        columns += [
            replace(
                each,
                name=of_model(model, each.name),
                throughput_rps=_named(model, each.throughput_rps),
                handed_bytes=_named(model, each.handed_bytes),
                model=model,
            )
            for each in problem.columns
        ]
        failed += [_named(model, fleet) for fleet in problem.failed]
        current |= _named(model, problem.current)
    first = next(iter(problems.values()))
    return replace(
        first,
        buckets=tuple(buckets),
        columns=tuple(columns),
        available_gpus=dict(available_gpus or {}),
        budget_usd_per_hour=budget_usd_per_hour,
        current=current,
        failed=tuple(failed),
    )


def fleets_of(packed: Packed, problems: Mapping[str, Problem]) -> dict[str, dict[str, int]]:
    """Return each model's fleet by its own names of columns [replicas].

    Parameters
    ----------
    packed : Packed
        Of `together`.
    problems : mapping of str to Problem
    """
    return {
        model: {
            column.name: count
            for column in problem.columns
            if (count := packed.replicas.get(of_model(model, column.name)))
        }
        for model, problem in problems.items()
    }


def of_model(model: str, name: str) -> str:
    """Return the name of a model's bucket or column among those of all.

    Parameters
    ----------
    model : str
    name : str
    """
    return f"{model}_{name}"


def _named(model: str, values: Mapping[str, T]) -> dict[str, T]:
    return {of_model(model, name): value for name, value in values.items()}


def _not_shared(problems: Mapping[str, Problem]) -> list[Fault]:
    if not problems:
        return [Fault("", "models", "there are none to plan for")]
    faults = []
    first = next(iter(problems.values()))
    for model, problem in problems.items():
        if problem.available_gpus or problem.budget_usd_per_hour < math.inf:
            message = "has limits of its own; GPUs and money are shared"
            faults.append(Fault("", f"models.{model}", message))
        for key in OF_ALL:
            ours, theirs = getattr(problem, key), getattr(first, key)
            if ours != theirs:
                message = f"{ours} differs from {theirs} of '{next(iter(problems))}'"
                faults.append(Fault("", f"models.{model}.{key}", message))
    return faults
