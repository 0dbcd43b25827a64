"""The clock: SimPy with integer nanoseconds and events that carry their own meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy

ARRIVAL_PRIORITY = 0
"""Arrivals and client events come before any replica's call at the same instant."""

CALL_PRIORITY = 16
"""Calls at one instant go in order of replica index."""


class Wake(simpy.Event):
    """An event that is already decided when it is scheduled: half the cost of a Timeout.

    SimPy cannot cancel events; a call that has been superseded carries an old version and is
    ignored when its time comes.

    Parameters
    ----------
    callback : callable
        Called with this event.
    version : int
    """

    _ok = True
    _value: Any = None

    def __init__(self, callback: Callable[[Any], None], version: int = 0) -> None:
        self.callbacks = [callback]
        self.version = version
