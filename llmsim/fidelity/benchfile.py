"""A user's own benchmark result, of vllm bench serve or sglang.bench_serving, as a case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmsim.core.errors import Fault, InputError
from llmsim.fidelity.assumptions import numbers_of
from llmsim.fidelity.cases import Case, Key
from llmsim.fidelity.prediction import Prediction
from llmsim.fidelity.replay import Work, prepare, simulate_all
from llmsim.fidelity.scenarios import DEFAULTS, Options
from llmsim.specs import engine_names, newest_engine
from llmsim.workload.formats.benchresult import finite_rate, read_result

_TIMES: Final = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e", "e2e_latency": "e2e"}
"""What the clients call a metric, and what it is called here."""

_STATS: Final = {
    "mean": "mean",
    "median": "p50",
    "std": "std",
    "p90": "p90",
    "p95": "p95",
    "p99": "p99",
}

_BUILD: Final = re.compile(r"nightly|20\d\d")
"""In versions that are a build's date instead of a release."""

_RATES: Final = {
    "request_throughput": "request_throughput",
    "output_throughput": "output_throughput",
    "total_token_throughput": "total_throughput",
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What a result file does not say.

    Parameters
    ----------
    model, gpu : str
        Cards; `model` empty takes the file's ``model_id``.
    tp : int [GPUs]
    engine : str
        ``vllm``, ``sglang`` or ``trtllm``.
    engine_version : str
        Release such as ``0.14.1``, or an engine card; empty takes the newest card, since no client
        writes down which release it asked.
    """

    model: str
    gpu: str
    tp: int = 1
    engine: str = "vllm"
    engine_version: str = ""


def read_bench(path: Path, bench: Bench) -> tuple[Case, dict[str, Any]]:
    """Read a result file.

    Parameters
    ----------
    path : Path
        A JSON object; of JSON lines the last one counts, since SGLang appends.
    bench : Bench

    Returns
    -------
    case : Case
    lengths : mapping
        Length law of the scenario: from the lists of lengths where the file has them
        (``--save-detailed``), else fixed at the means.

    Raises
    ------
    InputError
        If it is no such file, or keys are missing; each with the nearest that is there.
    """
    data = read_result(path)
    if not bench.gpu:
        fault = Fault("", "--gpu", "is missing: the file does not say")
        raise InputError(str(path), [fault])
    return _case(path, data, bench, _version(path, bench)), _lengths(data)


def _version(path: Path, bench: Bench) -> str:
    """Return the release to simulate, as rules compare them."""
    said = bench.engine_version or newest_engine(bench.engine)
    version = said.removeprefix(f"{bench.engine}-").removeprefix("v")
    if said and not numbers_of(version) and not _BUILD.search(version):
        hint = f"Known cards: {', '.join(engine_names())}."
        fault = Fault("", "--engine-version", f"no release such as 0.14.1, read {said!r}.", hint)
        raise InputError(str(path), [fault])
    return version


def _case(path: Path, data: Mapping[str, Any], bench: Bench, version: str) -> Case:
    done = max(1, int(data["completed"]))
    slots, rate = data.get("max_concurrency"), finite_rate(data)
    total = int(data.get("num_prompts") or done)
    closed = rate is None
    fields = {
        "source": "own benchmark",
        "source_path": str(path),
        "model": bench.model or str(data.get("model_id", "")),
        "model_key": bench.model or str(data.get("model_id", "")),
        "gpu": bench.gpu,
        "n_gpu": str(bench.tp),
        "tp": str(bench.tp),
        "engine": bench.engine,
        "engine_version": version,
        "isl": str(round(data["total_input_tokens"] / done)),
        "osl": str(round(data["total_output_tokens"] / done)),
        # Without a rate every request is sent at once, as far as the slots allow.
        "arrival": "closed loop" if closed else "poisson",
        "concurrency": str(slots or total) if closed else "",
        "rate_rps": "" if rate is None else str(rate),
        "num_requests": str(total),
    }
    return Case(path.stem, "A", fields, _measured(data))


def _measured(data: Mapping[str, Any]) -> dict[Key, float]:
    found: dict[Key, float] = {("duration", "total"): float(data["duration"])}
    for stat, name in _STATS.items():
        for metric, key in _TIMES.items():
            value = data.get(f"{stat}_{metric}_ms")
            if isinstance(value, int | float):
                found[key, name] = value / 1e3
    for column, key in _RATES.items():
        if isinstance(data.get(column), int | float):
            found[key, "mean"] = float(data[column])
    return found


def _lengths(data: Mapping[str, Any]) -> dict[str, Any]:
    prompt, output = data.get("input_lens"), data.get("output_lens")
    if not (isinstance(prompt, list) and isinstance(output, list) and prompt and output):
        return {}
    sides = {"prompt": np.array(prompt, float), "output": np.array(output, float)}
    law: dict[str, Any] = {"kind": "lognormal"}
    for side, values in sides.items():
        law[f"{side}_mean_tokens"] = max(1.0, float(values.mean()))
        law[f"{side}_cv"] = float(values.std() / max(values.mean(), 1.0))
        law[f"{side}_max_tokens"] = max(1, int(values.max()))
    return law


def compare_bench(
    path: Path, bench: Bench, options: Options = DEFAULTS
) -> tuple[Case, Prediction, dict[str, Any]]:
    """Simulate a benchmark result.

    Parameters
    ----------
    path : Path
    bench : Bench
    options : Options

    Returns
    -------
    case, prediction, scenario

    Raises
    ------
    InputError
        If the file or what was said besides it cannot be simulated.
    """
    case, lengths = read_bench(path, bench)
    ready, left = prepare([case], None, options)
    if left:
        raise InputError(str(path), [Fault(str(path), "", left[0].reason)])
    (work,) = ready
    if lengths:
        data = {**work.data, "traffic": {**work.data["traffic"], "lengths": lengths}}
        most = lengths["prompt_max_tokens"] + lengths["output_max_tokens"]
        data["engine"] = {**data["engine"], "max_model_len": most + 1}
        budget = data["engine"]["max_num_batched_tokens"]
        if not data["engine"]["chunked_prefill"]:
            data["engine"]["max_num_batched_tokens"] = max(budget, most + 1)
        work = Work(case, data, work.window, work.tpot_of_means, work.front_s)
    (found,) = simulate_all([work])
    if found.prediction is None:
        raise InputError(str(path), [Fault(str(path), "", found.reason)])
    return case, found.prediction, dict(work.data)
