"""From a fleet and a split to a scenario that simulates it, pools of unlike replicas and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmsim.planner.candidates import Candidate, Candidates
from llmsim.planner.reading import POOL, Asked
from llmsim.planner.splitting import Split
from llmsim.planner.traffic import Range, prompt_edges
from llmsim.scenario import Scenario


def pool_name(column: str) -> str:
    """Return the name of a column's pool: no dot, since it is part of dotted paths.

    Parameters
    ----------
    column : str
    """
    return column.replace(".", "_")


def pool_of(asked: Asked, candidate: Candidate, replicas: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the keys of the pool of a configuration.

    Parameters
    ----------
    asked : Asked
    candidate : Candidate
    replicas : int
    """
    told = asked.scenario.resolved()["fleet"]["pools"][POOL]
    choice = candidate.choice
    engine = {
        **told.get("engine", {}),
        "max_num_seqs": choice.max_num_seqs,
        "max_num_batched_tokens": choice.max_num_batched_tokens,
    }
    if choice.quantisation:
        engine["quantisation"] = choice.quantisation
    pool = {
        **told,
        "gpu": choice.gpu,
        "replicas": replicas,
        "tp": choice.tp,
        "pp": choice.pp,
        "ep": choice.ep,
        "clock_frac": choice.clock_frac,
        "gpu_price_usd_per_hour": asked.usd_per_gpu_hour[choice.gpu],
        "engine": engine,
    }
    return pool_name(candidate.column.name), pool


def fleet_scenario(
    asked: Asked,
    candidates: Candidates,
    ranges: Sequence[Range],
    replicas: Mapping[str, int],
    divided: Split,
) -> Scenario:
    """Return the scenario of a fleet under the traffic of the plan.

    Parameters
    ----------
    asked : Asked
    candidates : Candidates
    ranges : sequence of Range
    replicas : mapping of str to int
        By column; at least one.
    divided : Split
    """
    told = asked.scenario.resolved()
    pools: dict[str, Any] = {}
    shares: dict[str, list[float | None]] = {}
    for name, count in replicas.items():
        found = candidates.of(name)
        own, pool = pool_of(asked, found, count)
        pools[own] = pool
        able = found.column.throughput_rps
        shares[own] = [
            divided.share.get((part.name, name), 0.0) if part.name in able else None
            for part in ranges
        ]
    routing = {
        "kind": "planned-split",
        "edges_tokens": list(prompt_edges(tuple(ranges))),
        "shares": shares,
        "capacity": {pool_name(name): candidates.of(name).in_flight for name in replicas},
    }
    told["fleet"] = {**told["fleet"], "routing": routing, "pools": pools}
    return Scenario.parse(told, asked.scenario.folder)
