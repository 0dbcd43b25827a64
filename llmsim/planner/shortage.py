"""Why nothing that is allowed carries the traffic, in the words of who asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llmsim.core.errors import Fault, InputError
from llmsim.planner.problem import Problem
from llmsim.planner.program import Program, build
from llmsim.planner.solving import Solver, solve

if TYPE_CHECKING:
    import pulp


def refuse_unservable(problem: Problem) -> None:
    """Refuse traffic that nothing can serve at any rate.

    Parameters
    ----------
    problem : Problem

    Raises
    ------
    InputError
        With every bucket that no column serves within the SLO.
    """
    faults = list(_unservable(problem))
    if faults:
        raise InputError("plan", faults)


def shortage(problem: Problem, solver: Solver) -> list[Fault]:
    """Return what is short, and by how much, in a problem without an answer.

    Parameters
    ----------
    problem : Problem
    solver : Solver
    """
    return list(_too_tight(problem, solver))


def _unservable(problem: Problem) -> Iterator[Fault]:
    """Yield the buckets that no column serves at any rate."""
    for bucket in problem.buckets:
        if not problem.served(bucket.name):
            names = ", ".join(sorted({column.gpu for column in problem.columns}))
            message = f"no configuration on {names} meets the SLO of these requests at any rate"
            half = {column.role for column in problem.columns if column.serves(bucket.name)}
            if half:
                does = "compute their prompts" if half == {"prefill"} else "decode them"
                message += f": some {does} in time, none does the rest"
            yield Fault("", f"buckets.{bucket.name}", message)


def _too_tight(problem: Problem, solver: Solver) -> Iterator[Fault]:
    """Yield the limits that must give, and by how much, each with the others kept if it can be."""
    free = replace(problem, available_gpus={}, budget_usd_per_hour=math.inf)
    least = _least_cost(free, solver)
    if least is None:  # without any limit: pools have a largest size
        names = ", ".join(column.name for column in problem.columns if column.usable)
        yield Fault("", "columns", f"even the largest pools of {names} do not carry the traffic")
        return
    thin = _thin_ports(problem, solver)
    if thin is not None:
        yield thin
    budget = problem.budget_usd_per_hour
    rich = replace(problem, budget_usd_per_hour=math.inf)
    kept = _least_cost(rich, solver)
    if kept is not None:
        message = f"{budget:g} USD/h is too little: {kept:.2f} are needed"
        yield Fault("", "budget_usd_per_hour", message)
        return
    yield from _missing_gpus(rich, solver)
    if least > budget:
        message = f"{budget:g} USD/h is too little: {least:.2f} are needed, with GPUs enough"
        yield Fault("", "budget_usd_per_hour", message)


FASTER: Final = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Times as fast, as ports are tried where something is short."""


def _thin_ports(problem: Problem, solver: Solver) -> Fault | None:
    """Return by how much faster ports would do alone; None where they would not at any speed."""
    if not problem.apart or _least_cost(_ported(problem, math.inf), solver) is None:
        return None
    enough = next((x for x in FASTER if _least_cost(_ported(problem, x), solver) is not None), None)
    much = "more than 8 times" if enough is None else f"{enough:g} times"
    message = f"ports {much} as fast would do, with nothing else changed: KV does not get through"
    return Fault("", "port_usable_frac", message)


def _ported(problem: Problem, factor: float) -> Problem:
    """Return the problem with ports so many times as fast."""
    columns = (replace(c, port_bytes_per_s=factor * c.port_bytes_per_s) for c in problem.columns)
    return replace(problem, columns=tuple(columns))


def _missing_gpus(problem: Problem, solver: Solver) -> Iterator[Fault]:
    """Yield what would be enough of each card alone, where the others stay as they are."""
    enough = []
    for gpu in problem.available_gpus:
        limits = {name: most for name, most in problem.available_gpus.items() if name != gpu}
        needed = _least_gpus(replace(problem, available_gpus=limits), gpu, solver)
        if needed is not None:
            enough.append((gpu, needed))
    # each of these alone is enough, which two lines side by side do not say
    alone = ", with the others as they are" if len(enough) > 1 else ""
    for gpu, needed in enough:
        here = problem.available_gpus[gpu]
        counted = "1 GPU is" if here == 1 else f"{here} GPUs are"
        message = f"{counted} too few: {needed} would do{alone}"
        yield Fault("", f"available_gpus.{gpu}", message)
    if not enough:
        listed = ", ".join(f"{most} {gpu}" for gpu, most in problem.available_gpus.items())
        yield Fault(
            "", "available_gpus", f"{listed} are too few, whichever of them there is more of"
        )


def _least_cost(problem: Problem, solver: Solver) -> float | None:
    """Return what the cheapest fleet costs [USD/h]; None if there is none."""
    made = build(problem)
    return _least(made, made.cost, solver)


def _least_gpus(problem: Problem, gpu: str, solver: Solver) -> int | None:
    """Return the fewest GPUs of one card with which the traffic is carried; None if none do."""
    import pulp

    made = build(problem)
    taken = pulp.lpSum(
        column.gpus * made.count[column.name] for column in problem.columns if column.gpu == gpu
    )
    least = _least(made, taken, solver)
    return None if least is None else round(least)


def _least(made: Program, what: pulp.LpAffineExpression, solver: Solver) -> float | None:
    made.program.setObjective(what)
    proof = solve(made.program, solver)
    if proof.status == "unknown":
        message = (
            f"nothing that is allowed was found, nor what is short, in {solver.time_limit_s:g} s"
        )
        raise InputError("plan", [Fault("", "time_limit_s", message)])
    return None if proof.status == "infeasible" else proof.value
