"""What a simulation hands over when it ends; everything in `summary` is made from this."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmsim.results.changes import FleetChange
from llmsim.results.histogram import LogHistogram
from llmsim.results.stations import StationFacts
from llmsim.results.steplog import StepLog
from llmsim.results.stops import StopFacts
from llmsim.results.timeline import TimelineData
from llmsim.results.tokens import TokenTimes


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One pool of identical replicas, as it was simulated.

    Parameters
    ----------
    name : str
    replicas : int
    gpu : str
        GPU card name.
    gpus_per_replica : int
        0 where they run on the GPUs, and in the KV blocks, of another pool.
    kv_blocks : int [blocks]
        KV blocks per replica, or per attention rank of one.
    block_tokens : int [tokens]
        Tokens per KV block.
    usd_per_gpu_hour : float [USD/h]
        NaN when no price is known.
    price_source : str
        Where the price comes from, with its date.
    idle_w : float [W]
        Drawn by one replica's (or rank's) GPUs all the time, model loaded; NaN when not known.
    ranks : int
        Attention ranks of a replica; each counts as one of `RunFacts.replicas`.
    model : str
        Model that it serves; empty where the whole fleet serves one.
    """

    name: str
    replicas: int
    gpu: str
    gpus_per_replica: int
    kv_blocks: int
    block_tokens: int
    usd_per_gpu_hour: float
    price_source: str
    idle_w: float = math.nan
    ranks: int = 1
    model: str = ""


@dataclass(frozen=True, slots=True)
class PinFacts:
    """What became of the KV that a replica pinned for programs between two of their calls.

    Parameters
    ----------
    pins : int
        How often the KV of a call was pinned when it ended.
    kept : int
        Pins that lasted until the program's next call ran.
    expired : int
        Pins whose time was up before that call came.
    gave_way : int
        Pins released before their time, because memory was short.
    left : int
        Pins whose next call left the line or went elsewhere, and those of the end of the run.
    block_ns : int [blocks ns]
        Blocks pinned, times how long.
    """

    pins: int
    kept: int
    expired: int
    gave_way: int
    left: int
    block_ns: int


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """One replica's part in a run.

    Parameters
    ----------
    pool : str
    index : int
        Index within the fleet.
    timeline : TimelineData
    steps : int
        Steps executed.
    events : int
        Decision points at which the scheduler ran.
    preemptions : int
    peak_kv_blocks : int [blocks]
    lookup_tokens, hit_tokens : int [tokens]
        Prompt tokens looked up in the prefix cache at first admission, and found.
    evicted_blocks : int [blocks]
        Cached blocks that were overwritten.
    billed_ns : int [ns]
        For how long it is paid for; -1 for the whole run.
    pins : PinFacts or None
        None where nothing is ever pinned.
    """

    pool: str
    index: int
    timeline: TimelineData
    steps: int
    events: int
    preemptions: int
    peak_kv_blocks: int
    lookup_tokens: int
    hit_tokens: int
    evicted_blocks: int
    billed_ns: int = -1
    pins: PinFacts | None = None


@dataclass(frozen=True, slots=True)
class TierFacts:
    """What one store below the GPUs did in a run.

    Parameters
    ----------
    name : str
        Of its tier.
    pool : str
        Empty where the whole fleet shares it.
    replica : int
        Whose it is; -1 where it is shared.
    capacity_tokens, kept_tokens : int [tokens]
        Whose KV fits, and is there at the end.
    loaded_tokens : int [tokens]
        Read for prompts.
    read_bytes, written_bytes : int [bytes]
        What went out of it, to GPUs and to other tiers, and into it.
    evicted_tokens, refused_tokens : int [tokens]
        Forgotten for others, and turned away because everything was in use.
    """

    name: str
    pool: str
    replica: int
    capacity_tokens: int
    kept_tokens: int
    loaded_tokens: int
    read_bytes: int
    written_bytes: int
    evicted_tokens: int
    refused_tokens: int


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What went over one way between a replica's GPUs and a store.

    Parameters
    ----------
    name : str
        ``to host``, ``from host``, or ``to`` and ``from`` with the name of a tier: the replica's
        own port on the way to it.
    pool : str
    replica : int
    bytes_per_s : float [bytes/s]
        What it can carry.
    moved_bytes : int [bytes]
        What it has carried.
    """

    name: str
    pool: str
    replica: int
    bytes_per_s: float
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A whole run.

    Parameters
    ----------
    digest : str
        Hash over all decisions (request, replica, tick, kind): equal runs have equal digests.
    end_ns : int [ns]
        When the last request ended.
    requests : int
        Requests that arrived.
    events : int
        Events the clock processed.
    itl : LogHistogram
        Gaps between output tokens over the whole fleet, one count per token.
    pools : tuple of PoolFacts
    replicas : tuple of ReplicaFacts
    interrupted : bool
        The run was stopped before its end (Ctrl-C); everything above is valid up to `end_ns`.
    warnings : tuple of str
        What the reader must know, such as skipped rows or truncated outputs.
    tiers : tuple of TierFacts
        Stores below the GPUs.
    links : tuple of LinkFacts
        Ways to them.
    changes : tuple of FleetChange
        What was done about the fleet while it ran.
    tokens : TokenTimes or None
        Token times as computed, where they were asked for.
    stations : tuple of StationFacts
        Of pipelines; empty where there are none.
    stops : tuple of StopFacts
        Of replicas whose steps can be stopped inside.
    steps : StepLog or None
        Every step, where they were asked for.
    refusals, holds : int
        How often a replica refused a request, and one was held because nobody took it; -1 where
        no replica may refuse.
    """

    digest: str
    end_ns: int
    requests: int
    events: int
    itl: LogHistogram
    pools: tuple[PoolFacts, ...]
    replicas: tuple[ReplicaFacts, ...]
    interrupted: bool
    warnings: tuple[str, ...]
    tiers: tuple[TierFacts, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    changes: tuple[FleetChange, ...] = ()
    tokens: TokenTimes | None = None
    stops: tuple[StopFacts, ...] = ()
    stations: tuple[StationFacts, ...] = ()
    steps: StepLog | None = None
    refusals: int = -1
    holds: int = -1
