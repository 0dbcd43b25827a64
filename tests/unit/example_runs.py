"""Runs made by hand or by a one-server queue, for the tests of results and reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llmsim.results.columns import OUTCOMES, RAW_COLUMNS
from llmsim.results.facts import PoolFacts, ReplicaFacts, RunFacts
from llmsim.results.folder import RunInfo
from llmsim.results.histogram import LogHistogram
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.results.store import RequestSink
from llmsim.results.timeline import Timeline

S = 1_000_000_000
MS = 1_000_000

INFO = RunInfo(
    scenario="by-hand",
    model="llama-3.1-8b",
    fleet="1 x h100-sxm",
    seed=7,
    scenario_yaml="llmsim: 1\nname: by-hand\nmodel: <llama>\n",
    llmsim_version="0.1.0",
    hashes={"model": "abc"},
    wall_s=1.25,
)
POOL = PoolFacts("main", 1, "h100-sxm", 2, 100, 16, 3.0, "list price, 2025-01", 260.0)


def row(request: int, outcome: str = "finished", **given: int) -> tuple[int, ...]:
    """One recorded request; what is not given is 0, and -1 for session and client."""
    values: dict[str, int] = dict.fromkeys(RAW_COLUMNS, 0)
    values |= {"request": request, "session": -1, "client": -1, "outcome": OUTCOMES.index(outcome)}
    unknown = set(given) - set(RAW_COLUMNS)
    assert not unknown, unknown
    return tuple((values | given)[name] for name in RAW_COLUMNS)


def table_of(rows: list[tuple[int, ...]], path: Any = None) -> Any:
    sink = RequestSink(("main",), ("alice", "bob"), path)
    sink.rows.extend(rows)
    return sink.close()


def facts_of(
    n: int,
    end_ns: int,
    timeline: Timeline | None = None,
    itl: LogHistogram | None = None,
    **given: Any,
) -> RunFacts:
    replica = ReplicaFacts(
        "main", 0, (timeline or Timeline()).finish(), 10, 11, 3, 80, 1_000, 250, 5
    )
    values: dict[str, Any] = {
        "digest": "d1",
        "end_ns": end_ns,
        "requests": n,
        "events": 4_321,
        "itl": itl or LogHistogram(),
        "pools": (POOL,),
        "replicas": (replica,),
        "interrupted": False,
        "warnings": (),
    }
    return RunFacts(**(values | given))


def queue_run(rho: float, n: int, seed: int = 0, slo: Slo | None = None, **given: Any) -> Result:
    """One server, Poisson arrivals, exponential service of mean 100 ms, first come first served."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(0.1 / rho, n) * S).astype(np.int64)
    service = np.maximum(rng.exponential(0.1, n) * S, 2).astype(np.int64)
    start, end = np.empty(n, np.int64), np.empty(n, np.int64)
    free = 0
    for i in range(n):
        start[i] = max(free, arrival[i])
        free = end[i] = start[i] + service[i]
    rows = [
        row(
            i,
            arrival_ns=int(arrival[i]),
            scheduled_ns=int(start[i]),
            first_token_ns=int(start[i] + service[i] // 2),
            end_ns=int(end[i]),
            prompt_tokens=100,
            output_tokens=11,
            itl_max_ns=int(service[i] // 20),
        )
        for i in range(n)
    ]
    itl = LogHistogram()
    for duration in service.tolist():
        itl.add(duration / 20, 10)
    facts = facts_of(n, int(end[-1]), _levels(arrival, start, end), itl, **given)
    return Result(table_of(rows), facts, INFO, slo)


def _levels(arrival: Any, start: Any, end: Any) -> Timeline:
    timeline = Timeline()
    times = np.concatenate((arrival, start, end))
    waits = np.repeat([1, -1, 0], len(arrival))
    runs = np.repeat([0, 1, -1], len(arrival))
    order = np.argsort(times, kind="stable")
    at, waiting, running = 0, 0, 0
    for i in order.tolist():
        now = int(times[i])
        timeline.span(at, now, running, waiting, 40 * running, 40 * running, 0, 0, running > 0)
        at, waiting, running = now, waiting + int(waits[i]), running + int(runs[i])
    return timeline


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12)
