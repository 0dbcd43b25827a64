"""Replays a trace on the reference engine in real time."""

from __future__ import annotations

import gc
import math
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

_WARM_UPS = (16, 300, 2000, 40, 1000, 600, 4000, 8000, 3000, 6000, *(30,) * 40)
"""Prompts of the warm-up [tokens], shorter ones where so many do not fit: contexts and numbers of
requests for which kernels are cut, and compiled, in different ways."""


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
    stop_s: float = math.inf,
    out: Path | None = None,
    name: str = "reference",
    runner: Runner | None = None,
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
    stop_s : float [s]
        No step starts after so long; who has not ended then is written as an error.
    out : Path or None
        Folder for the files of `llmsim_kernels.engine.record`.
    name : str
        First part of their names.
    runner : Runner or None
        One of an earlier run with this model and these settings, whose graphs are captured.

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
    runner = runner or Runner(shape, settings, device)
    settings = runner.settings
    requests = _requests(trace, shape, settings, 60.0 * minutes, offline)
    scheduler = Scheduler(settings)
    _warm_up(runner, shape)
    steps = _serve(requests, scheduler, runner, stop_s)
    meta = {
        "source": "llmsim reference engine",
        "engine": "llmsim_kernels.engine",
        "model": model.name if isinstance(model, ModelSpec) else str(shape),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
        "torch": torch.__version__,
        "config": settings_entry(settings),
        "arrivals": "offline" if offline else "trace",
        "num_requests": len(requests),
        "stop_s": stop_s if math.isfinite(stop_s) else None,
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
    """Serve a few requests before the clock starts: libraries load, kernels compile.

    Prompts of several lengths come while others decode, so that steps of every kind have run.
    """
    known = runner.settings
    scheduler = Scheduler(known)
    room = min(known.max_model_len, known.kv_blocks * known.block_tokens // len(_WARM_UPS))
    for index, wanted in enumerate(_WARM_UPS):
        prompt = max(1, min(wanted, room - 8))
        request = Request(-1 - index, prompt, min(8, room - prompt))
        request.tokens = [at % shape.vocab for at in range(prompt)]
        scheduler.enqueue(request)
        _step(scheduler, runner, lambda: 0.0)
    while scheduler.busy:
        _step(scheduler, runner, lambda: 0.0)


def _serve(
    requests: list[Request], scheduler: Scheduler, runner: Runner, stop_s: float
) -> list[StepRecord]:
    """Serve everybody; arrivals are taken in whenever a step has ended.

    Collections of garbage would be steps of tens of milliseconds: what is there already is left
    out of them, as engines do.
    """
    steps: list[StepRecord] = []
    coming = list(reversed(requests))
    gc.collect()
    gc.freeze()
    began = time.perf_counter()

    def now_s() -> float:
        return time.perf_counter() - began

    try:
        while (coming or scheduler.busy) and now_s() < stop_s:
            looked_s = now_s()  # the step's start: who comes later is not in it
            while coming and coming[-1].arrival_s <= looked_s:
                scheduler.enqueue(coming.pop())
            if scheduler.busy:
                steps.append(_step(scheduler, runner, now_s, looked_s))
            elif coming:
                time.sleep(min(_LONGEST_NAP_S, max(0.0, coming[-1].arrival_s - now_s())))
    finally:
        gc.unfreeze()
    return steps


def _step(
    scheduler: Scheduler, runner: Runner, now_s: Callable[[], float], start_s: float = 0.0
) -> StepRecord:
    """Plan, run and account for one step."""
    runner.watch.begin()
    slices = scheduler.plan()
    for part in slices:
        if part.sequence.scheduled_s < 0:
            part.sequence.scheduled_s = start_s
    found = iter(runner.run(slices))
    end_s = now_s()
    record = record_of(
        slices,
        list(scheduler.waiting),
        scheduler.preempted,
        start_s,
        end_s - start_s,
        runner.watch.shares(),
    )
    for part in slices:
        if part.samples:
            part.sequence.tokens.append(next(found))
    scheduler.finish(slices, end_s)
    return record
