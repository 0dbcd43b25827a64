"""What a recorder hears of a replica, call by call."""

from __future__ import annotations

from dataclasses import dataclass

from llmsim.serving.draft import Draft
from llmsim.serving.request import Request


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One scheduler call, for recorders that follow a replica step by step."""

    now_ns: int
    start_ns: int
    end_ns: int
    chunks: tuple[tuple[Request, int, int], ...]
    decoding: bool
    running: tuple[Request, ...]
    waiting: int
    free_blocks: int
    preempted: tuple[Request, ...]


def record_of(draft: Draft, now_ns: int, start_ns: int, end_ns: int) -> CallRecord:
    """Return what was planned in a call [ns], for a recorder."""
    return CallRecord(
        now_ns,
        start_ns,
        end_ns,
        tuple(draft.chunks),
        draft.decoding,
        tuple(draft.running_set),
        draft.line.count,
        draft.ledger.free,
        tuple(draft.preempted),
    )
