"""Small worlds: a workload, an engine, a price, and a way to run them and look inside.

A `World` says everything about a run in plain values, so that a failing example can be pasted
into a test. The sizes are small on purpose: with a dozen requests on a pool of a few dozen blocks,
ties, preemptions and evictions happen in almost every run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

from abilities import KEEPS, asks_lengths, foresees, together
from image_plans import encoder_pool, encoding_plan, seeing
from jobs import Job, Turn, short
from lane_plans import lane_plan
from prices import MS, PRICES, ByLayers, Joint, Staged, StagedJoint
from progress import guard
from shuffle import Shuffle
from stop_plans import stop_plan
from world_traffic import Traffic

from llmsim.costmodel.contract import StepCost
from llmsim.policies import (
    ALLOCATION,
    BATCHING,
    ENGINE_RULES,
    OUTPUT_LENGTH,
    RETENTION,
    ROUTING,
    TOOL_TIME,
)
from llmsim.policies.tiering import EVICTION, LOADING
from llmsim.policies.views import Promise
from llmsim.results.columns import (
    OUTCOMES,
    RAW_CLASS_COLUMNS,
    RAW_COLUMNS,
    RAW_HANDOFF_COLUMNS,
    RAW_PROGRAM_COLUMNS,
)
from llmsim.results.facts import PoolFacts, RunFacts
from llmsim.results.store import RequestSink
from llmsim.serving.beliefs import BeliefPlan
from llmsim.serving.config import EngineConfig
from llmsim.serving.control import ControlPlan
from llmsim.serving.encoding import EncodeReplica, SeeingReplica
from llmsim.serving.gateway import GatewayPlan
from llmsim.serving.handoff import HandoffPlan, TransferPrice
from llmsim.serving.heartbeats import Heartbeats
from llmsim.serving.labels import ClientRules
from llmsim.serving.lanes import Lane, LanePlan
from llmsim.serving.layered import LayeredReplica
from llmsim.serving.life import BootPlan
from llmsim.serving.meter import NEVER
from llmsim.serving.migration import MigrationPlan
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.ranked_pipeline import PipelineRank
from llmsim.serving.ranks import Rank, RankGroup
from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica
from llmsim.serving.roles import FlipPlan
from llmsim.serving.stops import Planner, StoppingReplica, StopPlan
from llmsim.serving.storehouse import KvPlan, TierPlan
from llmsim.serving.swap import SwapPlan
from llmsim.specs.stages import layers_by_stage

importlib.import_module("llmsim.systems")  # registers what a world may name
simulate_module = importlib.import_module("llmsim.serving.simulate")


@dataclass(frozen=True, repr=False)
class World:
    """Everything that a run depends on."""

    jobs: tuple[Job, ...]
    cost: str = "round"
    max_num_seqs: int = 256
    budget_tokens: int = 8192
    max_model_len: int = 4096
    block_tokens: int = 16
    kv_blocks: int = 1000
    prefix_caching: bool = False
    chunked_prefill: bool = True
    chunk_limit_tokens: int = 0
    watermark_blocks: int = 0
    reserve_prompt: bool = True
    lookahead: int = 0
    rules: str = "vllm-0.33"
    batching: str = "vllm"
    order: str = "fcfs"
    allocation: str = "paged"
    routing: str = "round-robin"
    replicas: int = 1
    view_age_ns: int = 0
    timeout_ns: int = 0
    slo_ns: int = NEVER
    in_flight: int = 0
    think_ns: int = 0
    chunk_rows: int = 7
    decoders: int = 0
    port_bytes_per_s: float = 1e9
    message_ns: int = 0
    late_first_token: bool = False
    sent_layers: int = 0
    refuses_kv: bool = False
    tier_chunks: tuple[int, ...] = ()
    chunk_blocks: int = 1
    tier_scopes: tuple[str, ...] = ("replica", "pool")
    tier_writes: tuple[str, ...] = ("through", "through")
    tier_bytes_per_s: float = 1e9
    spare_chunks: int = 0
    loading: str = "always"
    eviction: str = "lru"
    by_layer: bool = False
    joins_loads: bool = True
    swap_blocks: int = 0
    keeps_copies: bool = False
    swap_overlaps: bool = False
    shuffle_ns: int = 0
    look_age_ns: int = 0
    copy_rounds: int = 3
    last_blocks: int = 1
    handshake_ns: int = MS
    moves_at_once: int = 2
    drag_frac: float = 0.0
    turns: tuple[tuple[Turn, ...], ...] = ()
    lanes: tuple[float, float] | None = None
    sharing: str = "fixed"
    spare: int = 0
    refuse_at: int = 0
    hold_ns: int = 0
    own_sends: bool = False
    report_ns: int = 0
    lost_frac: float = 0.0
    evicts: str = ""
    retention: str = ""
    ttl_ns: int = 0
    gives_way: str = "deadlock"
    ranks: int = 1
    ranks_in_turn: bool = False
    per_expert_ns: float = 3_000.3
    stages: tuple[float, ...] = ()
    hop_ns: float = 0.0
    stage_host_ns: int = 0
    stop_points: int | None = None
    precedence: str = "arrival"
    check_ns: int = 0
    agree_ns: int = 0
    flip_drains: bool | None = None
    switch_ns: int = 0
    reloads: bool = False
    believed: str = ""
    recompute_frac: float | None = None
    image_tokens: int = 0
    encoders: int = 0

    def __repr__(self) -> str:
        return short(self)

    def engine(self, fast_forward: bool) -> EngineConfig:
        return EngineConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget_tokens,
            max_model_len=self.max_model_len,
            block_tokens=self.block_tokens,
            kv_blocks=self.kv_blocks,
            prefix_caching=self.prefix_caching,
            chunked_prefill=self.chunked_prefill,
            chunk_limit_tokens=self.chunk_limit_tokens,
            watermark_blocks=self.watermark_blocks,
            reserve_prompt=self.reserve_prompt,
            lookahead=self.lookahead,
            fast_forward=fast_forward,
            rules=ENGINE_RULES[self.rules],
            evict_rank=EVICTION.get(self.evicts)().rank if self.evicts else None,
            recompute_frac=self.recompute_frac,
        )

    def handoff(self) -> HandoffPlan | None:
        """From `replicas` that compute prompts to `decoders` that do the rest; 10 kB a token."""
        if not self.decoders:
            return None
        price = TransferPrice(1e4, 0.0, 1.0, 0.0, self.message_ns / 1e9)
        ports = (self.port_bytes_per_s,) * 3
        router = ROUTING.get("least-loaded")()
        return HandoffPlan(
            router,
            (price, price),
            ports,
            self.late_first_token,
            self.view_age_ns,
            layers=(self.sent_layers,) * 2 if self.sent_layers else (),
            refuses=self.refuses_kv,
        )

    def kv(self) -> KvPlan | None:
        """Tiers of `tier_chunks`, the nearest first, each half as fast as before; 10 kB a token."""
        if not self.tier_chunks and not self.swap_blocks:
            return None
        swap = None
        if self.swap_blocks:
            message_s = self.message_ns / 1e9
            swap = SwapPlan(
                self.swap_blocks,
                1e4 * self.block_tokens,
                message_s,
                keeps_copies=self.keeps_copies,
                overlaps=self.swap_overlaps and not self.prefix_caching,
            )
        rank = EVICTION.get(self.eviction)().rank
        tiers = tuple(
            TierPlan(
                f"tier-{number}",
                self.tier_scopes[number],
                chunks,
                self.chunk_blocks * self.block_tokens,
                1e4,
                read_bytes_per_s=self.tier_bytes_per_s / (1 + number),
                write_bytes_per_s=self.tier_bytes_per_s / (1 + number),
                message_s=self.message_ns / 1e9,
                write=self.tier_writes[number],
                rank=None if self.eviction == "lru" else rank,
                spare_chunks=min(self.spare_chunks, chunks),
            )
            for number, chunks in enumerate(self.tier_chunks)
        )
        load = LOADING.get(self.loading)
        host = self.port_bytes_per_s
        layers = layers_by_stage(4, max(1, len(self.stages)))
        return KvPlan(tiers, host, load, self.by_layer, self.joins_loads, layers, swap)

    def control(self) -> ControlPlan | None:
        """Requests are moved at random every `shuffle_ns`; 10 kB a token."""
        if not self.shuffle_ns:
            return None
        price = TransferPrice(1e4, 0.0, 1.0, 0.0, self.message_ns / 1e9)
        pools = 2 if self.decoders else 1
        plan = MigrationPlan(
            (price,) * pools,
            (self.port_bytes_per_s,) * pools,
            (self.drag_frac,) * pools,
            self.copy_rounds,
            self.last_blocks,
            self.handshake_ns,
            self.moves_at_once,
        )
        boot = BootPlan(7 * MS, (1e6, 1e6), 1e9, 3 * MS, 11 * MS) if self.spare else None
        flips = self.flip_drains is not None
        flip = None
        if self.flip_drains is not None:
            weights = (1e6, 1e6) if self.reloads else ()
            flip = FlipPlan(self.flip_drains, self.switch_ns, weights, 1e9)
        period_s, age_s = self.shuffle_ns / 1e9, self.look_age_ns / 1e9
        shuffle = Shuffle(period_s, age_s, self.spare > 0, flips)
        return ControlPlan((shuffle,), plan, boot, flip)

    def gateway(self) -> GatewayPlan | None:
        """Whether replicas may refuse."""
        if not self.refuse_at and not self.spare and self.flip_drains is None:
            return None
        return GatewayPlan(self.refuse_at, self.hold_ns)

    def router(self) -> Any:
        """Who routes; where nothing can be foreseen, somebody who does not try."""
        changes = self.spare or self.refuse_at or self.shuffle_ns or self.retention
        changes = changes or (self.decoders and not self.lanes)
        waits = bool(self.swap_blocks) or self.by_layer
        changes = changes or (bool(self.stages) and self.ranks > 1 and waits)
        more = self.ranks > 1 or self.stages or self.lanes or self.swap_blocks
        batching = BATCHING.get(self.batching)
        keeps = more and any(hasattr(batching, each) for each in KEEPS)
        keeps = keeps or hasattr(batching, "layer_groups")
        set_up = self.flip_drains is not None or self.stop_points is not None
        changes = changes or keeps or self.together or set_up
        return ROUTING.get("least-loaded" if foresees(self.routing) and changes else self.routing)()

    def estimates(self) -> BeliefPlan | None:
        """What policies are told of output lengths; a router that foresees is told something."""
        kind = self.believed or ("mean" if foresees(self.routing) else "")
        kind = kind or ("noisy" if asks_lengths(self.batching) else "")
        return BeliefPlan(OUTPUT_LENGTH.get(kind)(), 3) if kind else None

    def tool_times(self) -> Callable[[], Any] | None:
        """What is believed of pauses in worlds that pin: nothing, or by each kind in turn."""
        kinds = (None, *TOOL_TIME.names())
        kind = kinds[len(self.jobs) % len(kinds)] if self.retention else None
        return None if kind is None else TOOL_TIME.get(kind)

    def lane(self, role: str, cost: StepCost) -> LanePlan | None:
        """How prefill and decode replicas share GPUs, if they do."""
        return None if self.lanes is None else lane_plan(self.lanes, self.sharing, role, cost)

    def staged(self) -> Staged:
        """What the stages of a pipeline cost."""
        return Staged(PRICES[self.cost], self.stages, self.hop_ns, self.stage_host_ns)

    def staged_joint(self) -> StagedJoint:
        """What the stages of a pipeline cost whose micro-batches have a share for each rank."""
        joint = Joint(PRICES[self.cost], self.per_expert_ns)
        return StagedJoint(joint, self.stages, self.hop_ns, self.stage_host_ns)

    def allocator(self) -> Any:
        """What requests are promised; granules are small, and steps wait for them."""
        kind = ALLOCATION.get(self.allocation)
        if self.allocation == "granules":
            return kind(granule_tokens=8, map_s=0.003, ahead=False)
        return kind()

    def pins(self) -> Callable[[], Any] | None:
        """What pins KV between two calls of a program; `ttl_ns` of 0 is for ever."""
        if not self.retention:
            return None
        kind = RETENTION.get(self.retention)
        if self.retention != "fixed":
            return kind
        ttl_s = self.ttl_ns / 1e9 if self.ttl_ns else None
        return lambda: kind(ttl_s=ttl_s, gives_way=self.gives_way)

    def stop(self, role: str) -> StopPlan | None:
        """How steps are stopped, at `stop_points` instants inside; 20 us a token are promised."""
        if self.stop_points is None or role != "prefill":
            return None
        return stop_plan(self.stop_points, self.check_ns, self.agree_ns, self.precedence)

    @property
    def layered(self) -> bool:
        """Whether prompts go through groups of layers: where nothing else is in the way."""
        others = (self.decoders, self.tier_chunks, self.swap_blocks, self.shuffle_ns, self.spare)
        others += (self.lanes, self.stages, self.ranks > 1, self.retention, self.refuse_at)
        asks = hasattr(BATCHING.get(self.batching), "layer_groups")
        return asks and self.allocation == "paged" and not any(others)

    @property
    def together(self) -> bool:
        """Whether results leave only when everybody who runs has ended."""
        return together(self.batching)

    def policy(self) -> Any:
        later, ages = self.order != "fcfs", 100.0 * (self.order == "deadline")
        told = {"vllm": {"order": self.order}, "gathering": {"wait_steps": 7 * later}}
        told["shortest-first"] = {"preempts": later, "lead_tokens": 3, "ageing_tokens_per_s": ages}
        return BATCHING.get(self.batching)(**told.get(self.batching, {}))


@dataclass(frozen=True)
class Row:
    """What was recorded about one request; the fields are `RAW_COLUMNS`."""

    values: tuple[int, ...]

    def __getattr__(self, name: str) -> Any:
        if name == "ended_as":
            return OUTCOMES[self.outcome]
        if name in RAW_HANDOFF_COLUMNS:
            return self.values[-1]
        columns = RAW_COLUMNS + RAW_CLASS_COLUMNS + RAW_PROGRAM_COLUMNS
        return self.values[columns.index(name)]


@dataclass(frozen=True)
class Ran:
    """A finished run."""

    world: World
    facts: RunFacts
    rows: tuple[Row, ...]
    decisions: tuple[tuple[int, ...], ...]
    replicas: tuple[Replica, ...]

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.ended_as == "finished"]


UNCLASSED = Promise(-1, e2e_ns=400 * MS)
CLASSES = (Promise(0, 30 * MS, 1e5, 8 * MS), Promise(1))
"""Promises by priority: 0 has no class, 1 is promised a first token soon, 2 nothing at all."""

Recorder = Callable[[Replica, CallRecord], None]


def run(
    world: World,
    fast_forward: bool = True,
    recorder: Recorder | None = None,
    *,
    seed: int = 5,
    cost: StepCost | None = None,
    token_times: bool = False,
    policy: Callable[[], Any] | None = None,
    router: Any = None,
) -> Ran:
    """Run a world through `simulate` itself; `recorder` hears of its calls, until too many."""
    by_layers = ByLayers(cost or PRICES[world.cost]) if world.layered and not policy else None
    heard = guard(world, recorder)
    watched: list[Replica] = []
    kept: list[tuple[int, ...]] = []

    def watch(*given: Any, kind: Any = None) -> Replica:
        if kind is None:
            kind = Rank if isinstance(given[0], RankGroup) else Lane if world.lanes else Replica
        kind = (PipelineRank if world.ranks > 1 else Pipeline) if world.stages else kind
        kind = LayeredReplica if by_layers is not None else kind
        kind = StoppingReplica if len(given) > 5 and isinstance(given[5], Planner) else kind
        replica = kind(*given)
        # a pipeline that is recorded merges nothing: then only the run step by step is guarded
        if recorder is not None or not (world.stages and fast_forward):
            replica.recorder = partial(heard, replica)
        watched.append(replica)
        return replica

    def keep(*given: Any) -> RunFacts:
        kept.extend(tuple(replica.decisions) for replica in watched)  # hashed and forgotten next
        return gather(*given)

    gather = simulate_module._facts
    sizes = {"mixed": world.replicas}
    if world.decoders:
        sizes = {"prefill": world.replicas, "decode": world.decoders}
    plans = [
        simulate_module.PoolPlan(
            PoolFacts(
                role,
                size,
                "h100-sxm",
                1,
                world.kv_blocks,
                world.block_tokens,
                2.0,
                "-",
                ranks=world.ranks,
            ),
            cost or PRICES[world.cost],
            world.engine(fast_forward),
            policy or (Planner if world.stop(role) else world.policy),
            role=role,
            stop=world.stop(role),
            by_layers=by_layers,
            kv=world.kv(),
            lane=world.lane(role, cost or PRICES[world.cost]),
            spare=world.spare,
            weights_bytes=1e6,
            joint=Joint(PRICES[world.cost], world.per_expert_ns) if world.ranks > 1 else None,
            ranks_in_turn=world.ranks_in_turn,
            staged=world.staged() if world.stages else None,
            staged_joint=world.staged_joint() if world.stages and world.ranks > 1 else None,
            allocator=world.allocator(),
            retention=world.pins(),
        )
        for role, size in sizes.items()
    ]
    plans = [seeing(world, plan) for plan in [*plans, *encoder_pool(world)]]
    ways = {"programs": bool(world.turns), "handoff": bool(world.decoders)}
    names = [plan.facts.name for plan in plans]
    sink = RequestSink(names, Traffic.clients, slo_classes=("soon", "late"), **ways)
    with (
        patch.object(simulate_module, "Replica", watch),
        patch.object(simulate_module, "Lane", watch),
        patch.object(simulate_module, "Rank", watch),
        patch.object(simulate_module, "Pipeline", watch),
        patch.object(simulate_module, "PipelineRank", watch),
        patch.object(simulate_module, "StoppingReplica", watch),
        patch.object(simulate_module, "LayeredReplica", watch),
        patch.object(simulate_module, "SeeingReplica", partial(watch, kind=SeeingReplica)),
        patch.object(simulate_module, "EncodeReplica", partial(watch, kind=EncodeReplica)),
        patch.object(simulate_module, "_facts", keep),
    ):
        told = simulate_module.simulate(
            plans,
            Traffic(world),
            router or world.router(),
            sink,
            seed=seed,
            view_age_ns=world.view_age_ns,
            handoff=world.handoff(),
            control=world.control(),
            gateway=world.gateway(),
            count_own_sends=world.own_sends,
            heartbeats=Heartbeats(world.report_ns, world.lost_frac) if world.report_ns else None,
            clients=ClientRules(world.timeout_ns, UNCLASSED, CLASSES),
            itl_slo_ns=world.slo_ns,
            token_times=token_times,
            estimates=world.estimates(),
            tool_times=world.tool_times(),
            encoding=encoding_plan(world),
        )
    rows = tuple(Row(tuple(values)) for values in sorted(sink.raw().tolist()))
    return Ran(world, told, rows, tuple(kept), tuple(watched))
