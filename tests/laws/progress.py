"""A run that comes and goes for ever fails, instead of filling memory until somebody looks."""

from __future__ import annotations

from collections.abc import Callable

from worlds import World

from llmsim.serving.record import CallRecord
from llmsim.serving.replica import Replica

CALLS_PER_TOKEN = 20
"""Scheduler calls for every token of a world that are surely too many.

A call computes a token or more, unless it takes KV away; then these are computed or copied again.
"""


def guard(world: World) -> Callable[[Replica, CallRecord], None]:
    """Return a recorder that fails once a run has made far more calls than it has tokens."""
    tokens = sum(job.prompt + job.output for job in world.jobs)
    most = 1000 + CALLS_PER_TOKEN * tokens
    calls = 0

    def look(replica: Replica, call: CallRecord) -> None:
        nonlocal calls
        calls += 1
        assert calls <= most, f"replica {replica.index} gets nowhere at {call.now_ns} ns"

    return look
