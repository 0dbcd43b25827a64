"""Closed forms corrected by simulation: one replica of each configuration on the mixed traffic.

Requests of the traffic come evenly to a single replica, faster and faster, until it no longer keeps
the promise (doubled, then bisected, every load with the same requests). What it served over what
its closed form says is the factor of that configuration; one that was not simulated takes the
median of its role. Evenly, because room for bursts is the fleet's matter, not the replica's.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np

from llmsim.core.rng import stream
from llmsim.planner.candidates import Candidate, Candidates
from llmsim.planner.fleets import pool_of
from llmsim.planner.plan import Corrected
from llmsim.planner.work import Tell, Work
from llmsim.scenario import Scenario
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

KEY: Final = "traffic.trace.rate_scale"


@dataclass(frozen=True, slots=True)
class Trial:
    """One replica under the requests that it may get.

    Parameters
    ----------
    column : str
    scenario : Scenario
        Requests evenly at the rate that the closed form says.
    closed_rps : float [requests/s]
    attained_frac : float
        Share that must keep the promise; what is late on any replica is forgiven.
    """

    column: str
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
    trials = [_trial(work, each, folder) for each in work.candidates.kept]
    cost = {each.column: work.price(each.column) / each.closed_rps for each in trials}
    trials.sort(key=lambda each: cost[each.column])
    trials = trials[: work.asked.keys.prove.micro_columns]
    found: list[Corrected] = []
    tasks = [(trial, store) for trial in trials]
    for done, (_, each) in enumerate(workers.completed(run_trial, tasks), 1):
        found.append(each)
        if tell is not None:
            tell("single replicas", done, len(trials))
    order = [trial.column for trial in trials]
    found.sort(key=lambda each: order.index(each.column))
    known = {each.column: each.factor for each in found if each.factor > 0}
    usual = float(np.median(list(known.values()))) if known else 1.0

    def scaled(each: Candidate) -> Candidate:
        factor = known.get(each.column.name, usual)
        rates = {name: rate * factor for name, rate in each.column.throughput_rps.items()}
        column = replace(each.column, throughput_rps=rates)
        return replace(each, column=column, in_flight=max(each.in_flight * factor, 1.0))

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
    return Corrected(trial.column, "mixed", trial.closed_rps, served, factor, len(knee.tried))


def _trial(work: Work, candidate: Candidate, folder: Path) -> Trial:
    """Return the micro-simulation of a configuration."""
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
        "trace": {"kind": "azure-2023", "path": str(path), "rate_scale": closed_rps},
        "warmup_s": 0.0,
    }
    told["fleet"] = {"routing": "least-loaded", "pools": {name: pool}}
    target = max(work.asked.keys.slo.attained_frac - late, 0.01)
    scenario = Scenario.parse(told, work.asked.scenario.folder)
    return Trial(candidate.column.name, scenario, closed_rps, target)


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
    tokens = np.column_stack((sample.prompt_tokens[drawn], sample.output_tokens[drawn]))
    name = hashlib.blake2b(tokens.tobytes(), digest_size=12).hexdigest()
    path = folder / f"requests-{name}.csv"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    begin = datetime(2023, 1, 1)  # noqa: DTZ001 - the format has no zone
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for second, row in enumerate(tokens.tolist()):
            stamp = begin + timedelta(seconds=second)
            writer.writerow([f"{stamp:%Y-%m-%d %H:%M:%S}.0000000", *row])
    beside.replace(path)
    return path
