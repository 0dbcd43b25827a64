"""Queues of textbooks as replicas: a price per step that makes service times what one wants.

A step lasts one tick of a microsecond whatever it computes, and a request of prompt 1 takes as
many steps as it has output tokens: its service time is its output length in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapreplace

import numpy as np

from llmsim.core.rng import stream
from llmsim.costmodel.contract import PriceLine
from llmsim.policies import BATCHING, ENGINE_RULES, ROUTING
from llmsim.results.columns import RAW_COLUMNS
from llmsim.results.facts import PoolFacts, RunFacts
from llmsim.results.store import RequestSink
from llmsim.serving.config import EngineConfig
from llmsim.serving.simulate import PoolPlan, simulate
from llmsim.workload.chunk import RequestChunk

TICK_NS = 1_000
MEAN_TICKS = 100_000
"""Mean service time: 0.1 s, in ticks; rounding to ticks is a matter of 10 parts per million."""


@dataclass(frozen=True)
class PerStep:
    """``base + per_request * requests in the step``, prefill or decode alike."""

    base_ns: int = TICK_NS
    per_request_ns: int = 0
    context_tile: int = 1
    window_tokens: int = 0

    def decode_line(self, batch, padded_tokens):
        return PriceLine(float(self.base_ns + self.per_request_ns * batch), 0.0)

    def step_ns(self, chunks, decode, padded_tokens, windowed_tokens, logits):
        return self.base_ns + self.per_request_ns * (decode + len(chunks))


class Poisson:
    """Poisson arrivals with service times of a given law, both from named streams."""

    clients: tuple[str, ...] = ()
    closed_loop = None
    programs = None
    skipped_rows = 0

    def __init__(
        self, seed: int, count: int, rate_per_service: float, law: Callable[..., np.ndarray]
    ) -> None:
        self.total: int | None = count
        mean_ns = MEAN_TICKS * TICK_NS
        gaps = stream(seed, "arrivals").exponential(mean_ns / rate_per_service, count)
        self.arrival_ns = np.cumsum(np.ceil(gaps)).astype(np.int64)
        ticks = law(stream(seed, "service"), count) * MEAN_TICKS
        self.ticks = np.maximum(1, np.rint(ticks)).astype(np.int32)

    def chunks(self):
        n = len(self.ticks)
        minus = np.full(n, -1)
        yield RequestChunk(
            self.arrival_ns,
            np.ones(n, np.int32),
            self.ticks,
            minus,
            minus.astype(np.int32),
            np.zeros(n, np.int32),
            np.zeros(n, np.bool_),
            minus,
        )


def exponential(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.exponential(1.0, count)


def constant(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.ones(count)


def two_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Nine short jobs for a long one; squared coefficient of variation 2.25."""
    return np.where(rng.random(count) < 0.1, 5.5, 0.5)


@dataclass(frozen=True)
class Served:
    """Times of all requests, in order of arrival [ns]."""

    arrival: np.ndarray
    scheduled: np.ndarray
    end: np.ndarray
    facts: RunFacts

    @property
    def waits(self) -> np.ndarray:
        return self.scheduled - self.arrival

    @property
    def sojourns(self) -> np.ndarray:
        return self.end - self.arrival


def serve(
    workload: Poisson,
    servers: int,
    cost: PerStep | None = None,
    replicas: int = 1,
    routing: str = "round-robin",
) -> Served:
    """Serve with `servers` seats per replica."""
    config = EngineConfig(
        max_num_seqs=servers,
        max_num_batched_tokens=2**40,
        max_model_len=2**40,
        block_tokens=16,
        kv_blocks=2**40,
        prefix_caching=False,
        chunked_prefill=True,
        chunk_limit_tokens=0,
        watermark_blocks=0,
        reserve_prompt=True,
        lookahead=0,
        fast_forward=True,
        rules=ENGINE_RULES["vllm-0.33"],
    )
    facts = PoolFacts("main", replicas, "any", 1, 2**40, 16, float("nan"), "-")
    sink = RequestSink(("main",), ())
    plan = PoolPlan(facts, cost or PerStep(), config, BATCHING.get("vllm"))
    told = simulate([plan], workload, ROUTING.get(routing)(), sink)
    table = sink.raw()
    table = table[np.argsort(table[:, 0])]  # by index, in order of arrival
    column = {name: table[:, i] for i, name in enumerate(RAW_COLUMNS)}
    return Served(column["arrival_ns"], column["scheduled_ns"], column["end_ns"], told)


def first_come_first_served(arrival: Sequence[int], service: Sequence[int], servers: int):
    """Return waiting times by the Kiefer-Wolfowitz recursion; Lindley's for one server [ns]."""
    free = [0] * servers
    waits = []
    for at, work in zip(arrival, service, strict=True):
        start = max(at, free[0])
        waits.append(start - at)
        heapreplace(free, start + work)
    return np.array(waits)


def mean_over_seeds(measure: Callable[[int], np.ndarray], seeds: int) -> tuple[float, float]:
    """Return mean and standard error of a per-request time over seeds, in mean service times."""
    means = []
    for seed in range(seeds):
        times = measure(seed)
        means.append(times[len(times) // 10 :].mean() / (MEAN_TICKS * TICK_NS))
    return float(np.mean(means)), float(np.std(means, ddof=1) / np.sqrt(seeds))
