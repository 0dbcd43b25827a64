"""A run as a trace for https://ui.perfetto.dev or chrome://tracing.

The format is Chrome's Trace Event Format, JSON: complete events (``X``) for steps, nestable
asynchronous events (``b``, ``e``) for requests and their phases, counters (``C``), names by
metadata events (``M``); times in microseconds
(https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from llmsim.core.units import NS_PER_S
from llmsim.results.facts import ReplicaFacts
from llmsim.results.result import Result

NS_PER_US: Final = 1_000

FLEET: Final = 0
"""Process of what no replica took; replica i is process i + 1."""

Event = dict[str, Any]


def trace_lines(result: Result) -> Iterator[str]:
    """Yield the lines of a trace: replicas as processes, with steps, requests and load.

    Parameters
    ----------
    result : Result
        With steps if they were kept (``record.steps``).

    Notes
    -----
    A stretch of merged decode steps is one event that says how many there are; with
    ``engine.fast_forward=false`` every step is its own.
    """
    info = result.info
    about = {
        "scenario": info.scenario,
        "model": info.model,
        "fleet": info.fleet,
        "seed": info.seed,
        "digest": result.digest,
        "llmsim": info.llmsim_version,
    }
    yield f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(about)}, "traceEvents": [\n'
    events = _events(result)
    first = next(events)
    yield json.dumps(first)
    for event in events:
        yield ",\n" + json.dumps(event, allow_nan=False)
    yield "\n]}\n"


def _events(result: Result) -> Iterator[Event]:
    facts = result.facts
    yield from _process(FLEET, "not placed", 10**6)
    for replica in facts.replicas:
        name = f"{replica.pool} {replica.index}"
        yield from _process(replica.index + 1, name, replica.index)
        yield from _load(replica, facts.end_ns)
    yield from _steps(result)
    yield from _requests(result)


def _process(pid: int, name: str, place: int) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": place}}


def _track(pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _load(replica: ReplicaFacts, end_ns: int) -> Iterator[Event]:
    """Yield counters of requests and KV blocks: means over the bins of the timeline."""
    data = replica.timeline
    for at in range(len(data.levels["running"])):
        start_ns = at * data.bin_ns
        width = min(data.bin_ns, end_ns - start_ns)
        if width <= 0:
            return
        common = {"ph": "C", "pid": replica.index + 1, "ts": start_ns / NS_PER_US}
        levels = {name: float(data.levels[name][at]) / width for name in data.levels}
        yield common | {
            "name": "requests",
            "args": {"running": levels["running"], "waiting": levels["waiting"]},
        }
        yield common | {"name": "KV blocks", "args": {"in use": levels["kv_blocks"]}}


def _steps(result: Result) -> Iterator[Event]:
    log = result.facts.steps
    if log is None:
        return
    free_ns: dict[int, list[int]] = {}  # of each track; micro-batches of a pipeline overlap
    columns = (
        log.replica,
        log.start_ns,
        log.end_ns,
        log.steps,
        log.decoding,
        log.running,
        log.kv_blocks,
        log.prefill_tokens,
        log.output_tokens,
    )
    for row in zip(*(column.tolist() for column in columns), strict=True):
        replica, start_ns, end_ns, steps, decoding, running, blocks, prefill, output = row
        tracks = free_ns.setdefault(replica, [])
        track = next((at for at, free in enumerate(tracks) if free <= start_ns), len(tracks))
        if track == len(tracks):
            tracks.append(0)
            yield _track(replica + 1, track + 1, "steps" if not track else f"steps {track + 1}")
        tracks[track] = end_ns
        what = "decode" if not prefill else "prefill" if not decoding else "prefill + decode"
        yield {
            "ph": "X",
            "cat": "step",
            "pid": replica + 1,
            "tid": track + 1,
            "ts": start_ns / NS_PER_US,
            "dur": (end_ns - start_ns) / NS_PER_US,
            "name": what if steps == 1 else f"{what} x {steps}",
            "args": {
                "steps": steps,
                "decoding": decoding,
                "running": running,
                "prefill_tokens": prefill,
                "output_tokens": output,
                "kv_blocks": blocks,
            },
        }


def _requests(result: Result) -> Iterator[Event]:
    """Yield each request with its phases: queue, prefill, decode."""
    table = result.table
    names = ("request", "replica", "prompt_tokens", "output_tokens", "cached_tokens")
    whole = [table.numbers(name).tolist() for name in (*names, "preemptions")]
    times = [
        np.rint(table.numbers(name) * NS_PER_S).tolist()
        for name in ("arrival_s", "queue_s", "ttft_s", "end_s")
    ]
    outcomes = table.categories("outcome")
    codes = table.codes("outcome", outcomes).tolist()
    for row in zip(*whole, *times, codes, strict=True):
        number, replica, prompt, output, cached, preempted = row[:6]
        arrival, queue, ttft, end, outcome = row[6:]
        common = {"cat": "request", "id": number, "pid": replica + 1 if replica >= 0 else FLEET}
        common["tid"] = 0
        args = {
            "outcome": outcomes[outcome],
            "prompt_tokens": prompt,
            "output_tokens": output,
            "cached_tokens": cached,
            "preemptions": preempted,
        }
        marks = [arrival]
        marks += [arrival + each for each in (queue, ttft) if not math.isnan(each)]
        yield _at("b", arrival, common, f"request {number}") | {"args": args}
        for name, start, stop in zip(
            ("queue", "prefill", "decode"), marks, [*marks[1:], end], strict=False
        ):
            yield _at("b", start, common, name)
            yield _at("e", stop, common, name)
        yield _at("e", end, common, f"request {number}")


def _at(phase: str, time_ns: float, common: Event, name: str) -> Event:
    return common | {"ph": phase, "ts": time_ns / NS_PER_US, "name": name}
