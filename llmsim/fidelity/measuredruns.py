"""All runs of the reference engine in a folder against their simulation, regime by regime.

Prices come from a profile's operator rows; what the host does and what the device waits between
kernels come from measurements of their own (`host_terms`, `kernel_gap_s`), so that nothing is
fitted to the runs that are compared. The same run made twice says how much of an error is noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.measured.profile import find_profile
from llmsim.fidelity.measuredrun import MeasuredRun, MeasuredStep, read_run
from llmsim.fidelity.prediction import simulated_rows
from llmsim.fidelity.reference import compare_decisions, scenario_of, step_prices_s
from llmsim.fidelity.requests import write_trace
from llmsim.fidelity.scores import Errors, errors_of
from llmsim.results.columns import RAW_COLUMNS
from llmsim.scenario import Scenario
from llmsim.serving.build import build_pools
from llmsim.specs import load_model
from llmsim.specs.profile_meta import read_meta
from llmsim.specs.profile_rows import read_rows

Floats = npt.NDArray[np.float64]

HOST_RUN: Final = "-seed9"
"""End of the name of the run that tells host terms, and nothing else."""

_HOST_BOUND: Final = 0.8
"""A step without a graph whose launching takes this share of the device's time waits for the
host: what it takes is what launching takes."""

_LEAST_STEPS: Final = 10
"""Of one number of requests, for their median to count."""

_DECODES = ((1, 8), (8, 32), (32, 128), (128, 10_000))
_CHUNKS = ((1, 512), (512, 2048), (2048, 100_000))


@dataclass(frozen=True, slots=True)
class Regime:
    """Steps of one kind.

    Parameters
    ----------
    name : str
    measured_s, predicted_s : float [s]
        Medians.
    errors : Errors
    """

    name: str
    measured_s: float
    predicted_s: float
    errors: Errors


@dataclass(frozen=True, slots=True)
class Figures:
    """What clients see of a run.

    Parameters
    ----------
    ttft_p50_s, ttft_p90_s, tpot_s, e2e_p50_s : float [s]
        TPOT: mean over the requests that ended.
    output_tokens_per_s : float [tokens/s]
        Until the last request ended, or the run was stopped.
    peak_kv_blocks : float [blocks]
    """

    ttft_p50_s: float
    ttft_p90_s: float
    tpot_s: float
    e2e_p50_s: float
    output_tokens_per_s: float
    peak_kv_blocks: float


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run beside its simulation.

    Parameters
    ----------
    name : str
    steps : int
    same_decisions : int [steps]
    step_errors : Errors
    measured, predicted : Figures
    """

    name: str
    steps: int
    same_decisions: int
    step_errors: Errors
    measured: Figures
    predicted: Figures


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """A folder of runs.

    Parameters
    ----------
    gpu : str
    cost : mapping
        Component that priced the steps, host terms included.
    runs : tuple of ComparedRun
    regimes : tuple of Regime
        Over the steps of all runs, that of the host terms left out.
    """

    gpu: str
    cost: Mapping[str, Any]
    runs: tuple[ComparedRun, ...]
    regimes: tuple[Regime, ...]


def compare_runs(
    folder: Path, model: str, gpu: str, cost: Mapping[str, Any], scratch: Path
) -> ComparedRuns:
    """Simulate every run of a folder and compare.

    Parameters
    ----------
    folder : Path
        Of ``<name>_meta.json``, ``_requests.csv``, ``_steps.csv`` and ``_decisions.csv``.
    model, gpu : str
        Cards, or paths to their files.
    cost : mapping
        The pool's ``cost`` component; host terms that it names are taken as they are.
    scratch : Path
        Folder for the requests that the simulator reads.

    Raises
    ------
    InputError
        If there are no runs, or one cannot be read.
    """
    suffix = "_meta.json"
    names = sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
    if not names:
        raise InputError(str(folder), [Fault(str(folder), "", "no *_meta.json: no runs here.")])
    runs = {name: read_run(folder, name) for name in names}
    layers = load_model(model).layer_count
    whole = {**_own_terms(runs, cost, layers), **cost}
    compared, parts = [], []
    for name, run in runs.items():
        found, measured, predicted = _compare(name, run, model, gpu, whole, scratch)
        compared.append(found)
        if not name.endswith(HOST_RUN):
            parts.append((run.steps, run, measured, predicted))
    told = next(iter(runs.values())).meta["gpu"]
    return ComparedRuns(str(told), whole, tuple(compared), tuple(_regimes(parts)))


def _own_terms(
    runs: Mapping[str, MeasuredRun], cost: Mapping[str, Any], layers: int
) -> dict[str, float]:
    """Return host terms from the run that is for them, and the gaps between kernels."""
    found: dict[str, float] = {}
    for name, run in runs.items():
        if name.endswith(HOST_RUN):
            found |= host_terms(run, layers)
    if "profile" in cost:
        found["host_gap_s"] = layers * kernel_gap_s(find_profile(str(cost["profile"])))
    return found


def host_terms(run: MeasuredRun, layers: int) -> dict[str, float]:
    """Return what the host adds to steps, from a run made for that.

    Parameters
    ----------
    run : MeasuredRun
        With the device's share of each step.
    layers : int
        Of the model.

    Returns
    -------
    dict
        ``host_base_s`` and ``host_per_request_s``: a line through the medians, by number of
        requests, of what a step of decodes takes beyond its kernels. ``eager_layer_s``: median
        time to launch a layer, of steps without a graph that wait for the host, or of all of them
        where none does. ``prefill_layer_s``: the same, or nothing in an engine whose steps with
        prompts run from graphs, too; then ``host_gap_per_chunk_s`` is the median of what they take
        beyond kernels and the terms above, for each prompt.
    """
    graph_tokens = run.meta["config"].get("max_graph_tokens") or 0
    beyond: dict[int, list[float]] = {}
    waiting: list[float] = []
    launched: list[float] = []
    graphed: list[tuple[float, int, int]] = []
    for step in run.steps:
        rest = step.duration_ns / NS_PER_S - step.device_s
        if step.phase == "decode":
            beyond.setdefault(len(step.decisions), []).append(rest)
        elif sum(new for _, new, _ in step.decisions) <= graph_tokens:
            graphed.append((rest, len(step.decisions), _chunks(run, step)))
        else:
            each = waiting if step.launch_s > _HOST_BOUND * step.device_s else launched
            each.append(step.launch_s / layers)
    counts = [n for n, rests in sorted(beyond.items()) if len(rests) >= _LEAST_STEPS]
    if len(counts) < 2 or not (waiting or launched):
        raise InputError("host terms", [Fault("", str(run.meta["gpu"]), "too few steps.")])
    weights = np.sqrt([len(beyond[n]) for n in counts])
    slope, base = np.polyfit(counts, [np.median(beyond[n]) for n in counts], 1, w=weights)
    slope, base = float(max(slope, 0.0)), float(max(base, 0.0))
    each_s = float(np.median(waiting or launched))
    found = {"host_base_s": base, "host_per_request_s": slope, "eager_layer_s": each_s}
    if not graph_tokens:
        return {**found, "prefill_layer_s": each_s}
    more = [(rest - base - slope * n) / chunks for rest, n, chunks in graphed]
    gap_s = float(max(0.0, np.median(more))) if len(more) >= _LEAST_STEPS else 0.0
    return {**found, "prefill_layer_s": 0.0, "host_gap_per_chunk_s": gap_s}


def _chunks(run: MeasuredRun, step: MeasuredStep) -> int:
    """Return how many prompts, or parts of them, are in a step."""
    return sum(past < run.requests[index].prompt for index, _, past in step.decisions)


def kernel_gap_s(profile: Path) -> float:
    """Return what a layer takes beyond its operators' own times [s].

    Parameters
    ----------
    profile : Path
        With decode steps of a whole decoder from a graph (block 13).

    Notes
    -----
    Median over those steps of (measured - sum of operators) / layers. Operators are timed one
    after the other, the same one again and again, which hides a part of their start; a step has
    others before and behind them.
    """
    rows = read_rows(profile)
    layers = {
        (row["variant"], int(row["batch"])): int(row["layers"])
        for row in map(rows.row, np.flatnonzero(rows["op"] == "whole_model").tolist())
    }
    gaps = [
        (entry["measured_us"] - entry["sum_us"]) / layers[entry["step"], int(entry["batch"])] / 1e6
        for entry in read_meta(profile).whole_model_check
        if entry["step"] == "decode.graph" and "sum_us" in entry
    ]
    return float(max(0.0, np.median(gaps))) if gaps else 0.0


def _compare(
    name: str,
    run: MeasuredRun,
    model: str,
    gpu: str,
    cost: Mapping[str, Any],
    scratch: Path,
) -> tuple[ComparedRun, Floats, Floats]:
    scratch.mkdir(parents=True, exist_ok=True)
    trace = scratch / f"{name}.jsonl"
    write_trace(((r.arrival_ns / NS_PER_S, r.prompt, r.output) for r in run.requests), trace)
    scenario = Scenario.parse(scenario_of(run, model, gpu, cost, trace))
    (pool,), _ = build_pools(scenario)
    same, _ = compare_decisions(run, pool.config)
    measured = np.array([step.duration_ns for step in run.steps]) / NS_PER_S
    predicted = step_prices_s(run, pool.cost)
    rows, facts = simulated_rows(scenario, [pool])
    rows = rows[np.argsort(rows[:, RAW_COLUMNS.index("request")])]
    arrival, first, end = (
        rows[:, RAW_COLUMNS.index(column)] / NS_PER_S
        for column in ("arrival_ns", "first_token_ns", "end_ns")
    )
    outputs = np.array([request.output for request in run.requests])
    stop_s = run.meta.get("stop_s") or np.inf
    found = ComparedRun(
        name,
        len(run.steps),
        same,
        errors_of((predicted / measured - 1.0).tolist()),
        _measured_figures(run, outputs, stop_s),
        figures_of(
            first - arrival,
            end - arrival,
            arrival,
            outputs,
            stop_s,
            facts.replicas[0].peak_kv_blocks,
        ),
    )
    return found, measured, predicted


def _measured_figures(run: MeasuredRun, outputs: npt.NDArray[np.int64], stop_s: float) -> Figures:
    arrival = np.array([request.arrival_ns for request in run.requests]) / NS_PER_S
    ttft = np.array([request.ttft_s for request in run.requests])
    e2e = np.array([request.e2e_s for request in run.requests])
    block = int(run.meta["config"]["block_size"])
    peak = max(sum(-(-(past + new) // block) for _, new, past in s.decisions) for s in run.steps)
    figures = figures_of(ttft, e2e, arrival, outputs, stop_s, peak)
    if not np.isfinite(stop_s):
        return figures
    made = [0] * len(run.requests)
    for step in run.steps:
        for index, new, past in step.decisions:
            made[index] += past + new == run.requests[index].prompt + made[index]
    return replace(figures, output_tokens_per_s=sum(made) / stop_s)


def figures_of(
    ttft_s: Floats,
    e2e_s: Floats,
    arrival_s: Floats,
    outputs: npt.NDArray[np.int64],
    stop_s: float,
    peak_kv_blocks: float,
) -> Figures:
    """Return what clients see.

    Parameters
    ----------
    ttft_s, e2e_s, arrival_s : ndarray (requests,) [s]
        NaN for requests that did not end.
    outputs : ndarray (requests,) [tokens]
    stop_s : float [s]
        When the run was stopped: who ends later did not end, and has so many tokens as if they
        came evenly.
    peak_kv_blocks : float [blocks]
    """
    end = arrival_s + e2e_s
    done = end <= stop_s
    several = done & (outputs > 1)
    gaps = (e2e_s[several] - ttft_s[several]) / (outputs[several] - 1)
    until = min(stop_s, float(np.nanmax(end)))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (until - arrival_s - ttft_s) / np.maximum(e2e_s - ttft_s, 1e-9)
        made = np.where(share >= 0, 1.0 + np.minimum(share, 1.0) * (outputs - 1), 0.0)
    return Figures(
        float(np.median(ttft_s[done])),
        float(np.quantile(ttft_s[done], 0.9)),
        float(gaps.mean()),
        float(np.median(e2e_s[done])),
        float(np.nansum(made) / until),
        float(peak_kv_blocks),
    )


Part = tuple[Sequence[MeasuredStep], MeasuredRun, Floats, Floats]


def _regimes(parts: Sequence[Part]) -> list[Regime]:
    """Group the steps of all runs by what was in them."""
    labels = [_label(step, run) for steps, run, _, _ in parts for step in steps]
    measured = np.concatenate([part[2] for part in parts])
    predicted = np.concatenate([part[3] for part in parts])
    names = np.array(labels, dtype=object)
    found = []
    for name in ("all", *_ordered(set(labels))):
        here = np.ones(len(names), dtype=bool) if name == "all" else names == name
        one, two = measured[here], predicted[here]
        errors = errors_of((two / one - 1.0).tolist())
        found.append(Regime(name, float(np.median(one)), float(np.median(two)), errors))
    return found


def _ordered(names: set[str]) -> list[str]:
    def rank(name: str) -> tuple[str, int, str]:
        least = "".join(c for c in name.split(" to ")[0] if c.isdecimal())
        return name.split(",")[0], int(least or 0), name

    return sorted(names, key=rank)


def _label(step: MeasuredStep, run: MeasuredRun) -> str:
    decodes, contexts, chunk = 0, [], 0
    for index, new, past in step.decisions:
        if new == 1 and past >= run.requests[index].prompt:
            decodes += 1
            contexts.append(past + 1)
        else:
            chunk += new
    if chunk:
        return f"{'mixed' if decodes else 'prefill'}, {_bin(chunk, _CHUNKS)} tokens of prompts"
    uneven = max(contexts) * decodes > 2 * sum(contexts)
    shape = "uneven" if uneven else "even"
    return f"decode, {_bin(decodes, _DECODES)} requests, {shape} contexts"


def _bin(value: int, bins: Sequence[tuple[int, int]]) -> str:
    low, high = next(pair for pair in bins if value < pair[1])
    return f"{low} to {high - 1}" if high < 10_000 else f"from {low}"
