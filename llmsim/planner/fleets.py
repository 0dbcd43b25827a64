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
    if choice.role != "mixed":
        told = {**told, "role": choice.role}
    if choice.quantisation:
        engine["quantisation"] = choice.quantisation
    pool = {
        **told,
        "gpu": choice.gpu,
        "replicas": replicas,
        "tp": choice.tp,
        "pp": choice.pp,
        "ep": choice.ep,
        "dp": choice.dp,
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
    pools = dict(pool_of(asked, candidates.of(name), count) for name, count in replicas.items())
    role = {name: candidates.of(name).role for name in replicas}
    doors = [name for name in replicas if role[name] != "decode"]
    fleet = {**told["fleet"], "pools": pools}
    fleet["routing"] = _routing(candidates, ranges, doors, divided)
    decoders = [name for name in replicas if role[name] == "decode"]
    if decoders:
        asked_handoff = asked.keys.handoff.model_dump(mode="json", exclude={"routing"})
        fleet["handoff"] = {
            **asked_handoff,
            "routing": _routing(candidates, ranges, decoders, divided),
        }
        if len(doors) == len(decoders) == 1:  # nothing to divide: engines' own routers do
            fleet["routing"] = fleet["handoff"]["routing"] = "least-loaded"
    told["fleet"] = fleet
    return Scenario.parse(told, asked.scenario.folder)


def _routing(
    candidates: Candidates,
    ranges: Sequence[Range],
    names: Sequence[str],
    divided: Split,
) -> dict[str, Any]:
    """Return a router that divides ranges over pools as planned."""
    shares: dict[str, list[float | None]] = {}
    for name in names:
        able = candidates.of(name).column
        shares[pool_name(name)] = [
            divided.share.get((part.name, name), 0.0) if able.serves(part.name) else None
            for part in ranges
        ]
    for place in range(len(ranges)):
        if not any(own[place] for own in shares.values()):
            # none of it is planned here: what is passed on from elsewhere goes to all who can
            takers = [own for own in shares.values() if own[place] is not None]
            for own in takers or shares.values():
                own[place] = 1.0
    capacity = {pool_name(name): candidates.of(name).in_flight for name in names}
    edges = list(prompt_edges(tuple(ranges)))
    return {
        "kind": "planned-split",
        "edges_tokens": edges,
        "shares": shares,
        "capacity": capacity,
    }
