"""The program behind a packing: its variables, and a row for everything that must hold.

It is Mélange's (arXiv 2404.14527, section 5): a bucket's load on a kind of replica is its rate over
what one such replica serves of it alone within the SLO; loads of buckets add up. Beyond it: pools
that gain by being large, limits, spare replicas, and changes against today.

Prompts may be computed here and outputs there: what prefill replicas take of a bucket, decode
replicas take over, and its KV leaves by the ports of the ones and comes in by those of the others
(between ports nothing is in the way). KV memory has no row of its own: the load of a decode replica
is counted against batches that its memory holds, and loads add up as batches do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.planner.problem import Bucket, Column, Problem

if TYPE_CHECKING:
    import pulp


@dataclass(frozen=True, slots=True)
class Program:
    """An integer program with the variables that its answer is read from.

    Parameters
    ----------
    program : pulp.LpProblem
    count : mapping of str to LpVariable [replicas]
    flow : mapping of (str, str) to LpAffineExpression [requests/s]
    cost : LpAffineExpression [USD/h]
        Of the replicas alone.
    """

    program: pulp.LpProblem
    count: Mapping[str, pulp.LpVariable]
    flow: Mapping[tuple[str, str], pulp.LpAffineExpression]
    cost: pulp.LpAffineExpression


def build(problem: Problem) -> Program:
    """Return the program of a problem; every row and variable is named after what it says.

    Parameters
    ----------
    problem : Problem
        Already checked.
    """
    import pulp

    program = pulp.LpProblem("packing", pulp.LpMinimize)
    count = {
        column.name: program.add_variable(
            label("replicas", column.name), 0, problem.most_replicas(column), cat="Integer"
        )
        for column in problem.columns
    }
    cost = pulp.lpSum(column.usd_per_hour * count[column.name] for column in problem.columns)
    changes: list[pulp.LpVariable] = []
    # The objective comes first: PuLP takes the first bare expression for it.
    priced = cost
    if problem.current and problem.change_usd_per_hour:
        changes = [_change(program, column, "more") for column in problem.columns]
        changes += [_change(program, column, "less") for column in problem.columns]
        priced = cost + problem.change_usd_per_hour * pulp.lpSum(changes)
    program += priced, "usd_per_hour"
    flow = _serve_sliced(program, problem) if problem.slices else _serve(program, problem)
    alive = _carry(program, problem, count, flow)
    _limit(program, problem, count, cost)
    _exceed(program, problem, count)
    if problem.apart:
        _hand_over(program, problem, flow)
        _ports(program, problem, alive, flow)
        _partners(program, problem, count)
    for number, column in enumerate(problem.columns if changes else ()):
        more, less = changes[number], changes[number + len(problem.columns)]
        today = problem.current.get(column.name, 0)
        program += count[column.name] - today == more - less, label("change", column.name)
    return Program(program, count, flow, cost)


def label(kind: str, *of: str | int) -> str:
    """Return the name of a variable or a row, such as ``rate(chat,h100)``.

    Parameters
    ----------
    kind : str
    *of : str or int
        What it is about. A minus would be an operator in an LP file and becomes a tilde.
    """
    return f"{kind}({','.join(str(each) for each in of)})".replace("-", "~")


def _change(program: pulp.LpProblem, column: Column, word: str) -> pulp.LpVariable:
    return program.add_variable(label(word, column.name), 0)


def _pairs(problem: Problem) -> list[tuple[Bucket, Column, float]]:
    """Return who can serve what at all, and the load of one request per second."""
    return [
        (bucket, column, load)
        for bucket in problem.buckets
        for column in problem.columns
        if (load := column.load_per_rps(bucket.name)) < math.inf
    ]


def _of_column(problem: Problem) -> dict[str, list[tuple[str, float]]]:
    """Return who each column can serve: bucket, and the load of one request per second."""
    found: dict[str, list[tuple[str, float]]] = {column.name: [] for column in problem.columns}
    for bucket, column, load in _pairs(problem):
        found[column.name].append((bucket.name, load))
    return found


def _serve(
    program: pulp.LpProblem, problem: Problem
) -> dict[tuple[str, str], pulp.LpAffineExpression]:
    """Rates that may be split at will: all of every bucket is served."""
    import pulp

    flow = {
        (bucket.name, column.name): program.add_variable(label("rate", bucket.name, column.name), 0)
        for bucket, column, _ in _pairs(problem)
    }
    served: dict[str, list[pulp.LpVariable]] = {bucket.name: [] for bucket in problem.buckets}
    role = {column.name: column.role for column in problem.columns}
    for (name, column), rate in flow.items():
        if role[column] != "decode":  # who decodes takes over what has been served its prompt
            served[name].append(rate)
    for bucket in problem.buckets:
        whole = pulp.lpSum(served[bucket.name])
        program += whole == bucket.rate_rps, label("serve", bucket.name)
    return {pair: pulp.lpSum(rate) for pair, rate in flow.items()}


def _serve_sliced(
    program: pulp.LpProblem, problem: Problem
) -> dict[tuple[str, str], pulp.LpAffineExpression]:
    """Equal slices of buckets, each on one kind of replica."""
    import pulp

    flow: dict[tuple[str, str], list[pulp.LpAffineExpression]] = {}
    for bucket in problem.buckets:
        able = [c for c in problem.columns if c.load_per_rps(bucket.name) < math.inf]
        for number in range(problem.slices):
            chosen = {
                column.name: program.add_variable(
                    label("slice", bucket.name, number, column.name), cat="Binary"
                )
                for column in able
            }
            program += pulp.lpSum(chosen.values()) == 1, label("serve", bucket.name, number)
            for name, yes in chosen.items():
                part = yes * (bucket.rate_rps / problem.slices)
                flow.setdefault((bucket.name, name), []).append(part)
    return {pair: pulp.lpSum(parts) for pair, parts in flow.items()}


def _carry(
    program: pulp.LpProblem,
    problem: Problem,
    count: Mapping[str, pulp.LpVariable],
    flow: Mapping[tuple[str, str], pulp.LpAffineExpression],
) -> dict[str, pulp.LpAffineExpression]:
    """Load fits what is left of the replicas when those that may be lost are; return what is."""
    import pulp

    served = _of_column(problem)
    left: dict[str, pulp.LpAffineExpression] = {}
    for column in problem.columns:
        name = column.name
        load = pulp.lpSum(each * flow[bucket, name] for bucket, each in served[name])
        alive = left[name] = _alive(program, problem, column, count[name])
        if not column.usable:
            program += load <= problem.usable_frac * alive, label("load", name)
            continue
        most, largest = problem.most_replicas(column), len(column.usable)
        levels = {
            size: program.add_variable(label("level", name, size), cat="Binary")
            for size in range(min(most, largest) + 1)
        }
        carried = {0: 0.0} | dict(enumerate(column.usable, 1))
        program += pulp.lpSum(levels.values()) == 1, label("one_level", name)
        sizes = pulp.lpSum(size * yes for size, yes in levels.items())
        room = pulp.lpSum(carried[size] * yes for size, yes in levels.items())
        further = most - problem.spare(column) - largest
        if column.usable_beyond and further > 0:
            beyond = program.add_variable(label("beyond", name), 0, further, cat="Integer")
            program += beyond <= further * levels[largest], label("beyond", name)
            sizes += beyond
            room += column.usable_beyond * beyond
        program += alive == sizes, label("level", name)
        program += load <= room, label("load", name)
    return left


def _alive(
    program: pulp.LpProblem, problem: Problem, column: Column, number: pulp.LpVariable
) -> pulp.LpAffineExpression:
    """Return the replicas of a column that are left when those that may be lost are."""
    import pulp

    name, most, spare = column.name, problem.most_replicas(column), problem.spare(column)
    alive = pulp.lpSum(number)
    if spare and most:
        used = program.add_variable(label("used", name), cat="Binary")
        program += number <= most * used, label("used", name)
        alive = number - spare * used
    if not problem.zones or not most:
        return alive
    lost = program.add_variable(label("lost", name), 0, most, cat="Integer")
    program += problem.zones * lost >= number, label("zone", name)
    if spare:
        program += lost >= spare * used, label("spare", name)
    return number - lost


def _hand_over(
    program: pulp.LpProblem,
    problem: Problem,
    flow: Mapping[tuple[str, str], pulp.LpAffineExpression],
) -> None:
    """Have others decode what has been computed of prompts alone."""
    import pulp

    for bucket in problem.buckets:
        by_role = {
            role: pulp.lpSum(
                flow[bucket.name, column.name]
                for column in problem.columns
                if column.role == role and column.serves(bucket.name)
            )
            for role in ("prefill", "decode")
        }
        if by_role["prefill"] or by_role["decode"]:
            balance = by_role["prefill"] - by_role["decode"] == 0
            program += balance, label("hand_over", bucket.name)


def _ports(
    program: pulp.LpProblem,
    problem: Problem,
    alive: Mapping[str, pulp.LpAffineExpression],
    flow: Mapping[tuple[str, str], pulp.LpAffineExpression],
) -> None:
    """KV that is handed over fits through the ports of those that send and those that receive."""
    import pulp

    for column in problem.columns:
        if column.role == "mixed" or column.port_bytes_per_s == math.inf:
            continue
        # gigabytes, which keeps the coefficients near those of the other rows
        parts = pulp.lpSum(
            size / 1e9 * flow[name, column.name]
            for name, size in column.handed_bytes.items()
            if column.serves(name)
        )
        usable = problem.port_usable_frac * column.port_bytes_per_s / 1e9
        if parts:
            program += parts <= usable * alive[column.name], label("port", column.name)


def _partners(
    program: pulp.LpProblem, problem: Problem, count: Mapping[str, pulp.LpVariable]
) -> None:
    """Nobody computes prompts alone where nobody decodes, nor the other way round."""
    import pulp

    other = {"prefill": "decode", "decode": "prefill"}
    for column in problem.columns:
        if column.role == "mixed":
            continue
        partners = pulp.lpSum(
            count[each.name]
            for each in problem.columns
            if (each.role, each.model) == (other[column.role], column.model)
        )
        most = problem.most_replicas(column)
        if most:
            program += count[column.name] <= most * partners, label("partner", column.name)


def _exceed(
    program: pulp.LpProblem, problem: Problem, count: Mapping[str, pulp.LpVariable]
) -> None:
    """Of some kind there is more than in each fleet that is known not to do."""
    import pulp

    model = {column.name: column.model for column in problem.columns}
    for number, fleet in enumerate(problem.failed):
        own = {model[name] for name in fleet}
        larger = {
            column.name: program.add_variable(label("larger", number, column.name), cat="Binary")
            for column in problem.columns
            if column.model in own
        }
        program += pulp.lpSum(larger.values()) >= 1, label("exceed", number)
        for name, yes in larger.items():
            least = (fleet.get(name, 0) + 1) * yes
            program += count[name] >= least, label("larger", number, name)


def _limit(
    program: pulp.LpProblem,
    problem: Problem,
    count: Mapping[str, pulp.LpVariable],
    cost: pulp.LpAffineExpression,
) -> None:
    """No more GPUs than there are, no more money than there is."""
    import pulp

    for gpu, most in problem.available_gpus.items():
        taken = pulp.lpSum(
            column.gpus * count[column.name] for column in problem.columns if column.gpu == gpu
        )
        program += taken <= most, label("available_gpus", gpu)
    if problem.budget_usd_per_hour < math.inf:
        program += cost <= problem.budget_usd_per_hour, "budget_usd_per_hour"
