"""What replicas report of themselves, as it was some time ago."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmsim.policies.views import RequestView


class ReplicaReport:
    """One replica as it was when it reported.

    Attributes
    ----------
    replica : int
        Index within the fleet.
    pool : int
        Index of its pool.
    time_ns : int [ns]
        Since when it is true.
    role : str
        ``mixed``, ``prefill`` or ``decode``; where it is being changed, what it will be.
    state : str
        ``up``, ``draining``, ``switching`` (to another role), ``booting``, ``off`` or ``failed``.
    running, waiting : int [requests]
        That hold KV, and that wait in line.
    waiting_tokens : int [tokens]
        That those in line have to compute before their next output token.
    waiting_blocks, head_blocks : int [blocks]
        KV blocks that all in line need for that, and that the first of them needs.
    kv_blocks, kv_used : int [blocks]
        What there is, and what is in use.
    """

    __slots__ = (
        "head_blocks",
        "kv_blocks",
        "kv_used",
        "pool",
        "replica",
        "role",
        "running",
        "state",
        "time_ns",
        "waiting",
        "waiting_blocks",
        "waiting_tokens",
    )

    def __init__(
        self,
        replica: int,
        pool: int,
        time_ns: int,
        role: str,
        state: str,
        running: int,
        waiting: int,
        waiting_tokens: int,
        waiting_blocks: int,
        head_blocks: int,
        kv_blocks: int,
        kv_used: int,
    ) -> None:
        self.replica = replica
        self.pool = pool
        self.time_ns = time_ns
        self.role = role
        self.state = state
        self.running = running
        self.waiting = waiting
        self.waiting_tokens = waiting_tokens
        self.waiting_blocks = waiting_blocks
        self.head_blocks = head_blocks
        self.kv_blocks = kv_blocks
        self.kv_used = kv_used

    @property
    def kv_free(self) -> int:
        """KV blocks that nobody uses [blocks]."""
        return self.kv_blocks - self.kv_used


class RunningReport:
    """One decoding request as its replica knows it.

    Attributes
    ----------
    request : RequestView
    tokens : int [tokens]
        Prompt and output so far.
    generated : int [tokens]
        Output so far.
    kv_blocks : int [blocks]
    """

    __slots__ = ("generated", "kv_blocks", "request", "tokens")

    def __init__(self, request: RequestView, tokens: int, generated: int, kv_blocks: int) -> None:
        self.request = request
        self.tokens = tokens
        self.generated = generated
        self.kv_blocks = kv_blocks


class FleetReport(Protocol):
    """What a controller sees when it is called.

    Attributes
    ----------
    now_ns : int [ns]
        When it is called; the reports are older by the age of its view.
    replicas : sequence of ReplicaReport
        All of them, by index.
    """

    now_ns: int
    replicas: Sequence[ReplicaReport]

    def decoding(self, replica: int) -> Sequence[RunningReport]:
        """Return the decoding requests of a replica, in running order, as reported."""
        ...
