"""Which GPUs compute prompts and which decode: every split searched by simulation.

Each plan gives a tensor-parallel degree and a number of replicas to either phase; it is worth the
largest load per GPU at which both promises are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmsim.core.errors import Fault, InputError, ModelDoesNotFitError
from llmsim.scenario import Scenario
from llmsim.study.executor import run_in_order
from llmsim.study.knee import TOLERANCE_FRAC, Knee, Promise, find_knee
from llmsim.study.points import PointStore

if TYPE_CHECKING:
    import pandas as pd

Report = Callable[[int, int | None], None]

TENSOR_PARALLEL: Final = (1, 2, 4, 8)
"""Degrees that are tried when none are named."""


@dataclass(frozen=True, slots=True, order=True)
class Plan:
    """A split of GPUs.

    Parameters
    ----------
    prefill_replicas, prefill_tp, decode_replicas, decode_tp : int
    """

    prefill_replicas: int
    prefill_tp: int
    decode_replicas: int
    decode_tp: int

    @property
    def gpus(self) -> int:
        """GPUs of both phases."""
        return self.prefill_replicas * self.prefill_tp + self.decode_replicas * self.decode_tp

    def __str__(self) -> str:
        prefill = f"{self.prefill_replicas} x tp{self.prefill_tp}"
        return f"{prefill} prefill, {self.decode_replicas} x tp{self.decode_tp} decode"


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan and what it holds.

    Parameters
    ----------
    plan : Plan
    knee : Knee or None
        None where the model does not fit the plan's GPUs.
    """

    plan: Plan
    knee: Knee | None

    @property
    def load(self) -> float:
        """Largest load; 0 where the model does not fit."""
        return 0.0 if self.knee is None else self.knee.load

    @property
    def per_gpu(self) -> float:
        """Largest load per GPU; 0 where the model does not fit."""
        return self.load / self.plan.gpus


@dataclass(frozen=True, slots=True)
class Placement:
    """What a search found.

    Parameters
    ----------
    tried : tuple of Tried
        Best first.
    """

    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        """The plan with the largest load per GPU."""
        return self.tried[0]

    def table(self) -> pd.DataFrame:
        """Return a row per plan, best first: the plan, its GPUs, its load, and that per GPU."""
        import pandas as pd

        rows = [
            (
                each.plan.prefill_replicas,
                each.plan.prefill_tp,
                each.plan.decode_replicas,
                each.plan.decode_tp,
                each.plan.gpus,
                each.load,
                each.per_gpu,
                each.knee is not None,
            )
            for each in self.tried
        ]
        heads = ["prefill_replicas", "prefill_tp", "decode_replicas", "decode_tp"]
        return pd.DataFrame(rows, columns=[*heads, "gpus", "load", "load_per_gpu", "fits"])


def plans(gpus: int, tps: Sequence[int] = TENSOR_PARALLEL) -> list[Plan]:
    """Return every plan that uses all of some GPUs, both phases alike in none but their sum.

    Parameters
    ----------
    gpus : int
        At least 2: either phase needs one.
    tps : sequence of int
        Tensor-parallel degrees to try.
    """
    found = []
    for prefill_tp in tps:
        for decode_tp in tps:
            for prefill_gpus in range(prefill_tp, gpus, prefill_tp):
                decode_gpus = gpus - prefill_gpus
                if decode_gpus % decode_tp == 0:
                    counts = prefill_gpus // prefill_tp, decode_gpus // decode_tp
                    found.append(Plan(counts[0], prefill_tp, counts[1], decode_tp))
    return sorted(found)


def search_placement(
    scenario: Scenario,
    gpus: int,
    tps: Sequence[int] = TENSOR_PARALLEL,
    promise: Promise | None = None,
    tolerance_frac: float = TOLERANCE_FRAC,
    jobs: int = -1,
    store: PointStore | None = None,
    report: Report | None = None,
) -> Placement:
    """Search the split of GPUs that serves the most per GPU.

    Parameters
    ----------
    scenario : Scenario
        With one pool of role `prefill` and one of role `decode`; their ``replicas`` and ``tp`` are
        replaced.
    gpus : int
        To be shared out.
    tps : sequence of int
        Tensor-parallel degrees to try.
    promise, tolerance_frac, store
        As for `find_knee`.
    jobs : int
        Processes; -1 for one per core.
    report : callable, optional
        Called with (plans done, plans in all).

    Raises
    ------
    InputError
        If the scenario has not one pool of either role, or no plan uses the GPUs.
    """
    prefill, decode = _phase_pools(scenario)
    asked = plans(gpus, tps)
    if not asked:
        message = f"{gpus} cannot be shared out over two phases with tp in {tuple(tps)}."
        raise InputError("placement", [Fault("", "gpus", message)])
    changes = [
        {
            f"fleet.pools.{prefill}.replicas": plan.prefill_replicas,
            f"fleet.pools.{prefill}.tp": plan.prefill_tp,
            f"fleet.pools.{decode}.replicas": plan.decode_replicas,
            f"fleet.pools.{decode}.tp": plan.decode_tp,
        }
        for plan in asked
    ]
    work = [
        (scenario, plan, change, promise, tolerance_frac, store)
        for plan, change in zip(asked, changes, strict=True)
    ]
    tried: list[Tried] = []
    for done, each in enumerate(run_in_order(_try_plan, work, jobs), 1):
        tried.append(each)
        if report is not None:
            report(done, len(asked))
    return Placement(tuple(sorted(tried, key=lambda each: (-each.per_gpu, each.plan))))


def _phase_pools(scenario: Scenario) -> tuple[str, str]:
    by_role: dict[str, list[str]] = {"prefill": [], "decode": [], "mixed": [], "encode": []}
    for name, pool in scenario.fleet.pools.items():
        by_role[pool.role].append(name)
    faults = [
        Fault("", "fleet.pools", f"{len(by_role[role])} pools of role {role}, must be {count}.")
        for role, count in (("prefill", 1), ("decode", 1), ("mixed", 0), ("encode", 0))
        if len(by_role[role]) != count
    ]
    if faults:
        raise InputError(scenario.name, faults)
    return by_role["prefill"][0], by_role["decode"][0]


def _try_plan(
    scenario: Scenario,
    plan: Plan,
    change: dict[str, object],
    promise: Promise | None,
    tolerance_frac: float,
    store: PointStore | None,
) -> Tried:
    try:
        changed = scenario.override(change)
        return Tried(plan, find_knee(changed, promise, None, tolerance_frac, store))
    except ModelDoesNotFitError:
        return Tried(plan, None)
