"""Simulating one case without writing a run folder; the statistics that its client would print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.units import NS_PER_S
from llmsim.fidelity.cases import Key
from llmsim.results.columns import OUTCOMES, RAW_COLUMNS
from llmsim.results.facts import RunFacts
from llmsim.results.store import RequestSink
from llmsim.scenario import Scenario, build_workload
from llmsim.serving.build import build_handoff, build_pools
from llmsim.serving.labels import ClientRules
from llmsim.serving.simulate import PoolPlan, simulate

QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

_COLUMN: Final = {name: index for index, name in enumerate(RAW_COLUMNS)}
_FINISHED: Final = OUTCOMES.index("finished")


class RowSink(RequestSink):
    """Keeps the engine's rows of integers; nothing is written and nothing derived."""

    def flush(self) -> None:
        """Keep everything in memory."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the simulated client saw.

    Parameters
    ----------
    values : mapping of (metric, stat) to float
        Times in s, rates per s.
    kv_blocks : int [blocks]
    warnings : tuple of str
    """

    values: Mapping[Key, float]
    kv_blocks: int
    warnings: tuple[str, ...]


def predict(
    data: Mapping[str, Any],
    window: tuple[int, int] | None = None,
    tpot_of_means: bool = False,
    front_s: float = 0.0,
) -> Prediction:
    """Simulate a scenario given as a mapping, and return what its client measures.

    Parameters
    ----------
    data : mapping
    window : (first, last) or None
        Requests that count, by index, the last one excluded; None for all.
    tpot_of_means : bool
        Divide mean times by mean lengths instead of averaging over requests.
    front_s : float [s]
        From the client's call until the engine has the request, which no engine sees. In a closed
        loop it must be the scenario's ``think_s`` as well, since the next call waits for it.

    Raises
    ------
    LlmsimError
        If the scenario is wrong or the model does not fit.
    """
    scenario = Scenario.parse(data)
    pools, warnings = build_pools(scenario)
    rows, facts = simulated_rows(scenario, pools)
    _as_clients_see(rows, scenario, round(front_s * NS_PER_S))
    values = client_statistics(rows, facts, window, tpot_of_means)
    blocks = pools[0].facts.kv_blocks
    return Prediction(values, blocks, (*warnings, *facts.warnings))


def simulated_rows(
    scenario: Scenario, pools: Sequence[PoolPlan]
) -> tuple[npt.NDArray[np.int64], RunFacts]:
    """Simulate a scenario and return the engine's rows of integers, in order of their ends.

    Parameters
    ----------
    scenario : Scenario
    pools : sequence of PoolPlan
        As `build_pools` makes them of it.

    Returns
    -------
    rows : ndarray of int64 (requests, columns of `RAW_COLUMNS`)
    facts : RunFacts
    """
    workload = build_workload(scenario)
    sink = RowSink([pool.facts.name for pool in pools], workload.clients)
    facts = simulate(
        pools,
        workload,
        scenario.fleet.routing.build(),
        sink,
        seed=scenario.seed,
        handoff=build_handoff(scenario),
        clients=ClientRules(),
    )
    return sink.raw(), facts


def _as_clients_see(rows: npt.NDArray[np.int64], scenario: Scenario, front_ns: int) -> None:
    """Move arrivals at the engine back to when the clients called, in place.

    In a closed loop the k-th request to reach the engine is the k-th that was sent, because the
    front end takes them in turn; clients send at first together, then whenever an answer is
    complete.
    """
    arrivals = scenario.traffic.arrivals
    column = _COLUMN["arrival_ns"]
    if arrivals is None or arrivals.kind != "closed-loop":
        rows[:, column] -= front_ns
        return
    slots = int(arrivals.params["in_flight"])
    order = np.argsort(rows[:, _COLUMN["request"]])
    ends = np.sort(rows[:, _COLUMN["end_ns"]])[: max(0, len(rows) - slots)]
    first = np.full(min(slots, len(rows)), -front_ns, dtype=np.int64)
    rows[order, column] = np.minimum(rows[order, column], np.concatenate([first, ends]))


def client_statistics(
    rows: npt.NDArray[np.int64],
    facts: RunFacts,
    window: tuple[int, int] | None = None,
    tpot_of_means: bool = False,
) -> dict[Key, float]:
    """Return the statistics of a benchmark client, from the engine's rows.

    Parameters
    ----------
    rows : ndarray of int64 (n, columns)
        In the order of `RAW_COLUMNS`.
    facts : RunFacts
    window : (first, last) or None
    tpot_of_means : bool

    Returns
    -------
    mapping of (metric, stat) to float
        As the clients of vLLM and SGLang define them: ``tpot = (e2e - ttft) / (output - 1)`` per
        request with two tokens or more; throughput over the time from the first request sent to
        the last answer complete.
    """
    finished = rows[rows[:, _COLUMN["outcome"]] == _FINISHED]
    if window is not None:
        index = finished[:, _COLUMN["request"]]
        finished = finished[(index >= window[0]) & (index < window[1])]
    found: dict[Key, float] = {
        ("completed", "total"): float(len(finished)),
        ("failed", "total"): float(len(rows) - len(finished)) if window is None else 0.0,
    }
    if not len(finished):
        return found
    sent, first, end = (
        finished[:, _COLUMN[name]] / NS_PER_S for name in ("arrival_ns", "first_token_ns", "end_ns")
    )
    prompt, output = (
        finished[:, _COLUMN[name]].astype(float) for name in ("prompt_tokens", "output_tokens")
    )
    ttft, e2e = first - sent, end - sent
    found |= _spread("ttft", ttft) | _spread("e2e", e2e)
    many = output > 1
    if many.any():
        tpot = (e2e - ttft)[many] / (output[many] - 1)
        found |= _spread("tpot", tpot)
        if tpot_of_means:
            found["tpot", "mean"] = float((e2e.mean() - ttft.mean()) / (output.mean() - 1))
    seconds = max(float(end.max() - sent.min()), 1e-9)
    found["duration", "total"] = seconds
    found["request_throughput", "mean"] = len(finished) / seconds
    found["output_throughput", "mean"] = float(output.sum()) / seconds
    found["total_throughput", "mean"] = float((prompt + output).sum()) / seconds
    found["prefill_time", "mean"] = float(ttft.max())
    if window is None and facts.itl.total:
        found["itl", "mean"] = facts.itl.mean_s()
        marks = facts.itl.quantiles_s(list(QUANTILES.values()))
        found |= {("itl", name): float(mark) for name, mark in zip(QUANTILES, marks, strict=True)}
    return found


def _spread(metric: str, values: npt.NDArray[np.float64]) -> dict[Key, float]:
    marks = np.quantile(values, list(QUANTILES.values()))
    found = {(metric, name): float(mark) for name, mark in zip(QUANTILES, marks, strict=True)}
    return found | {(metric, "mean"): float(values.mean()), (metric, "std"): float(values.std())}
