"""One call of an integer solver, with the bound that it proves."""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmsim.core.errors import RegistryError

if TYPE_CHECKING:
    import pulp

SolverName = Literal["cbc", "highs"]
Status = Literal["optimal", "feasible", "infeasible", "unknown"]


@dataclass(frozen=True, slots=True)
class Solver:
    """How a program is solved.

    Parameters
    ----------
    name : {"cbc", "highs"}
        CBC comes with PuLP; HiGHS is used where it is installed (``pip install highspy``).
    gap_frac : float
        Relative distance from the proven bound at which an answer is good enough.
    time_limit_s : float [s]
    """

    name: SolverName = "cbc"
    gap_frac: float = 1e-6
    time_limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Proof:
    """What the solver says of its answer.

    Parameters
    ----------
    status : str
        ``optimal`` within the gap; ``feasible`` when time ran out with an answer; ``infeasible``;
        ``unknown`` when time ran out without one.
    value : float
        Of the objective; NaN without an answer.
    bound : float
        No answer can be below it; NaN where nothing is proven.
    seconds : float [s]
    """

    status: Status
    value: float
    bound: float
    seconds: float

    @property
    def gap_frac(self) -> float:
        """Relative distance between value and bound; NaN where nothing is proven."""
        return (self.value - self.bound) / abs(self.value) if self.value else 0.0


def solve(program: pulp.LpProblem, solver: Solver) -> Proof:
    """Solve a program to be minimised.

    Parameters
    ----------
    program : pulp.LpProblem
        Its objective has no constant; its variables hold the answer afterwards.
    solver : Solver

    Raises
    ------
    RegistryError
        If the solver is not installed.
    """
    begun_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmsim-") as folder:
        log = Path(folder) / "solver.log"
        engine = _engine(solver, log)
        program.solve(engine)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return _proof(program, solver, text, time.perf_counter() - begun_s)


def _engine(solver: Solver, log: Path) -> pulp.LpSolver:
    import pulp

    # One thread: the same answer every time, and several plans may be solved side by side.
    if solver.name == "highs":
        engine = pulp.HiGHS(
            msg=False, gapRel=solver.gap_frac, timeLimit=solver.time_limit_s, threads=1
        )
        if not engine.available():
            raise RegistryError("HiGHS is not installed: pip install highspy, or use cbc.")
        return engine
    return pulp.COIN_CMD(
        path=pulp.PULP_CBC_CMD.pulp_cbc_path,  # the one inside PuLP's wheel
        msg=False,
        gapRel=solver.gap_frac,
        timeLimit=solver.time_limit_s,
        threads=1,
        logPath=str(log),
    )


def _proof(program: pulp.LpProblem, solver: Solver, log: str, seconds: float) -> Proof:
    import pulp

    nan = float("nan")
    if program.sol_status == pulp.LpSolutionInfeasible or program.status == pulp.LpStatusInfeasible:
        return Proof("infeasible", nan, nan, seconds)
    found = program.sol_status in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
    if not found:
        return Proof("unknown", nan, nan, seconds)
    value = float(pulp.value(program.objective) or 0.0)
    bound = _bound_of(program, solver, log)
    bound = value if bound is None else min(value, bound)
    # PuLP calls CBC's answer optimal when time ran out, too: the log knows better.
    late = "Stopped on time limit" in log or program.sol_status == pulp.LpSolutionIntegerFeasible
    return Proof("feasible" if late else "optimal", value, bound, seconds)


def _bound_of(program: pulp.LpProblem, solver: Solver, log: str) -> float | None:
    """Return the proven bound; None where it is the value."""
    if solver.name == "highs":
        return float(program.solverModel.getInfo().mip_dual_bound)
    # CBC prints it only where it differs from the value.
    said = re.findall(r"^Lower bound:\s+(\S+)", log, flags=re.MULTILINE)
    return float(said[-1]) if said else None
