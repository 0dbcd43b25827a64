"""Events that are decided when they are scheduled, and can be moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Wake:
    """An event of the engine: stands in the clock's queue at most once, and can be moved there.

    A SimPy event is used up when it fires and cannot be cancelled; a wake is one object for all
    calls of a replica, and a call that comes earlier than planned is this wake, moved.

    Parameters
    ----------
    callback : callable
        Called with this wake when it fires.

    Attributes
    ----------
    time_ns : int [ns]
        When it is due; of the last time, once it has fired.
    priority : int
        The lower goes first at one instant.
    rank, ranked : int
        Priority and order of scheduling in one number, and the priority's part of it.
    place : int
        Index in the clock's queue, -1 outside it.
    """

    __slots__ = ("callback", "place", "priority", "rank", "ranked", "time_ns")

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback
        self.time_ns = 0
        self.priority = 0
        self.ranked = 0
        self.rank = 0
        self.place = -1
