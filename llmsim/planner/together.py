"""One program for the fleets of several models, from one inventory and one budget.

Models share no replicas, so that each keeps its buckets and its columns, with its name before
theirs; what they share is how many GPUs there are and how much money. Without such limits the
cheapest fleets are those of each model alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from llmsim.core.errors import Fault, InputError
from llmsim.planner.packing import Packed
from llmsim.planner.problem import Bucket, Column, Problem

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
