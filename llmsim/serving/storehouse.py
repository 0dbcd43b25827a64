"""The tiers of a run below its GPUs: which stores there are, and the links to and from them.

A *store* is one place with one capacity: the DRAM of one replica's host, its disk, or a pool's
shared server. What goes to or from it passes its own read or write side, a replica's port where
the store is somewhere else, and the host link of the replica's GPUs; all are resources that
transfers share max-min fairly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsim.core.units import NS_PER_S
from llmsim.kvcache.store import Rank, TierStore
from llmsim.policies.tiering import LoadPolicy
from llmsim.results.facts import LinkFacts, TierFacts
from llmsim.serving.clock import Clock
from llmsim.serving.flows import Flows
from llmsim.serving.swap import SwapPlan


@dataclass(frozen=True, slots=True)
class TierPlan:
    """One tier below the GPU.

    Parameters
    ----------
    name : str
    scope : str
        Who has one of it: every ``replica``, the ``pool`` together, or the whole ``fleet``.
    chunks : int [chunks]
        Capacity.
    chunk_tokens : int [tokens]
        A multiple of the block; what is left of a text is not kept.
    bytes_per_token : float [bytes/token]
        In this tier's format, all of a replica's GPUs together.
    read_bytes_per_s, write_bytes_per_s : float [bytes/s]
        Of the store; infinite where the way there is all that counts.
    port_bytes_per_s : float [bytes/s]
        Of one replica's way to a store, each direction; infinite where there is none of its own.
    codec_bytes_per_s : float [bytes/s]
        Stored bytes that one transfer can encode or decode on its way; infinite for a plain copy.
    latency_s : float [s]
        Of a transfer, before its first message.
    message_s : float [s]
        Of one message, beside its bytes.
    messages_per_chunk : float [messages/chunk]
    messages : float [messages]
        Whatever the length.
    write : str
        ``through``: as soon as a prompt is computed, and the output when the request ends;
        ``finish``: all when it ends; ``evict``: what the tier above forgets.
    rank : callable or None
        Order of eviction; None for least recently used.
    spare_chunks : int [chunks]
        Kept free.
    """

    name: str
    scope: str
    chunks: int
    chunk_tokens: int
    bytes_per_token: float
    read_bytes_per_s: float = math.inf
    write_bytes_per_s: float = math.inf
    port_bytes_per_s: float = math.inf
    codec_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    message_s: float = 0.0
    messages_per_chunk: float = 1.0
    messages: float = 0.0
    write: str = "through"
    rank: Rank | None = None
    spare_chunks: int = 0

    def lead_ns(self, chunks: int) -> int:
        """Return what a transfer costs before its bytes [ns]."""
        count = self.messages + self.messages_per_chunk * chunks
        return round((self.latency_s + count * self.message_s) * NS_PER_S)


@dataclass(frozen=True, slots=True)
class KvPlan:
    """What a pool's replicas do with KV beyond their GPUs.

    Parameters
    ----------
    tiers : tuple of TierPlan
        From the nearest to the farthest.
    host_bytes_per_s : float [bytes/s]
        Between one replica's GPUs and their host, each direction.
    load : callable
        Returns a fresh policy.
    by_layer : bool
        Compute starts while KV comes, each layer waiting for its own; otherwise the request waits
        aside until all has come.
    joins_loads : bool
        A request whose prefix is being loaded for another waits for that; otherwise it is loaded
        twice.
    layers : tuple of int (stages,) [layers]
        Of each pipeline stage; of the model where there is one.
    swap : SwapPlan or None
        How victims of preemption are swapped; None where they are computed again.
    """

    tiers: tuple[TierPlan, ...]
    host_bytes_per_s: float
    load: Callable[[], LoadPolicy]
    by_layer: bool = False
    joins_loads: bool = True
    layers: tuple[int, ...] = (1,)
    swap: SwapPlan | None = None


class Tier:
    """One store, with its counts.

    Attributes
    ----------
    plan : TierPlan
    store : TierStore
    read, write : int
        Its resources among the flows; -1 for infinite ones.
    users : list
        Keepers of the replicas that use it.
    loaded_tokens : int [tokens]
        Read for prompts.
    read_bytes, written_bytes : float [bytes]
    refused_chunks : int [chunks]
        That found no room, everything being read or on its way.
    """

    def __init__(self, plan: TierPlan, pool: str, replica: int, read: int, write: int) -> None:
        self.plan = plan
        self.pool = pool
        self.replica = replica
        self.read = read
        self.write = write
        self.store = TierStore(plan.chunks, plan.chunk_tokens, plan.rank, plan.spare_chunks)
        self.loaded_tokens = 0
        self.read_bytes = 0.0
        self.written_bytes = 0.0
        self.refused_chunks = 0

    def facts(self) -> TierFacts:
        """Return what the results say of it."""
        store, plan = self.store, self.plan
        return TierFacts(
            name=plan.name,
            pool=self.pool,
            replica=self.replica,
            capacity_tokens=plan.chunks * plan.chunk_tokens,
            kept_tokens=(store.cached + store.held) * plan.chunk_tokens,
            loaded_tokens=self.loaded_tokens,
            read_bytes=round(self.read_bytes),
            written_bytes=round(self.written_bytes),
            evicted_tokens=store.evicted * plan.chunk_tokens,
            refused_tokens=self.refused_chunks * plan.chunk_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reach:
    """One replica's ways to its tiers.

    Parameters
    ----------
    tiers : tuple of Tier
        From the nearest to the farthest.
    out, into : tuple of tuple of int
        Resources from the GPUs to each tier, and back.
    down : tuple of tuple of int
        Resources from the tier above to each tier; of the first the same as `out`.
    to_host, from_host : tuple of int
        Resources between the GPUs and their host.
    """

    tiers: tuple[Tier, ...]
    out: tuple[tuple[int, ...], ...]
    into: tuple[tuple[int, ...], ...]
    down: tuple[tuple[int, ...], ...]
    to_host: tuple[int, ...]
    from_host: tuple[int, ...]


class Storehouse:
    """All stores of a run and the transfers between them.

    Parameters
    ----------
    clock : Clock
    pools : sequence of (str, KvPlan or None, int)
        Name, plan and replicas of each pool, or attention ranks; they are numbered through.

    Attributes
    ----------
    flows : Flows
    capacities : list of float [bytes/s]
        Of every resource.
    tiers : list of Tier
        Every store once.
    """

    def links(self) -> list[LinkFacts]:
        """Return what went over every way of a replica up to now."""
        return [
            LinkFacts(
                name,
                pool,
                replica,
                self.capacities[resource],
                round(self.flows.moved_bytes(resource)),
            )
            for name, pool, replica, resource in self._ways
        ]

    def __init__(self, clock: Clock, pools: Sequence[tuple[str, KvPlan | None, int]]) -> None:
        self.capacities: list[float] = []
        self.tiers: list[Tier] = []
        self._shared: dict[tuple[str, str], Tier] = {}
        self._ways: list[tuple[str, str, int, int]] = []  # name, pool, replica, resource
        self._reaches: list[Reach | None] = []
        for name, plan, replicas in pools:
            for _ in range(replicas):
                index = len(self._reaches)
                self._reaches.append(self._reach(name, plan, index) if plan is not None else None)
        self.flows = Flows(clock, self.capacities)

    def reach(self, replica: int) -> Reach | None:
        """Return a replica's ways to its tiers; None if it has none."""
        return self._reaches[replica]

    def _resource(self, bytes_per_s: float) -> int:
        if bytes_per_s == math.inf:
            return -1
        self.capacities.append(bytes_per_s)
        return len(self.capacities) - 1

    def _way(self, name: str, pool: str, replica: int, resource: int) -> None:
        if resource >= 0:
            self._ways.append((name, pool, replica, resource))

    def _tier(self, plan: TierPlan, pool: str, replica: int) -> Tier:
        if plan.scope == "replica":
            return self._new_tier(plan, pool, replica)
        key = (pool if plan.scope == "pool" else "", plan.name)
        if key not in self._shared:
            self._shared[key] = self._new_tier(plan, key[0], -1)
        return self._shared[key]

    def _new_tier(self, plan: TierPlan, pool: str, replica: int) -> Tier:
        read = self._resource(plan.read_bytes_per_s)
        made = Tier(plan, pool, replica, read, self._resource(plan.write_bytes_per_s))
        self.tiers.append(made)
        return made

    def _reach(self, pool: str, plan: KvPlan, replica: int) -> Reach:
        upward = self._resource(plan.host_bytes_per_s)
        downward = self._resource(plan.host_bytes_per_s)
        tiers, out, into, down = [], [], [], []
        self._way("to host", pool, replica, downward)
        self._way("from host", pool, replica, upward)
        above = -1
        for each in plan.tiers:
            tier = self._tier(each, pool, replica)
            sends = self._resource(each.port_bytes_per_s)
            receives = self._resource(each.port_bytes_per_s)
            self._way(f"to {each.name}", pool, replica, sends)
            self._way(f"from {each.name}", pool, replica, receives)
            tiers.append(tier)
            out.append(_finite(downward, sends, tier.write))
            into.append(_finite(tier.read, receives, upward))
            down.append(_finite(above, sends, tier.write) if len(tiers) > 1 else out[0])
            above = tier.read
        return Reach(
            tuple(tiers),
            tuple(out),
            tuple(into),
            tuple(down),
            _finite(downward),
            _finite(upward),
        )


def _finite(*resources: int) -> tuple[int, ...]:
    return tuple(resource for resource in resources if resource >= 0)
