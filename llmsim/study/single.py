"""One scenario, simulated once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from llmsim.core.units import seconds_to_ns
from llmsim.results.facts import PoolFacts
from llmsim.results.folder import RunInfo
from llmsim.results.result import Render, Result
from llmsim.results.store import RequestSink
from llmsim.scenario import Scenario, build_workload
from llmsim.serving.build import (
    build_control,
    build_estimates,
    build_gateway,
    build_handoff,
    build_heartbeats,
    build_pools,
    build_router,
    fingerprint,
    itl_objective_ns,
)
from llmsim.serving.meter import NEVER
from llmsim.serving.promised import promises
from llmsim.serving.seeing import build_encoding
from llmsim.serving.simulate import simulate

Progress = Callable[[int, int | None], None]


def simulate_scenario(
    scenario: Scenario, progress: Progress | None = None, render: Render | None = None
) -> Result:
    """Simulate a scenario.

    Parameters
    ----------
    scenario : Scenario
    progress : callable, optional
        Called with (requests ended, total or None) now and then.
    render : callable, optional
        Makes the report when the result is saved.

    Raises
    ------
    InputError
        If a card or the trace is wrong; lists every fault.
    ModelDoesNotFitError
        If the model does not fit its GPUs.
    """
    pools, warnings = build_pools(scenario)
    estimates, declared = build_estimates(scenario)
    workload = build_workload(scenario)
    handoff = build_handoff(scenario)
    asked = scenario.estimators.tool_time
    traffic = scenario.traffic
    timeout_ns = 0 if traffic.timeout_s is None else seconds_to_ns(traffic.timeout_s)
    sink = RequestSink(
        [pool.facts.name for pool in pools],
        lambda: workload.clients,
        programs=workload.programs is not None,
        slo_classes=tuple(scenario.slo.classes or ()),
        handoff=handoff is not None,
    )
    began = time.perf_counter()
    try:
        facts = simulate(
            pools,
            workload,
            build_router(scenario),
            sink,
            seed=scenario.seed,
            view_age_ns=seconds_to_ns(scenario.fleet.view_age_s),
            handoff=handoff,
            control=build_control(scenario, pools),
            gateway=build_gateway(scenario),
            heartbeats=build_heartbeats(scenario),
            count_own_sends=scenario.fleet.count_own_sends,
            clients=promises(scenario, timeout_ns),
            itl_slo_ns=itl_objective_ns(scenario, NEVER),
            token_times=scenario.record.tokens,
            keep_steps=scenario.record.steps,
            estimates=estimates,
            tool_times=None if asked is None else asked.build,
            encoding=build_encoding(scenario),
            progress=progress,
        )
    finally:
        table = sink.close()
    info = RunInfo(
        scenario=scenario.name,
        model=" + ".join(scenario.models),
        fleet=", ".join(_fleet_words(pool.facts) for pool in pools),
        seed=scenario.seed,
        scenario_yaml=scenario.resolved_yaml(),
        llmsim_version=version("llmsim"),
        hashes=fingerprint(scenario),
        wall_s=time.perf_counter() - began,
    )
    facts = replace(facts, warnings=(*declared, *warnings, *facts.warnings))
    objectives = scenario.slo.objectives()
    return Result(table, facts, info, objectives, traffic.warmup_s, render=render)


def simulate_whole(scenario: Scenario) -> Result:
    """Simulate a scenario to its end, for studies, in which a part of a run is worth nothing.

    Raises
    ------
    KeyboardInterrupt
        After Ctrl-C; `simulate_scenario` would return what happened before.
    """
    result = simulate_scenario(scenario)
    if result.facts.interrupted:
        raise KeyboardInterrupt
    return result


def _fleet_words(pool: PoolFacts) -> str:
    if not pool.gpus_per_replica:
        return f"{pool.replicas} lanes beside"
    gpus = pool.gpu if pool.gpus_per_replica == 1 else f"{pool.gpus_per_replica} {pool.gpu}"
    return f"{pool.replicas} x {gpus}"
