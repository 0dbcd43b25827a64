"""From a scenario to what `simulate` takes: cards loaded, memory planned, policies bound."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmsim.core.errors import CardError
from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S, seconds_to_ns
from llmsim.costmodel import RooflineCost, plan_memory
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.rules import engine_rules
from llmsim.results.facts import PoolFacts
from llmsim.scenario import Scenario
from llmsim.scenario.model import Abort, Pool
from llmsim.serving.draft import EngineConfig
from llmsim.serving.simulate import PoolPlan
from llmsim.specs import ModelSpec, ParallelPlan, load_gpu, load_link, load_model, price_of
from llmsim.workload import SyntheticWorkload
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Workload


def build_pools(scenario: Scenario) -> tuple[list[PoolPlan], list[str]]:
    """Return a scenario's pools, ready to be simulated, and what the reader must know of them.

    Raises
    ------
    ModelDoesNotFitError
        If weights or KV do not fit a pool's GPUs.
    InputError
        If a card or a layout is wrong.
    """
    model = load_model(scenario.model, scenario.folder)
    warnings = list(model.warnings)
    plans = []
    for name, pool in scenario.fleet.pools.items():
        plan, told = _build_pool(name, pool, model, scenario.folder)
        plans.append(plan)
        warnings += [text for text in told if text not in warnings]
    return plans, warnings


def _build_pool(
    name: str, pool: Pool, model: ModelSpec, folder: Path | None
) -> tuple[PoolPlan, list[str]]:
    engine = pool.engine
    gpu = load_gpu(pool.gpu, folder)
    parallel = ParallelPlan(pool.tp)
    limits = engine.limits(model)
    memory = plan_memory(
        model,
        gpu,
        parallel,
        limits,
        engine.gpu_memory_utilization_frac,
        engine.kv_dtype,
        engine.kv_blocks,
    )
    link = load_link(gpu.link, folder) if pool.tp > 1 else None
    cost = pool.cost.build().bind(
        model, gpu, link, parallel, limits, engine.kv_dtype, engine.lookahead
    )
    rules = engine_rules(engine.version)
    share = engine.watermark_frac if engine.watermark_frac is not None else rules.watermark_frac
    config = EngineConfig(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        block_tokens=limits.block_tokens,
        kv_blocks=memory.kv_blocks,
        prefix_caching=engine.prefix_caching,
        chunked_prefill=engine.chunked_prefill,
        chunk_limit_tokens=engine.long_prefill_threshold_tokens,
        watermark_blocks=math.floor(share * memory.kv_blocks),
        reserve_prompt=engine.reserve_full_prompt,
        lookahead=engine.lookahead,
        fast_forward=engine.fast_forward,
        rules=rules,
    )
    usd_per_hour, source = _price(pool)
    facts = PoolFacts(
        name=name,
        replicas=pool.replicas,
        gpu=pool.gpu,
        gpus_per_replica=pool.tp,
        kv_blocks=memory.kv_blocks,
        block_tokens=limits.block_tokens,
        usd_per_gpu_hour=usd_per_hour,
        price_source=source,
    )
    told = list(cost.warnings()) if isinstance(cost, RooflineCost) else []
    batching: Callable[[], BatchingPolicy] = pool.batching.build
    return PoolPlan(facts, cost, config, batching), told


def _price(pool: Pool) -> tuple[float, str]:
    if pool.gpu_price_usd_per_hour is not None:
        return pool.gpu_price_usd_per_hour, "the scenario"
    try:
        card = price_of(pool.gpu, pool.price)
    except CardError:
        return math.nan, "no price card for this GPU"
    return card.usd_per_gpu_hour, f"{card.cloud} {card.instance}, {card.date}, {card.source}"


def build_workload(scenario: Scenario) -> Workload:
    """Return a scenario's traffic.

    Raises
    ------
    TraceError
        If the trace is missing or of another format.
    """
    traffic = scenario.traffic
    workload: Workload
    if traffic.trace is not None:
        workload = traffic.trace.build().open(scenario.seed, scenario.folder)
    else:
        assert traffic.arrivals is not None and traffic.lengths is not None  # the schema checks
        workload = SyntheticWorkload(
            traffic.arrivals.build(),
            traffic.lengths.build(),
            seed=scenario.seed,
            prompts=traffic.prompts.build() if traffic.prompts is not None else None,
            requests=traffic.requests,
            duration_s=traffic.duration_s,
            near=scenario.folder,
        )
    return workload if traffic.abort is None else Leaving(workload, traffic.abort, scenario.seed)


@dataclass
class Leaving:
    """A workload some of whose clients go away by themselves.

    Parameters
    ----------
    inner : Workload
    law : Abort
        Who leaves, and when.
    seed : int
    """

    inner: Workload
    law: Abort
    seed: int

    def __post_init__(self) -> None:
        self.clients: tuple[str, ...] = self.inner.clients
        self.closed_loop: ClosedLoop | None = self.inner.closed_loop

    @property
    def total(self) -> int | None:
        """Number of requests, if known."""
        return self.inner.total

    @property
    def skipped_rows(self) -> int:
        """Damaged rows skipped so far."""
        return self.inner.skipped_rows

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the inner workload's requests with a time of leaving for some."""
        rng = stream(self.seed, "aborts")
        law = self.law
        for chunk in self.inner.chunks():
            leaves = rng.random(len(chunk)) < law.frac
            waits = rng.exponential(law.mean_s, len(chunk))
            after_s = waits if law.law == "exponential" else np.full(len(chunk), law.mean_s)
            after_ns = np.where(leaves, np.rint(after_s * NS_PER_S), -1).astype(np.int64)
            yield replace(chunk, abort_ns=after_ns)


def itl_objective_ns(scenario: Scenario, default_ns: int) -> int:
    """Return the longest gap between tokens that the scenario allows [ns]."""
    limit = scenario.slo.itl_s
    return default_ns if limit is None else seconds_to_ns(limit)


def fingerprint(scenario: Scenario) -> dict[str, str]:
    """Return hashes of what the run is made from: the resolved scenario and the trace file."""
    text = scenario.resolved_yaml().encode()
    found = {"scenario": hashlib.blake2b(text, digest_size=16).hexdigest()}
    trace = scenario.traffic.trace
    path = trace.params.get("path") if trace is not None else None
    if isinstance(path, str) and Path(path).is_file():
        digest = hashlib.blake2b(digest_size=16)
        with Path(path).open("rb") as handle:
            while part := handle.read(1 << 20):
                digest.update(part)
        found["trace"] = digest.hexdigest()
    return found
