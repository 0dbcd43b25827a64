"""The files of a run: requests and steps as in measured serving runs, and every decision."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmsim_kernels.engine.scheduler import Sequence as Request
from llmsim_kernels.engine.scheduler import Slice
from llmsim_kernels.engine.watch import UNKNOWN, Shares

STEP_COLUMNS = (
    *("run", "phase", "segment", "dp_rank", "prefill_tokens", "prefill_reqs", "prefill_kv_tokens"),
    *("decode_reqs", "decode_kv_tokens", "queued_prefill_reqs", "queued_prefill_tokens"),
    *("queued_decode_reqs", "latency_ms", "start_s", "preempted"),
    *("prepare_ms", "launch_ms", "device_ms"),
)
"""Iterations as forward-pass metrics name them; KV tokens are those computed before the step."""

REQUEST_COLUMNS = (
    *("index", "arrival_s", "input_tokens", "output_tokens", "ttft_s", "e2e_s", "error"),
    *("queued_s", "scheduled_s", "first_token_s", "last_token_s", "preemptions"),
)
DECISION_COLUMNS = ("step", "request", "new_tokens", "computed_before")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Parameters
    ----------
    slices : tuple of (int, int, int, bool)
        Request, new tokens, tokens before, whether it is a decode; in order of decision.
    queued_prefill, queued_prefill_tokens, queued_decode : int
        Who waited after the plan: never run, and preempted.
    start_s, seconds : float [s]
        Since the run began, and from the call of the scheduler to its tokens on the host.
    preempted : tuple of int
    shares : Shares
        Where the time went.
    """

    slices: tuple[tuple[int, int, int, bool], ...]
    queued_prefill: int
    queued_prefill_tokens: int
    queued_decode: int
    start_s: float
    seconds: float
    preempted: tuple[int, ...]
    shares: Shares = UNKNOWN


def record_of(
    slices: Sequence[Slice],
    waiting: Sequence[Request],
    preempted: Sequence[Request],
    start_s: float,
    seconds: float,
    shares: Shares = UNKNOWN,
) -> StepRecord:
    """Return the record of a step that was planned and run, before it is accounted for."""
    fresh = [sequence for sequence in waiting if not sequence.generated]
    return StepRecord(
        tuple((part.sequence.index, part.new, part.past, part.decodes) for part in slices),
        len(fresh),
        sum(sequence.prompt for sequence in fresh),
        len(waiting) - len(fresh),
        start_s,
        seconds,
        tuple(sequence.index for sequence in preempted),
        shares,
    )


def step_row(name: str, step: StepRecord) -> dict[str, Any]:
    """Return a step as a row of `STEP_COLUMNS`."""
    prompts = [part for part in step.slices if not part[3]]
    decodes = [part for part in step.slices if part[3]]
    return {
        "run": name,
        "phase": "mixed" if prompts and decodes else "decode" if decodes else "context",
        "segment": "real",
        "dp_rank": 0,
        "prefill_tokens": sum(part[1] for part in prompts),
        "prefill_reqs": len(prompts),
        "prefill_kv_tokens": sum(part[2] for part in prompts),
        "decode_reqs": len(decodes),
        "decode_kv_tokens": sum(part[2] for part in decodes),
        "queued_prefill_reqs": step.queued_prefill,
        "queued_prefill_tokens": step.queued_prefill_tokens,
        "queued_decode_reqs": step.queued_decode,
        "latency_ms": round(step.seconds * 1e3, 6),
        "start_s": round(step.start_s, 9),
        "preempted": " ".join(str(index) for index in step.preempted),
        "prepare_ms": round(step.shares.prepare_s * 1e3, 4),
        "launch_ms": round(step.shares.launch_s * 1e3, 4),
        "device_ms": round(step.shares.device_s * 1e3, 4),
    }


def request_row(request: Request) -> dict[str, Any]:
    """Return a request as a row of `REQUEST_COLUMNS`; one that did not end has an error."""
    ended = request.last_token_s >= 0
    return {
        "index": request.index,
        "arrival_s": round(request.arrival_s, 9),
        "input_tokens": request.prompt,
        "output_tokens": request.output,
        "ttft_s": round(request.first_token_s - request.arrival_s, 9) if ended else "",
        "e2e_s": round(request.last_token_s - request.arrival_s, 9) if ended else "",
        "error": "" if ended else "not finished",
        "queued_s": round(request.arrival_s, 9),
        "scheduled_s": round(request.scheduled_s, 9) if request.scheduled_s >= 0 else "",
        "first_token_s": round(request.first_token_s, 9) if request.first_token_s >= 0 else "",
        "last_token_s": round(request.last_token_s, 9) if ended else "",
        "preemptions": request.preemptions,
    }


def decision_rows(steps: Sequence[StepRecord]) -> list[dict[str, int]]:
    """Return every decision as a row of `DECISION_COLUMNS`."""
    return [
        {"step": number, "request": request, "new_tokens": new, "computed_before": past}
        for number, step in enumerate(steps)
        for request, new, past, _ in step.slices
    ]


def write_run(
    folder: Path,
    name: str,
    requests: Sequence[Request],
    steps: Sequence[StepRecord],
    meta: Mapping[str, Any],
) -> None:
    """Write ``<name>_requests.csv``, ``_steps.csv``, ``_decisions.csv`` and ``_meta.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}_requests.csv", REQUEST_COLUMNS, [request_row(r) for r in requests])
    _write(folder / f"{name}_steps.csv", STEP_COLUMNS, [step_row(name, s) for s in steps])
    _write(folder / f"{name}_decisions.csv", DECISION_COLUMNS, decision_rows(steps))
    text = json.dumps(dict(meta), indent=1) + "\n"
    (folder / f"{name}_meta.json").write_text(text, encoding="utf-8")


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, columns, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def settings_entry(settings: Any) -> dict[str, Any]:
    """Return the engine's settings as `meta.json` names them."""
    found = asdict(settings)
    found["kv_blocks_total_gpu"] = found.pop("kv_blocks")
    found["block_size"] = found.pop("block_tokens")
    return {**found, "tensor_parallelism": 1, "prefix_caching": False, "async_scheduling": False}
