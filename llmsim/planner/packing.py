"""The cheapest replicas that carry every bucket of traffic: bin packing of rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmsim.core.errors import Fault, InputError
from llmsim.planner.problem import Problem
from llmsim.planner.program import Program, build, label
from llmsim.planner.shortage import refuse_unservable, shortage
from llmsim.planner.solving import Proof, Solver, solve

TIE_TIME_LIMIT_S = 5.0
"""Longest search for the fewest replicas and kinds [s]; any cheapest fleet is kept beyond it."""

TIE_FRAC = 1e-6
"""Relative cost within which two fleets cost the same, and the one with fewer replicas wins."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A fleet, and how traffic is split over it.

    Parameters
    ----------
    replicas : mapping of str to int [replicas]
        By column; only those that are bought.
    rate_rps : mapping of (str, str) to float [requests/s]
        By (bucket, column).
    usd_per_hour : float [USD/h]
        Of the fleet.
    proof : Proof
        ``proof.bound`` holds for cost and price of changes together.
    """

    replicas: Mapping[str, int]
    rate_rps: Mapping[tuple[str, str], float]
    usd_per_hour: float
    proof: Proof

    def load(self, problem: Problem) -> dict[str, float]:
        """Return how many replicas of each column the traffic keeps busy, by column [replicas].

        Parameters
        ----------
        problem : Problem
        """
        of = {column.name: column for column in problem.columns}
        return {
            name: math.fsum(
                rate * of[name].load_per_rps(bucket)
                for (bucket, column), rate in self.rate_rps.items()
                if column == name
            )
            for name in self.replicas
        }


def pack(problem: Problem, solver: Solver | None = None, break_ties: bool = True) -> Packed:
    """Return the cheapest fleet; among equally cheap ones the fewest replicas, of the fewest kinds.

    Parameters
    ----------
    problem : Problem
    solver : Solver or None
    break_ties : bool
        Without it, any of the cheapest; saves a second search.

    Raises
    ------
    InputError
        If the problem is wrong, or nothing that is allowed carries the traffic: what is short, and
        by how much.
    """
    solver = solver or Solver()
    problem.check()
    refuse_unservable(problem)
    made = build(problem)
    proof = solve(made.program, solver)
    if proof.status == "infeasible":
        raise InputError("plan", shortage(problem, solver))
    if proof.status == "unknown":
        message = f"{solver.name} found no fleet in {solver.time_limit_s:g} s"
        raise InputError("plan", [Fault("", "time_limit_s", message)])
    if break_ties and proof.status == "optimal":
        _break_ties(problem, made, proof, solver)
    return _answer(problem, made, proof)


def _break_ties(problem: Problem, made: Program, proof: Proof, solver: Solver) -> None:
    """Among fleets that cost the same take the fewest replicas, of the fewest kinds."""
    program = made.program
    ask_for_few(problem, made, proof.value)
    solver = replace(solver, time_limit_s=min(solver.time_limit_s, TIE_TIME_LIMIT_S))
    kept = {variable.name: variable.varValue for variable in program.variables()}
    if solve(program, solver).status not in ("optimal", "feasible"):
        for variable in program.variables():
            variable.varValue = kept[variable.name]


def ask_for_few(problem: Problem, made: Program, least: float) -> None:
    """Let a program ask for the fewest replicas, of the fewest kinds, that cost no more.

    Parameters
    ----------
    problem : Problem
    made : Program
        Whose objective becomes a row.
    least : float
        Of that objective.
    """
    import pulp

    program = made.program
    priced = program.objective
    program += priced <= least + TIE_FRAC * max(abs(least), 1.0), "as_cheap"
    kinds = []
    for column in problem.columns:
        kind = program.add_variable(label("kind", column.name), cat="Binary")
        most = problem.most_replicas(column)
        program += made.count[column.name] <= most * kind, label("kind", column.name)
        kinds.append(kind)
    # one replica fewer outweighs all kinds
    program.setObjective((len(kinds) + 1) * pulp.lpSum(made.count.values()) + pulp.lpSum(kinds))


def _answer(problem: Problem, made: Program, proof: Proof) -> Packed:
    import pulp

    replicas = {
        name: whole
        for name, variable in made.count.items()
        if (whole := round(variable.varValue or 0.0))
    }
    rates = {
        pair: value
        for pair, rate in made.flow.items()
        if (value := float(pulp.value(rate) or 0.0)) > 1e-9
    }
    of = {column.name: column for column in problem.columns}
    cost = math.fsum(of[name].usd_per_hour * number for name, number in replicas.items())
    return Packed(replicas, rates, cost, proof)
