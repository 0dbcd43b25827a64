"""The clock: integer nanoseconds; the engine's own events and SimPy's in one order.

The engine's events are `Wake` objects. Who of them is next is found as in a tournament: in heats of
two, the winners of which meet again. Who is moved meets one opponent per round, and what holds the
heats are native objects, so that it costs a small part of SimPy's heap of tuples, which cannot move
what it holds. SimPy's processes and timeouts keep their own queue; the loop here takes from both
what comes first by SimPy's order: (time, priority, order of scheduling).
"""

from __future__ import annotations

from heapq import heappop
from typing import Any, Final, cast

import simpy

from llmsim.core.errors import InvariantError
from llmsim.serving.wake import FOREVER, NOBODY, Heat, Wake

__all__ = ["FOREVER", "Clock"]

ARRIVAL_PRIORITY: Final = 0
"""Arrivals and client events come before any replica's call at the same instant."""

CALL_PRIORITY: Final = 16
"""Of the first replica's calls."""

LAST_PRIORITY: Final = 2**17
"""Behind the calls of all replicas; no more, so that it fits one word with the order."""

_ORDERS: Final = 2**44
"""More events than a run schedules: priority and order of scheduling share one integer."""


class Orders:
    """Numbers for events in the order in which they are scheduled, SimPy's among them.

    Parameters
    ----------
    number : int
        The next one.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Orders:
        return self

    def __next__(self) -> object:  # what is compiled returns no bare integer here
        number = self.number
        self.number = number + 1
        return number


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
        self._free: list[Heat] = []  # heats that are nobody's, each for one wake
        self._top = Heat(NOBODY)
        self._heats = 1  # for one wake each
        self._free.append(self._top)
        # its heat is still the one that it won; it may be scheduled again before it is cleared
        self._fired = NOBODY
        # SimPy has no public way to its queue; the tests hold these two names to every release
        self._queue: list[Any] = self.env._queue
        self._orders = Orders(next(self.env._eid))
        self.env._eid = cast(Any, self._orders)

    def at(self, wake: Wake, priority: int, time_ns: int) -> None:
        """Schedule a wake at `time_ns` [ns], or move it there; low priorities go first."""
        if wake.priority != priority:
            wake.priority = priority
            wake.ranked = priority * _ORDERS
        orders = self._orders
        number = orders.number
        orders.number = number + 1
        wake.rank = wake.ranked + number
        wake.time_ns = time_ns
        wake.due = True
        heat = wake.heat
        if heat is None:
            heat = self._enter(wake)
        elif wake is self._fired:
            self._fired = NOBODY
        heat.time_ns = time_ns
        _decide(heat, wake)

    def next_ns(self) -> int:
        """Return when the next event is due [ns]; `FOREVER` if there is none."""
        heat = self._fired.heat
        if heat is None:
            due = self._top.time_ns
        else:  # it has won all its heats; next is who is first of those it met
            due = FOREVER
            pair = heat.pair
            while pair is not heat:
                if heat.beside.time_ns < due:
                    due = heat.beside.time_ns
                heat = pair
                pair = heat.pair
        if self._queue:
            other: int = self._queue[0][0]
            due = min(due, other)
        return due

    def idle_until(self, time_ns: int) -> bool:
        """Whether nothing is due up to `time_ns` [ns] but the wake that has just fired."""
        if self._queue or time_ns >= FOREVER:
            return self.next_ns() > time_ns
        heat = self._fired.heat
        if heat is None:
            return self._top.time_ns > time_ns
        pair = heat.pair
        while pair is not heat:
            if heat.beside.time_ns <= time_ns:
                return False
            heat = pair
            pair = heat.pair
        return True

    def due(self) -> int:
        """Return how many of the engine's events are due, sooner or later."""
        return self._heats - len(self._free) - (self._fired is not NOBODY)

    def jump(self, time_ns: int) -> None:
        """Let it be `time_ns` [ns] at once; nothing may be due before."""
        self.now = time_ns
        self.env._now = time_ns

    def restart(self, time_ns: int) -> None:
        """Let it be `time_ns` [ns], and let nothing of the engine be due; SimPy's queue stays."""
        while self._top.wake is not NOBODY:
            self._leave(self._top.wake)
        self._fired = NOBODY
        self.jump(time_ns)

    def fire(self) -> None:
        """Handle the next of the engine's events, of which there are some, and none of SimPy's."""
        if self._fired is not NOBODY:
            self._leave(self._fired)
        wake = self._top.wake
        wake.due = False
        self._fired = wake
        self.jump(wake.time_ns)
        wake.fire()
        if self._fired is wake:
            self._leave(wake)

    def run(self, until: simpy.Event | None = None) -> None:
        """Handle event after event until `until` has been, or until there are none left.

        Raises
        ------
        Exception
            Whatever a failed SimPy event carries that nobody has defused.
        """
        queue = self._queue
        if self._fired is not NOBODY:
            self._leave(self._fired)  # the run before was cut short
        while True:
            wake = self._top.wake
            if queue and self._simpy_first(wake):
                entry = heappop(queue)
                self._set(entry[0])
                if self._handle(entry[3], until):
                    return
            elif wake is not NOBODY:
                wake.due = False
                self._fired = wake
                if wake.time_ns != self.now:  # as `_set`, without a call
                    self.now = wake.time_ns
                    self.env._now = wake.time_ns
                wake.fire()
                if self._fired is wake:
                    self._leave(wake)
            else:
                return

    def _set(self, now: int) -> None:
        self.now = now
        self.env._now = now

    def _simpy_first(self, wake: Wake) -> bool:
        """Whether an event in SimPy's queue, which is not empty, comes before a wake."""
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

    # --- heats ------------------------------------------------------------------------------

    def _enter(self, wake: Wake) -> Heat:
        """Give a wake a heat of its own."""
        if not self._free:
            self._grow()
        heat = self._free.pop()
        heat.wake = wake
        wake.heat = heat
        return heat

    def _leave(self, wake: Wake) -> None:
        """Take back the heat of a wake that is not due any more."""
        heat = wake.heat
        if heat is None:
            raise InvariantError("a wake without a heat was due")
        if wake is self._fired:
            self._fired = NOBODY
        wake.due = False
        wake.heat = None
        heat.wake = NOBODY
        heat.time_ns = FOREVER
        self._free.append(heat)
        _decide(heat, NOBODY)

    def _grow(self) -> None:
        """Let there be twice as many heats: those so far, and as many that are nobody's."""
        round_ = [Heat(NOBODY) for _ in range(self._heats)]
        self._free += reversed(round_)
        self._heats *= 2
        while len(round_) > 1:
            round_ = [_pair(round_[at], round_[at + 1]) for at in range(0, len(round_), 2)]
        self._top = _pair(self._top, round_[0])


def _pair(one: Heat, other: Heat) -> Heat:
    """Return the heat in which the winners of two meet."""
    first = other if _before(other, one) else one
    pair = Heat(first.wake)
    pair.time_ns = first.time_ns
    one.pair = other.pair = pair
    one.beside, other.beside = other, one
    return pair


def _before(one: Heat, other: Heat) -> bool:
    if one.time_ns != other.time_ns:
        return one.time_ns < other.time_ns
    return one.wake.rank < other.wake.rank


def _decide(heat: Heat, moved: Wake) -> None:
    """Find the winners of all heats above one whose wake was moved, came or went."""
    first = moved
    time_ns = heat.time_ns
    pair = heat.pair
    while pair is not heat:
        other = heat.beside
        if other.time_ns < time_ns or (
            other.time_ns == time_ns and other.wake.rank < first.rank  # as `_before`
        ):
            first = other.wake
            time_ns = other.time_ns
        if pair.wake is first and first is not moved:
            return  # who won here still does, as early as before
        pair.wake = first
        pair.time_ns = time_ns
        heat = pair
        pair = heat.pair
