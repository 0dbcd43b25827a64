"""What replicas report of themselves, as it was some time ago."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmsim.policies.views import RequestView


class ReplicaReport:
    """One replica as it was when it reported, or one attention rank of a replica that has several.

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
    first_rank : int
        Index of the first attention rank of the same replica; its own where there is one.
    """

    __slots__ = (
        "first_rank",
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
        first_rank: int = -1,
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
        self.first_rank = first_rank if first_rank >= 0 else replica

    @property
    def kv_free(self) -> int:
        """KV blocks that nobody uses [blocks]."""
        return self.kv_blocks - self.kv_used


def by_replica(reports: Sequence[ReplicaReport]) -> list[ReplicaReport]:
    """Add up what the attention ranks of each replica report, under the index of the first.

    Roles and states are those of the whole replica; so is what a controller can have done to it.

    Parameters
    ----------
    reports : sequence of ReplicaReport
        Of all ranks, by index.
    """
    found: dict[int, ReplicaReport] = {}
    for one in reports:
        whole = found.get(one.first_rank)
        if whole is None:
            found[one.first_rank] = one
            continue
        found[one.first_rank] = ReplicaReport(
            whole.replica,
            whole.pool,
            whole.time_ns,
            whole.role,
            whole.state,
            whole.running + one.running,
            whole.waiting + one.waiting,
            whole.waiting_tokens + one.waiting_tokens,
            whole.waiting_blocks + one.waiting_blocks,
            whole.head_blocks or one.head_blocks,
            whole.kv_blocks + one.kv_blocks,
            whole.kv_used + one.kv_used,
        )
    return list(found.values())


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
        All of them, by index; `by_replica` adds up what attention ranks of one replica report.
    """

    now_ns: int
    replicas: Sequence[ReplicaReport]

    def decoding(self, replica: int) -> Sequence[RunningReport]:
        """Return the decoding requests of a replica, in running order, as reported."""
        ...
