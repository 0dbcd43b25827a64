"""Replays a trace on the reference engine in real time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim.core.errors import Fault, InputError
from llmsim.specs.model import ModelSpec
from llmsim_kernels.engine.model import DecoderShape
from llmsim_kernels.engine.record import StepRecord, record_of, settings_entry, write_run
from llmsim_kernels.engine.runner import Runner
from llmsim_kernels.engine.scheduler import EngineSettings, Scheduler
from llmsim_kernels.engine.scheduler import Sequence as Request

_LONGEST_NAP_S = 1e-3
"""Sleep between looks at the clock while nobody is there; an arrival is late by at most this."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Parameters
    ----------
    arrival_s : float [s]
    prompt_tokens, output_tokens : int [tokens]
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ReferenceRun:
    """What a replay measured.

    Parameters
    ----------
    requests : tuple of Sequence
        In order of arrival.
    steps : tuple of StepRecord
    settings : EngineSettings
        With the number of KV blocks that was used.
    meta : dict
        As written to ``_meta.json``.
    """

    requests: tuple[Request, ...]
    steps: tuple[StepRecord, ...]
    settings: EngineSettings
    meta: dict[str, Any]


def run_reference(
    trace: Sequence[TraceRequest],
    model: ModelSpec | DecoderShape,
    settings: EngineSettings,
    *,
    device: str = "",
    minutes: float = 3.0,
    offline: bool = False,
    out: Path | None = None,
    name: str = "reference",
) -> ReferenceRun:
    """Serve a trace with a real decoder of random weights and write down what it took.

    Parameters
    ----------
    trace : sequence of TraceRequest
        In order of arrival.
    model : ModelSpec or DecoderShape
        Llama-shaped.
    settings : EngineSettings
    device : str
        ``cpu``, ``cuda:0``; empty for the first GPU, or the CPU where there is none.
    minutes : float [min]
        Requests that arrive later are left out; those that arrived are served to their end.
    offline : bool
        Everybody arrives at time 0.
    out : Path or None
        Folder for the files of `llmsim_kernels.engine.record`.
    name : str
        First part of their names.

    Returns
    -------
    ReferenceRun

    Raises
    ------
    InputError
        If the model is not Llama-shaped, the trace is empty, or a request can never run.
    """
    import torch

    shape = DecoderShape.of_model(model) if isinstance(model, ModelSpec) else model
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    runner = Runner(shape, settings, device)
    settings = runner.settings
    requests = _requests(trace, shape, settings, 60.0 * minutes, offline)
    scheduler = Scheduler(settings)
    _warm_up(runner, shape)
    steps = _serve(requests, scheduler, runner)
    meta = {
        "source": "llmsim reference engine",
        "engine": "llmsim_kernels.engine",
        "model": model.name if isinstance(model, ModelSpec) else str(shape),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
        "torch": torch.__version__,
        "config": settings_entry(settings),
        "arrivals": "offline" if offline else "trace",
        "num_requests": len(requests),
        "latency_ms": "from the call of the scheduler to the step's tokens on the host",
    }
    if out is not None:
        write_run(out, name, requests, steps, meta)
    return ReferenceRun(tuple(requests), tuple(steps), settings, meta)


def _requests(
    trace: Sequence[TraceRequest],
    shape: DecoderShape,
    settings: EngineSettings,
    limit_s: float,
    offline: bool,
) -> list[Request]:
    """Return the requests to serve, their prompts drawn at random."""
    draw = random.Random(settings.seed)
    found = []
    for index, row in enumerate(trace):
        if row.arrival_s > limit_s:
            break
        request = Request(
            index, row.prompt_tokens, row.output_tokens, 0.0 if offline else row.arrival_s
        )
        request.tokens = [draw.randrange(shape.vocab) for _ in range(row.prompt_tokens)]
        found.append(request)
    if not found:
        message = f"nobody arrives within {limit_s:g} s."
        raise InputError("reference engine", [Fault("", "trace", message)])
    return found


def _warm_up(runner: Runner, shape: DecoderShape) -> None:
    """Serve one short request before the clock starts: libraries load, kernels compile."""
    size = runner.settings.block_tokens
    settings = EngineSettings(
        runner.settings.max_num_seqs,
        runner.settings.max_num_batched_tokens,
        runner.settings.max_model_len,
        size,
        runner.settings.kv_blocks,
    )
    scheduler = Scheduler(settings)
    request = Request(-1, size, 3)
    request.tokens = [index % shape.vocab for index in range(size)]
    scheduler.enqueue(request)
    while scheduler.busy:
        _step(scheduler, runner, lambda: 0.0)


def _serve(requests: list[Request], scheduler: Scheduler, runner: Runner) -> list[StepRecord]:
    """Serve everybody; arrivals are taken in whenever a step has ended."""
    steps: list[StepRecord] = []
    coming = list(reversed(requests))
    began = time.perf_counter()

    def now_s() -> float:
        return time.perf_counter() - began

    while coming or scheduler.busy:
        while coming and coming[-1].arrival_s <= now_s():
            scheduler.enqueue(coming.pop())
        if scheduler.busy:
            steps.append(_step(scheduler, runner, now_s))
        elif coming:
            time.sleep(min(_LONGEST_NAP_S, max(0.0, coming[-1].arrival_s - now_s())))
    return steps


def _step(scheduler: Scheduler, runner: Runner, now_s: Callable[[], float]) -> StepRecord:
    """Plan, run and account for one step."""
    start_s = now_s()
    slices = scheduler.plan()
    for part in slices:
        if part.sequence.scheduled_s < 0:
            part.sequence.scheduled_s = start_s
    found = iter(runner.run(slices))
    end_s = now_s()
    record = record_of(
        slices, list(scheduler.waiting), scheduler.preempted, start_s, end_s - start_s
    )
    for part in slices:
        if part.samples:
            part.sequence.tokens.append(next(found))
    scheduler.finish(slices, end_s)
    return record
