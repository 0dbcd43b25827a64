"""`llmsim plan`: from a plan file to the cheapest fleet, step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, InputError
from llmsim.core.paths import cache_folder
from llmsim.planner.correcting import correct
from llmsim.planner.fleets import fleet_scenario
from llmsim.planner.losers import losers
from llmsim.planner.packing import Packed, pack
from llmsim.planner.plan import Bound, Corrected, Demanded, Plan, Rival, Step, Used
from llmsim.planner.proving import Loop, Proven
from llmsim.planner.reading import read_plan
from llmsim.planner.rivals import current_fleet, rivals
from llmsim.planner.simulating import Laboratory
from llmsim.planner.spending import spending
from llmsim.planner.splitting import Split
from llmsim.planner.work import Tell, Work, prepare
from llmsim.study.executor import Executor, open_workers
from llmsim.study.points import PointStore

EVENLY: Final = (
    "no replica carries more than its closed form says, loads add up, and requests come evenly"
)
SIMULATED: Final = (
    "no replica serves more than one alone did of requests that came evenly, and loads add up"
)

UNSEEN: Final = "the fleet comes from programs and closed forms alone"

MEANINGS: Final = {
    "naive": "as if requests came evenly: what integer programs alone say",
    "pooled": "with room for bursts, the more the smaller a pool is (queueing formula)",
    "N+k": "with replicas of any one kind lost",
    "loss": "with a node, a zone, or replicas of any one kind lost",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A fleet that a program chose.

    Parameters
    ----------
    name : str
    packed : Packed
    seconds : float [s]
    """

    name: str
    packed: Packed
    seconds: float

    def step(self, spare: int) -> Step:
        """Return the stage as the waterfall shows it.

        Parameters
        ----------
        spare : int
        """
        name = f"N+{spare}" if self.name == "N+k" else self.name
        fleet = dict(self.packed.replicas)
        return Step(name, MEANINGS[self.name], self.packed.usd_per_hour, fleet, self.seconds)


def plan(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    *,
    simulate: bool = True,
    executor: Executor | None = None,
    progress: Tell | None = None,
) -> Plan:
    """Find the cheapest fleet that keeps a promise, and show by simulation that it does.

    Parameters
    ----------
    source : str, Path or mapping
        A plan file, the bare name of a shipped one, or what a file would say.
    overrides : mapping of str to object, optional
        Values by dotted path, such as ``{"slo.ttft_s": 1.0}``.
    simulate : bool
        Without it, the fleet comes from programs and closed forms alone.
    executor : Executor, optional
        Where to simulate; all cores of this machine when absent. Simulations are kept, so that a
        plan that was stopped goes on where it was.
    progress : callable, optional
        Called with (what is being done, how much of it is done, how much there is or None).

    Returns
    -------
    Plan
        ``.used`` is the fleet, ``.usd_per_hour`` its cost, ``.outcome`` and ``.evidence`` what was
        shown of it, ``.bound`` what no fleet can be below.

    Raises
    ------
    InputError
        With every fault of the file; or why no fleet that is allowed keeps the promise.
    """
    begun_s = time.perf_counter()
    work = prepare(read_plan(source, overrides), progress)
    return plan_work(work, simulate=simulate, executor=executor, progress=progress, begun_s=begun_s)


def plan_work(
    work: Work,
    *,
    simulate: bool = True,
    executor: Executor | None = None,
    progress: Tell | None = None,
    begun_s: float | None = None,
) -> Plan:
    """Find the fleet of a plan whose traffic and configurations are known.

    Parameters
    ----------
    work : Work
    simulate, executor, progress
        As for `plan`.
    begun_s : float, optional [s]
        When planning began, by `time.perf_counter`; now when absent.

    Raises
    ------
    InputError
        Why no fleet that is allowed keeps the promise.
    """
    begun_s = time.perf_counter() if begun_s is None else begun_s
    asked = work.asked
    stages = solve_stages(work, progress, strict=not simulate)
    if not simulate:
        return assemble(work, stages, Found(dict(stages[-1].packed.replicas)), begun_s)
    store, folder = kept_runs()
    with open_workers(executor or Executor()) as workers:
        corrected: tuple[Corrected, ...] = ()
        if asked.keys.prove.micro_columns:
            work, corrected = correct(work, workers, store, folder, progress)
            stages = [stages[0], *_again(work, progress)]
        laboratory = Laboratory(work, workers, store, progress)
        if work.candidates.current and len(work.candidates.current) == len(asked.current):
            laboratory.judge({c.name: n for c, n in asked.current.items()}, "current", lossy=False)
        laboratory.judge(dict(stages[0].packed.replicas), "naive", lossy=False)
        first = dict(stages[-1].packed.replicas)
        laboratory.judge(first, "pooled")
        others = rivals(work, laboratory)
        most = laboratory.fleets + asked.keys.prove.most_fleets
        proven = Loop(work, laboratory, most).run(first)
    found = Found(proven.fleet, proven, corrected, laboratory, others)
    return assemble(work, stages, found, begun_s)


def kept_runs() -> tuple[PointStore, Path]:
    """Return where simulations of plans, and the requests of single replicas, are kept."""
    return PointStore.default("plan"), cache_folder() / "plan-requests"


def _again(work: Work, tell: Tell | None) -> list[Stage]:
    """Return the stages after the naive one, with corrected capacities; those that there are."""
    try:
        return solve_stages(work, tell, strict=False)[1:]
    except InputError:
        return []


@dataclass(frozen=True, slots=True)
class Found:
    """A fleet, and what was found out about it.

    Parameters
    ----------
    fleet : mapping of str to int [replicas]
    proven : Proven or None
        None where nothing was simulated.
    corrected : tuple of Corrected
    laboratory : Laboratory or None
    rivals : tuple of Rival
    """

    fleet: Mapping[str, int]
    proven: Proven | None = None
    corrected: tuple[Corrected, ...] = ()
    laboratory: Laboratory | None = None
    rivals: tuple[Rival, ...] = ()


def solve_stages(work: Work, tell: Tell | None = None, strict: bool = True) -> list[Stage]:
    """Return the fleets of the programs, each with one thing more than the one before.

    Parameters
    ----------
    work : Work
    tell : callable, optional
    strict : bool
        Without it, programs that leave room for bursts may have no answer: they go by a formula,
        and simulation may know better.

    Raises
    ------
    InputError
        If nothing that is allowed carries the traffic, with the key of the plan that is in the way.
    """
    keys = work.asked.keys
    problems = {"naive": work.problem(), "pooled": work.problem(pooled=True)}
    if work.lossy:
        name = "loss" if keys.spare_nodes or keys.zones else "N+k"
        problems[name] = work.problem(pooled=True, lossy=True)
    stages: list[Stage] = []
    for number, (name, problem) in enumerate(problems.items(), 1):
        begun_s = time.perf_counter()
        try:
            packed = pack(problem, work.solver)
        except InputError as error:
            if strict or name == "naive":
                raise work.asked.located(own_words(error.faults)) from None
            continue
        stages.append(Stage(name, packed, time.perf_counter() - begun_s))
        if tell is not None:
            tell("programs", number, len(problems))
    return stages


def own_words(faults: tuple[Fault, ...]) -> list[Fault]:
    """Return faults of a program as faults of a plan file.

    Parameters
    ----------
    faults : tuple of Fault
    """
    found = []
    for fault in faults:
        path = fault.path
        if path.startswith("available_gpus."):
            path = f"gpus.{path.partition('.')[2]}.available"
        path = {"port_usable_frac": "search.port_frac"}.get(path, path)
        path = {"available_gpus": "gpus", "time_limit_s": "solve.time_limit_s"}.get(path, path)
        if path.startswith(("buckets", "columns")):
            path = "slo"
        found.append(Fault(fault.where, path, fault.message, fault.hint))
    return found


def assemble(work: Work, stages: list[Stage], found: Found, begun_s: float) -> Plan:
    """Return the plan for a fleet.

    Parameters
    ----------
    work : Work
    stages : list of Stage
    found : Found
    begun_s : float [s]
        When planning began, by `time.perf_counter`.
    """
    asked, spare = work.asked, work.asked.keys.spare_replicas
    fleet, proven = found.fleet, found.proven
    divided = work.split(fleet)
    assert divided is not None, "the program lets no range go unserved"
    used = tuple(_used(work, name, count, divided) for name, count in sorted(fleet.items()))
    cost = math.fsum(each.usd_per_hour * each.replicas for each in used)
    floor = stages[0].packed.proof.bound if proven is None else proven.floor
    assumption = SIMULATED if found.corrected else EVENLY
    if proven is not None and proven.relief > 1 + 1e-6:
        assumption += (
            f"; but {proven.relief:.3g} times as much, which a fleet that passed does carry"
        )
    bound = Bound(floor, (cost - floor) / cost, assumption)
    steps = [stage.step(spare) for stage in stages]
    if proven is not None and proven.outcome != "not proven":
        steps.append(
            Step(
                "simulated",
                "as shown by simulation",
                cost,
                dict(fleet),
                time.perf_counter() - begun_s,
            )
        )
    scenario = fleet_scenario(asked, work.candidates, work.ranges, fleet, divided)
    least = {
        part.name: min(each.late_frac[part.name] for each in work.candidates.kept)
        for part in work.ranges
    }
    slo = asked.scenario.slo.objectives()
    return Plan(
        name=asked.keys.name,
        model=asked.keys.model,
        outcome="not simulated" if proven is None else proven.outcome,
        reason=UNSEEN if proven is None else proven.reason,
        rate_rps=work.sample.rate_rps,
        dispersion=max(burst.arrivals for burst in work.bursts.values()),
        ranges=tuple(
            Demanded(part.name, part.low_tokens, part.rate_rps, least[part.name])
            for part in work.ranges
        ),
        slo={**slo.limits(), "attained_frac": slo.attained_frac},
        used=used,
        usd_per_hour=cost,
        bound=bound,
        waterfall=tuple(steps),
        rivals=rivals(work) if found.laboratory is None else found.rivals,
        current=current_fleet(work),
        evidence=() if found.laboratory is None else tuple(found.laboratory.evidence),
        corrected=found.corrected,
        losers=losers(work, fleet),
        notes=notes(work, stages),
        scenario_yaml=scenario.resolved_yaml(),
        plan_yaml=asked.text,
        llmsim_version=version("llmsim"),
        seconds=time.perf_counter() - begun_s,
    )


def _used(work: Work, name: str, count: int, divided: Split) -> Used:
    found = work.candidates.of(name)
    choice, column = found.choice, found.column
    share = {bucket: part for (bucket, of), part in divided.share.items() if of == name}
    rates = {part.name: part.rate_rps for part in work.ranges}
    load = math.fsum(part * rates[b] * column.load_per_rps(b) for b, part in share.items())
    return Used(
        name=name,
        gpu=choice.gpu,
        role=choice.role,
        tp=choice.tp,
        dp=choice.dp,
        pp=choice.pp,
        ep=choice.ep,
        quantisation=choice.quantisation,
        max_num_seqs=choice.max_num_seqs,
        max_num_batched_tokens=choice.max_num_batched_tokens,
        clock_frac=choice.clock_frac,
        gpus=column.gpus,
        usd_per_hour=column.usd_per_hour,
        price_source=work.asked.price_sources[choice.gpu],
        replicas=count,
        spare_replicas=min(_lost(work, name, count), count),
        utilisation_frac=load / count,
        in_flight=found.in_flight,
        bound=found.bound(work.demand),
        share=share,
        port_frac=divided.ports.get(name, 0.0) * work.asked.keys.search.port_frac,
        spending=spending(work.asked, found, work.demand),
    )


def _lost(work: Work, name: str, count: int) -> int:
    """Return how many replicas of a column may be lost at a time."""
    return max((lost.get(name, 0) for lost in work.losses({name: count}).values()), default=0)


def notes(work: Work, stages: list[Stage]) -> tuple[str, ...]:
    """Return what must be known about a plan's numbers.

    Parameters
    ----------
    work : Work
    stages : list of Stage
    """
    found = []
    for stage in stages:
        if stage.packed.proof.status == "feasible":
            gap = stage.packed.proof.gap_frac
            found.append(
                f"the program of the {stage.name} fleet ran into its time limit, {gap:.1%} above "
                "its bound"
            )
    far = sum("nearest are considered" in each.reason for each in work.candidates.lost)
    if far:
        found.append(
            f"{far} configurations were left out as too far from the cheapest per request "
            "(search.most_columns); the bound is of fleets without them"
        )
    if len(stages) == 1:
        found.append(
            "no fleet that is allowed leaves as much room for bursts as the formula asks for; the "
            "search began with the naive fleet"
        )
    if work.sample.shares_prefixes:
        found.append(
            "prompts share prefixes: fleets are simulated with hits, but closed forms and single "
            "replicas are without, so that a cheaper fleet than the bound may do"
        )
    if work.asked.undivided:
        found.append(
            f"of e2e_s prompts on replicas of their own may take {work.asked.first_frac:.0%}, the "
            "cheapest share of those tried; the bound is of this division"
        )
    if work.asked.scenario.slo.itl_s is not None:
        found.append("itl_s has no closed form: programs leave it out, simulation judges it")
    if any(stage.packed.proof.bound != stage.packed.proof.bound for stage in stages):
        found.append("a program has no proven bound")
    return tuple(found)
