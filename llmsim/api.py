"""Everything the command line does, as calls: `run`, `load`, `names`, `card`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from llmsim.core.errors import RegistryError, nearest
from llmsim.core.units import seconds_to_ns
from llmsim.report.html import render_html
from llmsim.results.facts import PoolFacts
from llmsim.results.folder import RunInfo, check_free
from llmsim.results.result import Result
from llmsim.results.store import RequestSink
from llmsim.scenario import Scenario, build_workload
from llmsim.scenario.component import registry
from llmsim.serving.build import build_pools, fingerprint, itl_objective_ns
from llmsim.serving.fleet import ClientRules
from llmsim.serving.meter import NEVER
from llmsim.serving.simulate import simulate
from llmsim.specs import GpuCard, LinkCard, ModelSpec, load_gpu, load_link, load_model

Progress = Callable[[int, int | None], None]


def run(
    scenario: Scenario | str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    seed: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Simulate a scenario.

    Parameters
    ----------
    scenario : Scenario, str or Path
        A scenario, a file, or the name of a shipped one.
    overrides : mapping of str to object, optional
        Values by dotted path, such as ``{"fleet.pools.main.replicas": 8}``.
    seed : int, optional
        Replaces the scenario's seed.
    out : str or Path, optional
        Save the run folder there; an existing one that is not empty is refused.
    force : bool
        Replace the run folder instead.
    progress : callable, optional
        Called with (requests ended, total or None) now and then.

    Returns
    -------
    Result
        Valid up to the point of interruption after Ctrl-C; `Result.facts.interrupted` says so.

    Raises
    ------
    InputError
        If the scenario, a card or the trace is wrong; lists every fault.
    ModelDoesNotFitError
        If the model does not fit its GPUs.
    OutputError
        If `out` is taken; raised before anything is simulated.
    """
    asked = dict(overrides or {})
    if seed is not None:
        asked["seed"] = seed
    if not isinstance(scenario, Scenario):
        scenario = Scenario.load(scenario, asked)
    elif asked:
        scenario = scenario.override(asked)
    if out is not None:
        check_free(Path(out), force)
    result = _simulate(scenario, progress)
    if out is not None:
        result.save(out, force)
    return result


def _simulate(scenario: Scenario, progress: Progress | None) -> Result:
    pools, warnings = build_pools(scenario)
    workload = build_workload(scenario)
    traffic = scenario.traffic
    timeout_ns = 0 if traffic.timeout_s is None else seconds_to_ns(traffic.timeout_s)
    sink = RequestSink([pool.facts.name for pool in pools], lambda: workload.clients)
    began = time.perf_counter()
    try:
        facts = simulate(
            pools,
            workload,
            scenario.fleet.routing.build(),
            sink,
            seed=scenario.seed,
            view_age_ns=seconds_to_ns(scenario.fleet.view_age_s),
            clients=ClientRules(timeout_ns=timeout_ns),
            itl_slo_ns=itl_objective_ns(scenario, NEVER),
            progress=progress,
        )
    finally:
        table = sink.close()
    info = RunInfo(
        scenario=scenario.name,
        model=scenario.model,
        fleet=", ".join(_fleet_words(pool.facts) for pool in pools),
        seed=scenario.seed,
        scenario_yaml=scenario.resolved_yaml(),
        llmsim_version=version("llmsim"),
        hashes=fingerprint(scenario),
        wall_s=time.perf_counter() - began,
    )
    facts = replace(facts, warnings=(*warnings, *facts.warnings))
    objectives = scenario.slo.objectives()
    return Result(table, facts, info, objectives, traffic.warmup_s, render=render_html)


def _fleet_words(pool: PoolFacts) -> str:
    gpus = pool.gpu if pool.gpus_per_replica == 1 else f"{pool.gpus_per_replica} {pool.gpu}"
    return f"{pool.replicas} x {gpus}"


def load(folder: str | Path) -> Result:
    """Read a run folder back.

    Raises
    ------
    InputError
        If it is not a run folder or its tables are not what this version writes.
    """
    return Result.load(folder, render=render_html)


def names(seam: str) -> tuple[str, ...]:
    """Return the registered names of a seam, such as ``"routing"``.

    Raises
    ------
    RegistryError
        If there is no such seam.
    """
    return registry(seam).names()


def card(kind: str, name: str) -> GpuCard | LinkCard | ModelSpec:
    """Return a card, each number of it with unit and source in `rows`.

    Parameters
    ----------
    kind : str
        ``"gpu"``, ``"link"`` or ``"model"``.
    name : str
        Its name, or a path to a file.

    Raises
    ------
    CardError
        If there is no such card.
    RegistryError
        If there is no such kind of card.
    """
    readers: dict[str, Callable[[str], GpuCard | LinkCard | ModelSpec]] = {
        "gpu": load_gpu,
        "link": load_link,
        "model": load_model,
    }
    if kind not in readers:
        raise RegistryError(f"unknown kind of card '{kind}'. {nearest(kind, readers)}")
    return readers[kind](name)
