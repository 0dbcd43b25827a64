"""The clock: SimPy with integer nanoseconds, its queue served by a compiled loop.

Everything that happens goes through one SimPy environment, so that processes and timeouts of
SimPy's own work beside the engine. The engine's calls are `Wake` events, which the loop here
schedules and fires without SimPy's interpreted `schedule` and `step`; order and ties are SimPy's:
(time, priority, order of scheduling).
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any

import simpy

from llmsim.serving.wake import Wake

ARRIVAL_PRIORITY = 0
"""Arrivals and client events come before any replica's call at the same instant."""

CALL_PRIORITY = 16
"""Of the first replica's calls."""

FOREVER = 2**62
"""A time that never comes [ns]."""


class Clock:
    """A SimPy environment, and the loop that runs it.

    Parameters
    ----------
    env : simpy.Environment or None
        None for a new one that starts at 0.

    Attributes
    ----------
    now : int [ns]
        The time of the event that is being handled.
    """

    def __init__(self, env: simpy.Environment | None = None) -> None:
        self.env = simpy.Environment(0) if env is None else env
        self.now = int(self.env.now)
        # SimPy has no public way to its queue; the tests hold these two names to every release
        self._queue: list[Any] = self.env._queue
        self._order: Iterator[int] = self.env._eid

    def at(self, wake: Wake, priority: int, time_ns: int) -> None:
        """Schedule a wake at `time_ns` [ns]; the lower priority goes first among equals."""
        heappush(self._queue, (time_ns, priority, next(self._order), wake))

    def next_ns(self) -> int:
        """Return when the next event is due [ns]; `FOREVER` if there is none."""
        queue = self._queue
        if not queue:
            return FOREVER
        due: int = queue[0][0]
        return due

    def run(self, until: simpy.Event | None = None) -> None:
        """Handle event after event until `until` has been, or until there are none left.

        Raises
        ------
        Exception
            Whatever a failed SimPy event carries that nobody has defused.
        """
        queue = self._queue
        env = self.env
        while queue:
            entry = heappop(queue)
            now: int = entry[0]
            if now != self.now:
                self.now = now
                env._now = now
            event = entry[3]
            if type(event) is Wake:
                event.callback(event)
                continue
            callbacks, event.callbacks = event.callbacks, None
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value
            if event is until:
                return
