"""The clock: integer nanoseconds; the engine's own events and SimPy's in one order.

The engine's events are `Wake` objects in a binary heap of native objects, which costs a tenth of
SimPy's heap of tuples and, unlike it, can move what it holds. SimPy's processes and timeouts keep
their own queue; the loop here takes from both what comes first by SimPy's order: (time, priority,
order of scheduling).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from typing import Any, Final

import simpy

from llmsim.serving.wake import Wake

ARRIVAL_PRIORITY: Final = 0
"""Arrivals and client events come before any replica's call at the same instant."""

CALL_PRIORITY: Final = 16
"""Of the first replica's calls."""

LAST_PRIORITY: Final = 2**17
"""Behind the calls of all replicas; no more, so that it fits one word with the order."""

FOREVER: Final = 2**62 - 1
"""A time that never comes [ns]; the largest integer that compiled code keeps in a register."""

_ORDERS: Final = 2**44
"""More events than a run schedules: priority and order of scheduling share one integer."""


class Clock:
    """A SimPy environment, the engine's queue, and the loop that serves both.

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
        self._wakes: list[Wake] = []  # a heap by (time, rank)
        self._hole = False  # its first has fired; who is scheduled next takes its place
        # SimPy has no public way to its queue; the tests hold these two names to every release
        self._queue: list[Any] = self.env._queue
        self._next: Callable[[], int] = self.env._eid.__next__

    def at(self, wake: Wake, priority: int, time_ns: int) -> None:
        """Schedule a wake at `time_ns` [ns], or move it there; low priorities go first."""
        place = wake.place
        if self._hole and place >= 0:
            self._fill()  # while all that stand in the heap are in their places
            place = wake.place
        if wake.priority != priority:
            wake.priority = priority
            wake.ranked = priority * _ORDERS
        wake.time_ns = time_ns
        wake.rank = wake.ranked + self._next()
        if self._hole:
            self._hole = False
            self._sink(wake, 0)
            return
        if place < 0:
            place = len(self._wakes)
            self._wakes.append(wake)
            self._rise(wake, place)
        else:
            self._rise(wake, place)
            if wake.place == place:
                self._sink(wake, place)

    def next_ns(self) -> int:
        """Return when the next event is due [ns]; `FOREVER` if there is none."""
        wakes = self._wakes
        due = FOREVER
        if not self._hole:
            if wakes:
                due = wakes[0].time_ns
        elif len(wakes) > 1:
            due = wakes[1].time_ns
            if len(wakes) > 2 and wakes[2].time_ns < due:
                due = wakes[2].time_ns
        if self._queue:
            other: int = self._queue[0][0]
            due = min(due, other)
        return due

    def due(self) -> int:
        """Return how many of the engine's events are due, sooner or later."""
        return len(self._wakes) - self._hole

    def jump(self, time_ns: int) -> None:
        """Let it be `time_ns` [ns] at once; nothing may be due before."""
        self.now = time_ns
        self.env._now = time_ns

    def restart(self, time_ns: int) -> None:
        """Let it be `time_ns` [ns], and let nothing of the engine be due; SimPy's queue stays."""
        for wake in self._wakes:
            wake.place = -1
        self._wakes.clear()
        self._hole = False
        self.jump(time_ns)

    def fire(self) -> None:
        """Handle the next of the engine's events, of which there are some, and none of SimPy's."""
        if self._hole:
            self._fill()
        wake = self._wakes[0]
        wake.place = -1
        self._hole = True
        self.jump(wake.time_ns)
        wake.callback(wake)
        if self._hole:
            self._fill()

    def run(self, until: simpy.Event | None = None) -> None:
        """Handle event after event until `until` has been, or until there are none left.

        Raises
        ------
        Exception
            Whatever a failed SimPy event carries that nobody has defused.
        """
        wakes = self._wakes
        queue = self._queue
        if self._hole:
            self._fill()  # the run before was cut short
        while True:
            if queue and self._simpy_first():
                entry = heappop(queue)
                self._set(entry[0])
                if self._handle(entry[3], until):
                    return
            elif wakes:
                wake = wakes[0]
                wake.place = -1
                self._hole = True
                if wake.time_ns != self.now:  # as `_set`, without a call
                    self.now = wake.time_ns
                    self.env._now = wake.time_ns
                wake.callback(wake)
                if self._hole:
                    self._fill()
            else:
                return

    def _set(self, now: int) -> None:
        self.now = now
        self.env._now = now

    def _simpy_first(self) -> bool:
        """Whether the next event is in SimPy's queue, which is not empty."""
        if not self._wakes:
            return True
        wake = self._wakes[0]
        time, priority, order, _ = self._queue[0]
        due: int = time
        if due != wake.time_ns:
            return due < wake.time_ns
        rank: int = priority * _ORDERS + order
        return rank < wake.rank

    def _handle(self, event: Any, until: simpy.Event | None) -> bool:
        """Do for an event what SimPy's `step` does; return whether it is `until`."""
        callbacks, event.callbacks = event.callbacks, None
        for callback in callbacks:
            callback(event)
        if not event._ok and not hasattr(event, "_defused"):
            raise event._value
        return event is until

    # --- the heap ---------------------------------------------------------------------------

    def _fill(self) -> None:
        """Close the hole at the top: nobody who was scheduled since has taken it."""
        self._hole = False
        last = self._wakes.pop()
        if self._wakes:
            self._sink(last, 0)

    def _rise(self, wake: Wake, place: int) -> None:
        """Put a wake at `place` or above, pushing down those that come later."""
        wakes = self._wakes
        time_ns = wake.time_ns
        rank = wake.rank
        while place:
            above = (place - 1) >> 1
            other = wakes[above]
            if other.time_ns < time_ns or (other.time_ns == time_ns and other.rank < rank):
                break
            wakes[place] = other
            other.place = place
            place = above
        wakes[place] = wake
        wake.place = place

    def _sink(self, wake: Wake, place: int) -> None:
        """Put a wake at `place` or below, pulling up those that come earlier."""
        wakes = self._wakes
        time_ns = wake.time_ns
        rank = wake.rank
        size = len(wakes)
        below = 2 * place + 1
        while below < size:
            first = wakes[below]
            if below + 1 < size:
                other = wakes[below + 1]
                if other.time_ns < first.time_ns or (
                    other.time_ns == first.time_ns and other.rank < first.rank
                ):
                    first = other
                    below += 1
            if time_ns < first.time_ns or (time_ns == first.time_ns and rank < first.rank):
                break
            wakes[place] = first
            first.place = place
            place = below
            below = 2 * place + 1
        wakes[place] = wake
        wake.place = place
