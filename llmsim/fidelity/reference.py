"""A run of the reference engine against its simulation: decisions, steps, requests.

Three questions, kept apart. Does the simulator decide as the engine did, when it is told how long
each step took? What does each step cost, when it is told what was in it? And what do clients see,
when it is told nothing but the trace?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from llmsim.core.units import NS_PER_S
from llmsim.costmodel import overhang_of
from llmsim.costmodel.contract import Chunk, PriceLine, StepCost
from llmsim.fidelity.measuredrun import Decision, MeasuredRun
from llmsim.fidelity.prediction import simulated_rows
from llmsim.fidelity.requests import write_trace
from llmsim.fidelity.scores import Errors, errors_of
from llmsim.policies.batching import VllmBatching
from llmsim.policies.views import RequestView
from llmsim.results.columns import RAW_COLUMNS
from llmsim.scenario import Scenario
from llmsim.serving.build import build_pools
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.config import EngineConfig
from llmsim.serving.meter import NEVER
from llmsim.serving.overhang import asks_for_overhang
from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, Request
from llmsim.serving.simulate import PoolPlan
from llmsim.serving.wake import Wake

ENGINE_RULES: Final = "vllm-0.33"
"""Whose decisions the reference engine makes: first come first served, one token budget."""

PHASES: Final = ("context", "decode", "mixed")
"""What is in a step: prompts, decodes, both."""

FITTED_FROM: Final = 40
"""Least steps of which half are fitted and the other half tested."""


@dataclass(frozen=True, slots=True)
class StepErrors:
    """Steps of one phase, priced and measured.

    Parameters
    ----------
    phase : str
        One of `PHASES`, or ``all``.
    measured_s, predicted_s : float [s]
        Added up.
    errors : Errors
        Of single steps.
    """

    phase: str
    measured_s: float
    predicted_s: float
    errors: Errors


@dataclass(frozen=True, slots=True)
class Line:
    """Measured = constant + factor x predicted, from the first half of the steps.

    Parameters
    ----------
    constant_s : float [s]
    factor : float
    errors : Errors
        Of the second half, priced with them.
    """

    constant_s: float
    factor: float
    errors: Errors


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """How the simulation of a run differs from the run.

    Parameters
    ----------
    run : MeasuredRun
    scenario : mapping
        What was simulated.
    same_decisions : int [steps]
        Steps before the first one that the simulator decides differently.
    difference : str
        That step, engine and simulator; empty if there is none.
    step_errors : tuple of StepErrors
    line : Line or None
        None for too few steps.
    request_errors : mapping of str to Errors
        ``ttft`` and ``e2e``, request by request.
    means : mapping of str to (measured, predicted)
        Means of the same [s].
    warnings : tuple of str
    """

    run: MeasuredRun
    scenario: Mapping[str, Any]
    same_decisions: int
    difference: str
    step_errors: tuple[StepErrors, ...]
    line: Line | None
    request_errors: Mapping[str, Errors]
    means: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]


def compare_run(
    run: MeasuredRun, model: str, gpu: str, cost: Mapping[str, Any], trace: Path
) -> ReferenceReport:
    """Simulate a run of the reference engine and compare.

    Parameters
    ----------
    run : MeasuredRun
    model, gpu : str
        Cards, or paths to their files.
    cost : mapping
        The pool's ``cost`` component.
    trace : Path
        Where the requests are written for the simulator.

    Raises
    ------
    LlmsimError
        If a card is wrong or the model does not fit.
    """
    rows = ((one.arrival_ns / NS_PER_S, one.prompt, one.output) for one in run.requests)
    write_trace(rows, trace)
    data = scenario_of(run, model, gpu, cost, trace)
    scenario = Scenario.parse(data)
    (pool,), warnings = build_pools(scenario)
    same, difference = compare_decisions(run, pool.config)
    measured = np.array([step.duration_ns for step in run.steps]) / NS_PER_S
    predicted = step_prices_s(run, pool.cost)
    requests, means = _request_errors(run, scenario, pool)
    return ReferenceReport(
        run,
        data,
        same,
        difference,
        _step_errors(run, measured, predicted),
        fit_line(measured, predicted) if len(measured) >= FITTED_FROM else None,
        requests,
        means,
        tuple(warnings),
    )


def scenario_of(
    run: MeasuredRun, model: str, gpu: str, cost: Mapping[str, Any], trace: Path
) -> dict[str, Any]:
    """Return the scenario of a run, as its YAML file would say it; arguments as `compare_run`."""
    config = run.meta["config"]
    return {
        "llmsim": 1,
        "name": "reference",
        "description": f"reference engine on {run.meta['gpu']}",
        "seed": 1,
        "model": model,
        "traffic": {"trace": {"kind": "mooncake", "path": str(trace.resolve())}},
        "engine": {
            "version": ENGINE_RULES,
            "lookahead": 0,
            "prefix_caching": False,
            "chunked_prefill": True,
            "reserve_full_prompt": True,
            "watermark_frac": 0.0,
            "max_num_seqs": config["max_num_seqs"],
            "max_num_batched_tokens": config["max_num_batched_tokens"],
            "max_model_len": config["max_model_len"],
            "block_tokens": config["block_size"],
            "kv_blocks": config["kv_blocks_total_gpu"],
            "cuda_graphs": config["cuda_graphs"],
            # runs from before steps with prompts had graphs do not say
            "max_graph_tokens": config.get("max_graph_tokens"),
        },
        "fleet": {
            "routing": {"kind": "round-robin"},
            "pools": {"main": {"gpu": gpu, "tp": 1, "replicas": 1, "cost": dict(cost)}},
        },
    }


# --- decisions ----------------------------------------------------------------------------------


class MeasuredClock:
    """A cost model that knows how long each step took: the n-th price is the n-th duration.

    Parameters
    ----------
    durations_ns : sequence of int [ns]
    """

    context_tile = 1
    window_tokens = 0

    def __init__(self, durations_ns: Sequence[int]) -> None:
        self._left = iter(durations_ns)

    def _next(self) -> int:
        # Beyond the last one the decisions differ anyway.
        return max(1, next(self._left, 1))

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return the duration of this step alone: the next one's contexts are beyond the line."""
        return PriceLine(float(self._next()), 0.0, until_tokens=padded_tokens)

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Return the duration of the next step."""
        return self._next()


def compare_decisions(run: MeasuredRun, config: EngineConfig) -> tuple[int, str]:
    """Let the simulator decide at the times of the run, step by step.

    Parameters
    ----------
    run : MeasuredRun
    config : EngineConfig

    Returns
    -------
    same : int [steps]
        Before the first difference.
    difference : str
    """
    decided = simulated_decisions(run, config)
    for number, step in enumerate(run.steps):
        engine = (sorted(step.decisions), sorted(step.preempted))
        if number >= len(decided) or decided[number] != engine:
            other = decided[number] if number < len(decided) else "nothing"
            return number, f"step {number}: engine {engine}, simulator {other}"
    return len(run.steps), ""


def simulated_decisions(
    run: MeasuredRun, config: EngineConfig
) -> list[tuple[list[Decision], list[int]]]:
    """Return what the simulator decides, and whom it preempts, in each step of a run's times.

    Notes
    -----
    The engine looks for arrivals when a step has ended, so each request arrives here at the first
    step that starts after it came; a step lasts until the next one starts, while anybody is there.
    """
    starts = [step.start_ns for step in run.steps]
    clock = Clock()
    found: list[tuple[list[Decision], list[int]]] = []
    exact = replace(config, fast_forward=False, lookahead=0)
    cost = MeasuredClock(_until_next(run))
    replica = Replica(clock, 0, 0, cost, exact, VllmBatching(), NEVER, lambda *_: None)
    replica.recorder = lambda call: found.append(_decisions_of(call, replica))
    for index, asked in enumerate(run.requests):
        seen = int(np.searchsorted(starts, asked.arrival_ns))
        time = starts[seen] if seen < len(starts) else asked.arrival_ns
        view = RequestView(index, time, asked.prompt, -1, -1, 0, None)
        clock.at(_arrival(replica, Request(view, asked.output)), ARRIVAL_PRIORITY, time)
    clock.run()
    return found


def _arrival(replica: Replica, request: Request) -> Wake:
    return Wake(lambda _: replica.enqueue(request))


def _until_next(run: MeasuredRun) -> list[int]:
    """Return how long each step lasts [ns]: to the start of the next one while anybody is there.

    Between two steps the engine keeps its books, which takes time too; a pause without requests
    belongs to no step.
    """
    made = [0] * len(run.requests)
    there: set[int] = set()
    came = 0
    found = []
    for step, after in zip(run.steps, (*run.steps[1:], None), strict=True):
        while came < len(run.requests) and run.requests[came].arrival_ns <= step.start_ns:
            there.add(came)
            came += 1
        for index, new, past in step.decisions:
            if past + new == run.requests[index].prompt + made[index]:
                made[index] += 1
                if made[index] == run.requests[index].output:
                    there.discard(index)
        found.append(after.start_ns - step.start_ns if after and there else step.duration_ns)
    return found


def _decisions_of(call: CallRecord, replica: Replica) -> tuple[list[Decision], list[int]]:
    chunked = {request: (new, past) for request, new, past in call.chunks}
    tick = replica.cohort.tick
    found = []
    for request in call.running:
        if request in chunked:
            found.append((request.view.index, *chunked[request]))
        elif request.state == DECODE and call.decoding:
            found.append((request.view.index, 1, request.base + tick))
    return sorted(found), sorted(request.view.index for request in call.preempted)


# --- steps --------------------------------------------------------------------------------------


def step_prices_s(run: MeasuredRun, cost: StepCost) -> npt.NDArray[np.float64]:
    """Price every step by what was in it.

    Returns
    -------
    ndarray of float64 (steps,) [s]
    """
    made = [0] * len(run.requests)
    prices = []
    for step in run.steps:
        chunks: list[Chunk] = []
        contexts: list[int] = []
        logits = 0
        for index, new, past in step.decisions:
            prompt = run.requests[index].prompt
            if new == 1 and past >= prompt:
                contexts.append(past + 1)
            else:
                chunks.append((new, past))
            if past + new == prompt + made[index]:
                made[index] += 1
                logits += 1
        padded = [_padded(each, cost.context_tile) for each in contexts]
        window = _padded(cost.window_tokens, cost.context_tile)
        windowed = sum(min(each, window) for each in padded) if window else 0
        given = (chunks, len(contexts), sum(padded), windowed, logits)
        uneven = asks_for_overhang(cost)
        if uneven is None:
            prices.append(cost.step_ns(*given))
        else:
            prices.append(uneven.step_ns(*given, overhang_of(contexts)))
    return np.array(prices) / NS_PER_S


def _padded(tokens: int, tile: int) -> int:
    return -(-tokens // tile) * tile


def _step_errors(
    run: MeasuredRun, measured: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]
) -> tuple[StepErrors, ...]:
    phases = np.array([step.phase for step in run.steps])
    found = []
    for phase in (*PHASES, "all"):
        here = phases == phase if phase != "all" else np.ones(len(phases), dtype=bool)
        if here.any():
            one, two = measured[here], predicted[here]
            found.append(
                StepErrors(
                    phase, float(one.sum()), float(two.sum()), errors_of((two / one - 1.0).tolist())
                )
            )
    return tuple(found)


def fit_line(measured: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> Line:
    """Fit a constant and a factor to the first half of the steps, and test them on the second.

    Parameters
    ----------
    measured, predicted : ndarray of float64 (steps,) [s]

    Notes
    -----
    Robust (soft L1) in relative errors. It tells an error of scale (another machine, another
    launch cost) from one of shape, which no two numbers mend.
    """
    half = len(measured) // 2
    one, two = measured[:half], predicted[:half]

    def off(terms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray((terms[0] + terms[1] * two) / one - 1.0)

    scale = [float(np.median(one)), float(np.median(one / two))]
    start = [0.5 * scale[0], 0.5 * scale[1]]
    found = least_squares(
        off, start, bounds=(0.0, np.inf), x_scale=scale, loss="soft_l1", f_scale=0.1
    )
    constant, factor = (float(value) for value in found.x)
    rest = (constant + factor * predicted[half:]) / measured[half:] - 1.0
    return Line(constant, factor, errors_of(rest.tolist()))


# --- requests -----------------------------------------------------------------------------------


def _request_errors(
    run: MeasuredRun, scenario: Scenario, pool: PoolPlan
) -> tuple[dict[str, Errors], dict[str, tuple[float, float]]]:
    rows, _ = simulated_rows(scenario, [pool])
    rows = rows[np.argsort(rows[:, RAW_COLUMNS.index("request")])]
    arrival, first, end = (
        rows[:, RAW_COLUMNS.index(name)] / NS_PER_S
        for name in ("arrival_ns", "first_token_ns", "end_ns")
    )
    told = {"ttft": first - arrival, "e2e": end - arrival}
    seen = {
        "ttft": np.array([one.ttft_s for one in run.requests]),
        "e2e": np.array([one.e2e_s for one in run.requests]),
    }
    errors = {name: errors_of((told[name] / seen[name] - 1.0).tolist()) for name in told}
    means = {name: (float(seen[name].mean()), float(told[name].mean())) for name in told}
    return errors, means
