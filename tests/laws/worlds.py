"""Small worlds: a workload, an engine, a price, and a way to run them and look inside.

A `World` says everything about a run in plain values, so that a failing example can be pasted
into a test. The sizes are small on purpose: with a dozen requests on a pool of a few dozen blocks,
ties, preemptions and evictions happen in almost every run.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from llmsim.costmodel.contract import Chunk, PriceLine, RankLoad, StepCost
from llmsim.costmodel.lanes import Use
from llmsim.policies import ALLOCATION, BATCHING, ENGINE_RULES, ROUTING, SHARING
from llmsim.policies.control import Add, Drain, Fail, Migrate
from llmsim.policies.tiering import EVICTION, LOADING
from llmsim.results.columns import OUTCOMES, RAW_COLUMNS, RAW_PROGRAM_COLUMNS
from llmsim.results.facts import PoolFacts, RunFacts
from llmsim.results.store import RequestSink
from llmsim.serving.config import EngineConfig
from llmsim.serving.control import ControlPlan
from llmsim.serving.fleet import ClientRules
from llmsim.serving.gateway import GatewayPlan
from llmsim.serving.handoff import HandoffPlan, TransferPrice
from llmsim.serving.lanes import Lane, LaneLevel, LanePlan
from llmsim.serving.life import BootPlan
from llmsim.serving.meter import NEVER
from llmsim.serving.migration import MigrationPlan
from llmsim.serving.ranks import Rank, RankGroup
from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, WAITING, Request
from llmsim.serving.storehouse import KvPlan, TierPlan
from llmsim.serving.swap import SwapPlan
from llmsim.workload.chunk import ClosedLoop, RequestChunk
from llmsim.workload.programs import CallEnd, NextCall, grown

importlib.import_module("llmsim.systems")  # registers what a world may name
simulate_module = importlib.import_module("llmsim.serving.simulate")

Segments = tuple[tuple[int, int], ...]
MS = 1_000_000
BEYOND = 2**62


@dataclass(frozen=True)
class Cost:
    """A price that is a straight line (or two) in the context sums, as `StepCost` asks for.

    ``gpu = base + per_request * decodes + per_token * padded + per_windowed * windowed``, plus
    per_new and per_pair for prefill; a step lasts ``max(gpu, host_ns)``.
    """

    base_ns: float = 5.0 * MS
    per_request_ns: float = 20_000.0
    per_token_ns: float = 20.0
    per_new_ns: float = 20_000.0
    per_pair_ns: float = 0.0
    per_windowed_ns: float = 0.0
    host_ns: float = 0.0
    context_tile: int = 1
    window_tokens: int = 0

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        flat = self.base_ns + self.per_request_ns * batch
        gpu = PriceLine(flat, self.per_token_ns, self.per_windowed_ns)
        if not self.host_ns:
            return gpu
        assert not self.per_windowed_ns  # a knot in two sums is no knot in one of them
        slack = self.host_ns - flat
        if slack < 0:
            return gpu
        until = math.floor(slack / self.per_token_ns) if self.per_token_ns else BEYOND
        if padded_tokens > until:
            return gpu
        return PriceLine(self.host_ns, 0.0, 0.0, until)

    def step_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int,
    ) -> int:  # fmt: skip
        if not chunks and decode:
            line = self.decode_line(decode, padded_tokens)
            time = line.base_ns + line.per_token_ns * padded_tokens
            return max(1, round(time + line.per_windowed_ns * windowed_tokens))
        gpu = self.base_ns + self.per_request_ns * decode + self.per_token_ns * padded_tokens
        gpu += self.per_windowed_ns * windowed_tokens
        for new, past in chunks:
            gpu += self.per_new_ns * new + self.per_pair_ns * new * (past + 0.5 * (new + 1))
        return max(1, round(max(gpu, self.host_ns)))


@dataclass(frozen=True)
class Joint:
    """Ranks that step together, on the terms of a `Cost`: what several have is in the largest.

    ``gpu = base + per_request * most + per_expert * sum of max(1, tokens) + slowest attention``.
    """

    cost: Cost
    per_expert_ns: float = 3_000.3

    @property
    def context_tile(self) -> int:
        return self.cost.context_tile

    @property
    def window_tokens(self) -> int:
        return self.cost.window_tokens

    def _rest_ns(self, most: int, total: int) -> float:
        return self.cost.base_ns + self.cost.per_request_ns * most + self.per_expert_ns * total

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        # a second piece, so that lines have an end
        until = 300 * batch
        if padded_tokens <= until:
            return PriceLine(7.0 * batch, self.cost.per_token_ns, self.cost.per_windowed_ns, until)
        steeper = 1.5 * self.cost.per_token_ns
        return PriceLine(8.0 * batch, steeper, self.cost.per_windowed_ns)

    def decode_line(self, batches: Sequence[int], lead: int, padded_tokens: int) -> PriceLine:
        own = self.attention_line(batches[lead], padded_tokens)
        flat = own.base_ns + self._rest_ns(max(batches), sum(max(1, batch) for batch in batches))
        if not self.cost.host_ns:
            return replace(own, base_ns=flat)
        slack = self.cost.host_ns - flat
        until = math.floor(slack / own.per_token_ns) if slack > 0 and own.per_token_ns else -1
        if padded_tokens > until:
            return replace(own, base_ns=flat)
        return PriceLine(self.cost.host_ns, 0.0, 0.0, min(until, own.until_tokens))

    def step_ns(self, loads: Sequence[RankLoad]) -> int:
        slowest = most = total = 0.0
        for load in loads:
            own = 0.0
            if load.decode:
                line = self.attention_line(load.decode, load.padded)
                own = line.base_ns + line.per_token_ns * load.padded
                own += line.per_windowed_ns * load.windowed
            for new, past in load.chunks:
                own += self.cost.per_new_ns * new
                own += self.cost.per_pair_ns * new * (past + 0.5 * (new + 1))
            slowest = max(slowest, own)
            most = max(most, load.new + load.decode)
            total += max(1, load.new + load.decode)
        return max(1, round(max(slowest + self._rest_ns(most, total), self.cost.host_ns)))


COSTS: dict[str, Cost] = {
    "round": Cost(),
    "flat": Cost(per_request_ns=0.0, per_token_ns=0.0, per_new_ns=0.0, per_pair_ns=0.0),
    "fractions": Cost(1_234_567.89, 777.77, 3.3333, 45_678.9, 1.7),
    "steep": Cost(10.0 * MS, 0.0, 100_000.0, 1_000.0),
    "tiled": Cost(1.5 * MS, 12_000.5, 46.03, 26_666.7, 0.13, context_tile=128),
    "tile 16": Cost(2.0 * MS, 0.0, 4_000.0, 26_666.0, context_tile=16),
    "knee": Cost(1.0 * MS, 100_000.0, 30_000.0, 20_000.0, host_ns=4.0 * MS),
    "tiled knee": Cost(0.5 * MS, 50_000.3, 1_700.7, 9_000.1, host_ns=2.0 * MS, context_tile=128),
    "window": Cost(1.0 * MS, 100.0, 1_000.0, 9_000.0, 0.0, 5_000.0, window_tokens=24),
    "tiled window": Cost(
        1.0 * MS, 100.1, 10.01, 9_000.7, 0.0, 50.03, context_tile=16, window_tokens=40
    ),
    "all windowed": Cost(
        1.0 * MS, 0.0, 0.0, 9_000.0, 0.0, 333.3, context_tile=128, window_tokens=100
    ),
}
"""Prices by name; every one keeps the contract of `StepCost` exactly."""

APART: dict[str, Cost] = {"a millisecond a token": Cost(0.0, 0.0, 0.0, 1.0 * MS)}
"""Prices that no random world draws."""


@dataclass(frozen=True)
class Slower:
    """Another price, at a share of the GPU."""

    cost: StepCost
    share_frac: float

    @property
    def context_tile(self) -> int:
        return self.cost.context_tile

    @property
    def window_tokens(self) -> int:
        return self.cost.window_tokens

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        line = self.cost.decode_line(batch, padded_tokens)
        prices = (line.base_ns, line.per_token_ns, line.per_windowed_ns)
        return PriceLine(*(price / self.share_frac for price in prices), line.until_tokens)

    def step_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int,
        logits: int,
    ) -> int:  # fmt: skip
        if not chunks and decode:
            line = self.decode_line(decode, padded_tokens)
            time = line.base_ns + line.per_token_ns * padded_tokens
            return max(1, round(time + line.per_windowed_ns * windowed_tokens))
        whole = self.cost.step_ns(chunks, decode, padded_tokens, windowed_tokens, logits)
        return max(1, round(whole / self.share_frac))


@dataclass(frozen=True)
class MadeUpUse:
    """What steps take of a GPU that lanes share: prefill many SMs, decode much bandwidth."""

    share_frac: float

    def of(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, logits: int,
        alone_ns: float,
    ) -> Use:  # fmt: skip
        if chunks:
            new = sum(new for new, _ in chunks)
            return Use(self.share_frac * new / (new + 20), 0.3)
        return Use(0.4 * self.share_frac, padded_tokens / (padded_tokens + 100))


def _short(thing: Any) -> str:
    """Write a dataclass as a call with what differs from its defaults."""
    told = [
        f"{field.name}={getattr(thing, field.name)!r}"
        for field in fields(thing)
        if getattr(thing, field.name) != field.default
    ]
    return f"{type(thing).__name__}({', '.join(told)})"


@dataclass(frozen=True, repr=False)
class Job:
    """One request of a world."""

    arrival_ns: int
    prompt: int
    output: int
    segments: Segments | None = None
    priority: int = 0
    abort_ns: int = -1
    failed: bool = False
    session: int = -1

    def __repr__(self) -> str:
        return _short(self)


@dataclass(frozen=True, repr=False)
class Turn:
    """A later call of the program that a job begins."""

    own: int
    output: int
    after_ns: int = 0

    def __repr__(self) -> str:
        return _short(self)


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
    ranks: int = 1
    ranks_in_turn: bool = False

    def __repr__(self) -> str:
        return _short(self)

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
        )

    def handoff(self) -> HandoffPlan | None:
        """From `replicas` that compute prompts to `decoders` that do the rest; 10 kB a token."""
        if not self.decoders:
            return None
        price = TransferPrice(1e4, 0.0, 1.0, 0.0, self.message_ns / 1e9)
        ports = (self.port_bytes_per_s, self.port_bytes_per_s)
        router = ROUTING.get("least-loaded")()
        return HandoffPlan(router, (price, price), ports, self.late_first_token, self.view_age_ns)

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
        return KvPlan(tiers, host, load, self.by_layer, self.joins_loads, 4, swap)

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
        shuffle = Shuffle(self.shuffle_ns / 1e9, self.look_age_ns / 1e9, self.spare > 0)
        return ControlPlan((shuffle,), plan, boot)

    def gateway(self) -> GatewayPlan | None:
        """Whether replicas may refuse."""
        if not self.refuse_at and not self.spare:
            return None
        return GatewayPlan(self.refuse_at, self.hold_ns)

    def lane(self, role: str, cost: StepCost) -> LanePlan | None:
        """How prefill and decode replicas share GPUs, if they do."""
        if self.lanes is None:
            return None
        prefill = role == "prefill"

        def level(share_frac: float) -> LaneLevel:
            return LaneLevel(Slower(cost, share_frac), MadeUpUse(share_frac), None)

        return LanePlan(
            None if prefill else 0,
            level,
            self.lanes[0 if prefill else 1],
            None if prefill else SHARING.get(self.sharing),
            tpot_slo_s=0.01,
        )

    @property
    def together(self) -> bool:
        """Whether results leave only when everybody who runs has ended."""
        return together(self.batching)

    def policy(self) -> Any:
        kind = BATCHING.get(self.batching)
        return kind(order=self.order) if self.batching == "vllm" else kind()


class Shuffle:
    """Moves whom it draws."""

    def __init__(self, period_s: float, view_age_s: float, lives: bool = False) -> None:
        self.period_s, self.view_age_s, self._lives = period_s, view_age_s, int(lives)

    def start(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def act(self, fleet: Any) -> list[Any]:
        count = len(fleet.replicas)
        moves: list[Any] = []
        if self._lives:
            moves.append(Add(0))
        if 0 < self._lives <= 5:
            self._lives += 1
            kind = (Drain, Fail)[int(self._rng.integers(0, 2))]
            moves.append(kind(int(self._rng.integers(0, count))))
        for _ in range(2):
            source, target = self._rng.integers(0, count, 2).tolist()
            running = fleet.decoding(source)
            if running:
                victim = running[int(self._rng.integers(0, len(running)))]
                moves.append(Migrate(victim.request.index, source, target))
        return moves


def together(batching: str) -> bool:
    """Whether a policy lets results leave only when everybody who runs has ended."""
    return getattr(BATCHING.get(batching), "releases_together", False)


class Traffic:
    """The jobs of a world as a workload, in chunks of a few rows."""

    clients: tuple[str, ...] = ()
    skipped_rows = 0
    tools = ()

    def __init__(self, world: World) -> None:
        self._world = world
        self.programs = self if world.turns else None
        self.total: int | None = len(world.jobs)
        self.closed_loop: ClosedLoop | None = None
        if world.in_flight:
            each = -(-len(world.jobs) // world.in_flight)
            self.closed_loop = ClosedLoop(world.in_flight, each, world.think_ns)

    def chunks(self) -> Iterator[RequestChunk]:
        jobs, rows = self._world.jobs, self._world.chunk_rows
        for at in range(0, len(jobs), rows):
            part = jobs[at : at + rows]
            yield RequestChunk(
                arrival_ns=np.array([j.arrival_ns for j in part], dtype=np.int64),
                prompt_tokens=np.array([j.prompt for j in part], dtype=np.int32),
                output_tokens=np.array([j.output for j in part], dtype=np.int32),
                session=np.array(
                    [at + i if self.programs else j.session for i, j in enumerate(part)],
                    dtype=np.int64,
                ),
                client=np.full(len(part), -1, dtype=np.int32),
                priority=np.array([j.priority for j in part], dtype=np.int32),
                failed=np.array([j.failed for j in part], dtype=np.bool_),
                abort_ns=np.array([j.abort_ns for j in part], dtype=np.int64),
                segments=[j.segments for j in part],
            )

    def next_calls(self, ended: CallEnd) -> list[NextCall]:
        if not ended.served or self.is_final(ended.program, ended.turn):
            return []
        turn = self._world.turns[ended.program][ended.turn]
        key = 50_000 + 100 * ended.program + ended.turn
        segments = None if ended.segments is None else grown(ended, key, turn.own)
        prompt = ended.prompt_tokens + ended.output_tokens + turn.own
        place = (ended.program, ended.turn + 1)
        labels = (ended.client, ended.priority)
        return [NextCall(turn.after_ns, *place, prompt, turn.output, segments, *labels)]

    def tool(self, program: int, turn: int) -> int:
        return -1

    def is_final(self, program: int, turn: int) -> bool:
        return turn >= len(self._world.turns[program])


@dataclass(frozen=True)
class Row:
    """What was recorded about one request; the fields are `RAW_COLUMNS`."""

    values: tuple[int, ...]

    def __getattr__(self, name: str) -> Any:
        if name == "ended_as":
            return OUTCOMES[self.outcome]
        return self.values[(RAW_COLUMNS + RAW_PROGRAM_COLUMNS).index(name)]


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
    """Run a world through `simulate` itself; `recorder` hears of every scheduler call."""
    watched: list[Replica] = []
    kept: list[tuple[int, ...]] = []

    def watch(*given: Any) -> Replica:
        kind = Rank if isinstance(given[0], RankGroup) else Lane if world.lanes else Replica
        replica = kind(*given)
        if recorder is not None:
            replica.recorder = lambda call: recorder(replica, call)
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
            cost or (COSTS | APART)[world.cost],
            world.engine(fast_forward),
            policy or world.policy,
            role=role,
            kv=world.kv(),
            lane=world.lane(role, cost or (COSTS | APART)[world.cost]),
            spare=world.spare,
            weights_bytes=1e6,
            joint=Joint((COSTS | APART)[world.cost]) if world.ranks > 1 else None,
            ranks_in_turn=world.ranks_in_turn,
            allocator=ALLOCATION.get(world.allocation)(),
        )
        for role, size in sizes.items()
    ]
    sink = RequestSink(tuple(sizes), (), programs=bool(world.turns))
    with (
        patch.object(simulate_module, "Replica", watch),
        patch.object(simulate_module, "Lane", watch),
        patch.object(simulate_module, "Rank", watch),
        patch.object(simulate_module, "_facts", keep),
    ):
        told = simulate_module.simulate(
            plans,
            Traffic(world),
            router or ROUTING.get(world.routing)(),
            sink,
            seed=seed,
            view_age_ns=world.view_age_ns,
            handoff=world.handoff(),
            control=world.control(),
            gateway=world.gateway(),
            count_own_sends=world.own_sends,
            clients=ClientRules(timeout_ns=world.timeout_ns),
            itl_slo_ns=world.slo_ns,
            token_times=token_times,
        )
    rows = tuple(Row(tuple(values)) for values in sorted(sink.raw().tolist()))
    return Ran(world, told, rows, tuple(kept), tuple(watched))


def with_turns(world: World, extra: Sequence[tuple[int, int, int]], gap_ns: int = MS) -> World:
    """Add second turns whose prompts hold the text that earlier requests generated.

    Each of `extra` is (parent, new prompt tokens, output). The turns come when everything else
    has ended, so a parent's text is known: the first run says how long it got.
    """
    first = run(world)
    jobs = list(world.jobs)
    at = first.facts.end_ns + gap_ns
    for parent, fresh, output in extra:
        base, row = world.jobs[parent], first.rows[parent]
        spoken = row.output_tokens
        segments = base.segments or ((10_000 + parent, base.prompt),)
        segments = (*segments, (-1 - parent, spoken), (20_000 + len(jobs), fresh))
        prompt = base.prompt + spoken + fresh
        jobs.append(Job(at, prompt, output, tuple(s for s in segments if s[1]), base.priority))
    longest = max(job.prompt + job.output for job in jobs)
    return replace(
        world,
        jobs=tuple(jobs),
        kv_blocks=max(world.kv_blocks, -(-longest // world.block_tokens) + world.watermark_blocks),
        budget_tokens=world.budget_tokens if world.chunked_prefill else 8192,
    )


# --- what a run did, step by step -------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What one scheduler call gave one request: new tokens, and how many it had before."""

    request: Request
    new: int
    past: int


def works(replica: Replica, call: CallRecord) -> list[Work]:
    """Return who computes what in a step, prefill chunks first, decodes in running order.

    Only right inside a recorder and with fast-forward off.
    """
    tick = replica.cohort.tick
    chunked = {request for request, _, _ in call.chunks}
    found = [Work(request, new, past) for request, new, past in call.chunks]
    if call.decoding:
        found += [
            Work(request, 1, request.base + tick)
            for request in call.running
            if request.state == DECODE and request not in chunked
        ]
    return found


def blocks_in_use(replica: Replica, call: CallRecord) -> int:
    """Count the KV blocks of everybody who holds some, each shared block once."""
    size = replica.config.block_tokens
    tick = replica.cohort.tick + call.decoding
    extents: dict[int, int] = {}
    private = 0

    def held_here(holder: Any) -> None:
        for piece, _, hi in holder.held or ():
            part = piece
            while part is not None and part.lo < hi:
                if part.refs > 0:  # the rest of a split may have been overwritten since
                    extents[id(part)] = part.hi - part.lo
                part = part.rest

    for request in call.running:
        assert request.state != WAITING
        computed = request.base + tick if request.state == DECODE else request.computed
        private += -(-computed // size) - request.held_blocks
        held_here(request)
    keeper = replica.draft.keeper
    if keeper is not None:  # on their way in, waiting with what has come, on their way out
        holders = [(each.request, each.request.computed // size) for each in keeper.loads]
        holders = [pair for pair in holders if pair[0] not in replica.running_set]
        holders += [(each, each.fetched_blocks) for each in replica.line.requests()]
        holders += [(keep, keep.blocks) for keep in keeper.writer.keeps]
        for holder, blocks in holders:
            private += blocks - holder.held_blocks
            held_here(holder)
    return private + sum(extents.values())
