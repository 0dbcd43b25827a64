"""The clock: SimPy with integer nanoseconds and events that can be scheduled again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy
from simpy.events import EventPriority

ARRIVAL_PRIORITY = EventPriority(0)
"""Arrivals and client events come before any replica's call at the same instant."""

CALL_PRIORITY = EventPriority(16)
"""Of the first replica's calls."""


class Wake(simpy.Event):
    """An event that is decided when it is scheduled, and may be scheduled again and again.

    SimPy uses an event up: it takes the callbacks away when it fires. A wake that is `rearmed`
    by its own callback can stand in the queue any number of times, which saves an object per call
    and does for what SimPy cannot do, cancel: a call that was superseded finds out when it fires.

    Parameters
    ----------
    callback : callable
        Called with this event.
    """

    _ok = True
    _value: Any = None

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self._armed = [callback]
        self.callbacks = self._armed

    def rearm(self) -> None:
        """Make the event fire again for each further time it stands in the queue."""
        self.callbacks = self._armed


def call_priority(replica: int) -> EventPriority:
    """Return the priority of a replica's calls: at one instant they go in order of index."""
    return EventPriority(CALL_PRIORITY + replica)
