"""A run that comes and goes for ever fails, instead of filling memory until somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worlds import World

    from llmsim.serving.record import CallRecord
    from llmsim.serving.replica import Replica

    Recorder = Callable[[Replica, CallRecord], None]

CALLS_PER_TOKEN = 20
"""Scheduler calls for every token of a world that are surely too many: worlds drawn have about one.

A call computes a token or more, unless it takes KV away; then these are computed or copied again.
"""


def guard(world: World, recorder: Recorder | None) -> Recorder:
    """Return a recorder that hands on to another one, until there were far too many calls."""
    tokens = sum(job.prompt + job.output for job in world.jobs)
    most = 1000 + CALLS_PER_TOKEN * tokens
    calls = 0

    def look(replica: Replica, call: CallRecord) -> None:
        nonlocal calls
        calls += 1
        assert calls <= most, f"replica {replica.index} gets nowhere at {call.now_ns} ns"
        if recorder is not None:
            recorder(replica, call)

    return look
