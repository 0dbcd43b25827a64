"""Closed forms corrected by simulation: one replica of each configuration on the mixed traffic.

Requests of the traffic come evenly to a single replica, faster and faster, until it no longer keeps
the promise (doubled, then bisected, every load with the same requests). What it served over what
its closed form says is the factor of that configuration; one that was not simulated takes the
median of its role. Evenly, because room for bursts is the fleet's matter, not the replica's. Who
computes prompts alone gets requests of one token and keeps TTFT; who decodes gets prompts from more
such replicas than it takes, and keeps TPOT and the time to the last token, of which prompts that do
not wait take little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from llmsim.core.rng import stream
from llmsim.planner.candidates import Candidate, Candidates
from llmsim.planner.capacity import Limits, Shape, capacity
from llmsim.planner.fleets import pool_of
from llmsim.planner.plan import Corrected
from llmsim.planner.problem import Role
from llmsim.planner.reading import POOL
from llmsim.planner.requests import KIND, write_requests
from llmsim.planner.work import Tell, Work
from llmsim.scenario import Scenario
from llmsim.serving.build import build_pools
from llmsim.study.executor import Workers
from llmsim.study.knee import Promise, find_knee
from llmsim.study.points import PointStore

TURNS: Final = 10
"""Requests of a micro-simulation, in fillings of the replica: what it begins with, empty, weighs
less than a tenth."""

FEWEST, MOST = 800, 5000
"""Requests of a micro-simulation."""

TOLERANCE_FRAC: Final = 0.05
"""How far below a load that fails, as for `find_knee`."""

SOURCES: Final = 3.0
"""Replicas that compute prompts for one that decodes, times as many as its closed form takes."""

KEY: Final = "traffic.trace.rate_scale"


@dataclass(frozen=True, slots=True)
class Trial:
    """One replica under the requests that it may get.

    Parameters
    ----------
    column : str
    role : {"mixed", "prefill", "decode"}
    scenario : Scenario
        Requests evenly at the rate that the closed form says.
    closed_rps : float [requests/s]
    attained_frac : float
        Share that must keep the promise; what is late on any replica is forgiven.
    """

    column: str
    role: Role
    scenario: Scenario
    closed_rps: float
    attained_frac: float


def correct(
    work: Work, workers: Workers, store: PointStore, folder: Path, tell: Tell | None = None
) -> tuple[Work, tuple[Corrected, ...]]:
    """Return the work with capacities as simulated, and the factors.

    Parameters
    ----------
    work : Work
    workers : Workers
    store : PointStore
    folder : Path
        Where the requests of the micro-simulations are kept.
    tell : callable, optional
    """
    trials = _nearest(work, [_trial(work, each, folder) for each in work.candidates.kept])
    found: list[Corrected] = []
    tasks = [(trial, store) for trial in trials]
    for done, (_, each) in enumerate(workers.completed(run_trial, tasks), 1):
        found.append(each)
        if tell is not None:
            tell("single replicas", done, len(trials))
    order = [trial.column for trial in trials]
    found.sort(key=lambda each: order.index(each.column))
    known = {each.column: each.factor for each in found if each.factor > 0}
    of_role: dict[str, list[float]] = {}
    for each in found:
        if each.factor > 0:
            of_role.setdefault(each.role, []).append(each.factor)
    usual = {role: float(np.median(factors)) for role, factors in of_role.items()}

    def scaled(each: Candidate) -> Candidate:
        factor = known.get(each.column.name, usual.get(each.role, 1.0))
        rates = {name: rate * factor for name, rate in each.column.throughput_rps.items()}
        column = replace(each.column, throughput_rps=rates)
        in_flight = max(each.in_flight * factor, 1.0)
        slots = each.slots if each.role == "prefill" else in_flight
        return replace(each, column=column, in_flight=in_flight, slots=slots)

    kept = tuple(scaled(each) for each in work.candidates.kept)
    current = {choice: scaled(each) for choice, each in work.candidates.current.items()}
    candidates = Candidates(kept, work.candidates.lost, current)
    return replace(work, candidates=candidates), tuple(found)


def run_trial(trial: Trial, store: PointStore) -> Corrected:
    """Search the largest rate that one replica serves.

    Parameters
    ----------
    trial : Trial
    store : PointStore
    """
    promised = trial.scenario.override({"slo.attained_frac": trial.attained_frac})
    knee = find_knee(promised, Promise(), KEY, TOLERANCE_FRAC, store)
    # the trace has one request a second
    served = knee.load if math.isfinite(knee.load) else max(load for load, _ in knee.tried)
    factor = served / trial.closed_rps
    return Corrected(trial.column, trial.role, trial.closed_rps, served, factor, len(knee.tried))


def _nearest(work: Work, trials: Sequence[Trial | None]) -> list[Trial]:
    """Return the trials that are made: of each role the cheapest per request."""
    made = [each for each in trials if each is not None]
    cost = {each.column: work.price(each.column) / each.closed_rps for each in made}
    made.sort(key=lambda each: cost[each.column])
    roles = work.asked.keys.search.roles
    most = -(-work.asked.keys.prove.micro_columns // len(roles))
    return [each for role in roles for each in [t for t in made if t.role == role][:most]]


def _trial(work: Work, candidate: Candidate, folder: Path) -> Trial | None:
    """Return the micro-simulation of a configuration; None where its part is promised nothing."""
    role, slo = candidate.role, work.asked.scenario.slo
    kept = {"prefill": (slo.ttft_s,), "decode": (slo.tpot_s, slo.itl_s, slo.e2e_s)}
    if role != "mixed" and not any(kept[role]):
        return None
    able = candidate.column.throughput_rps
    parts = [part for part in work.ranges if part.name in able]
    load = math.fsum(part.rate_rps / able[part.name] for part in parts)
    closed_rps = math.fsum(part.rate_rps for part in parts) / load
    late = math.fsum(part.rate_rps * candidate.late_frac[part.name] for part in parts)
    late /= math.fsum(part.rate_rps for part in parts)
    path = _requests(work, able, candidate, folder)
    told = work.asked.scenario.resolved()
    name, pool = pool_of(work.asked, candidate, 1)
    told["traffic"] = {
        "trace": {"kind": KIND, "path": str(path), "rate_scale": closed_rps},
        "warmup_s": 0.0,
    }
    told["fleet"] = {"routing": "least-loaded", "pools": {name: pool}}
    if role == "prefill":
        pool["role"] = "mixed"
        told["slo"] = {**told["slo"], "tpot_s": None, "itl_s": None, "e2e_s": None}
    elif role == "decode":
        source = {**pool, "role": "prefill", "replicas": _sources(work, candidate, closed_rps)}
        handoff = work.asked.keys.handoff.model_dump(mode="json", exclude={"routing"})
        told["fleet"] |= {"pools": {"source": source, name: pool}, "handoff": handoff}
        told["slo"] = {**told["slo"], "ttft_s": None, "ttft_per_prompt_token_s": 0.0}
    target = max(work.asked.keys.slo.attained_frac - late, 0.01)
    scenario = Scenario.parse(told, work.asked.scenario.folder)
    return Trial(candidate.column.name, role, scenario, closed_rps, target)


def _sources(work: Work, candidate: Candidate, closed_rps: float) -> int:
    """Return how many replicas of the same make compute prompts fast enough for a decoding one."""
    sample = work.sample
    prompt = Shape(max(round(float(sample.prompt_tokens.mean())), 1), 1)
    pool = work.asked.scenario.override(candidate.choice.overrides(POOL))
    plan = build_pools(pool)[0][0]
    found = capacity(
        plan.cost, plan.config, prompt, Limits(), "prefill", plan.joint, candidate.choice.dp
    )
    return math.ceil(SOURCES * closed_rps / found.rate_rps)


def _requests(work: Work, able: Mapping[str, float], candidate: Candidate, folder: Path) -> Path:
    """Write requests of the ranges that a configuration may get, one a second; return the file."""
    sample = work.sample
    edges = [part.low_tokens for part in work.ranges]
    place = np.clip(np.searchsorted(edges, sample.prompt_tokens, side="right") - 1, 0, None)
    own = np.array([part.name in able for part in work.ranges])
    rows = np.flatnonzero(own[place])
    count = int(min(max(TURNS * candidate.in_flight, FEWEST), MOST))
    # the same requests for all that may get the same ranges, in an order of no meaning
    drawn = rows[stream(work.asked.keys.seed, "micro").integers(0, len(rows), count)]
    outputs = sample.output_tokens[drawn]
    if candidate.role == "prefill":
        outputs = np.ones_like(outputs)
    return write_requests(np.arange(count), sample.prompt_tokens[drawn], outputs, folder)
