"""Events that are decided when they are scheduled, and can be moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica

FOREVER: Final = 2**62 - 1
"""A time that never comes [ns]; the largest integer that compiled code keeps in a register."""


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
    due : bool
        Whether it stands in the clock's queue.
    heat : Heat or None
        Its own heat there; None where it has none.
    """

    __slots__ = ("callback", "due", "heat", "priority", "rank", "ranked", "time_ns")

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback
        self.time_ns = 0
        self.priority = 0
        self.ranked = 0
        self.rank = 0
        self.due = False
        self.heat: Heat | None = None

    def fire(self) -> None:
        """Do what it was scheduled for."""
        self.callback(self)


class Alarm(Wake):
    """The wake of a replica, whose scheduler it calls without going through Python.

    Parameters
    ----------
    replica : Replica
    """

    __slots__ = ("_replica",)

    def __init__(self, replica: Replica) -> None:
        super().__init__(replica.wake)
        self._replica = replica

    def fire(self) -> None:
        """Call the replica's scheduler."""
        self._replica.wake(self)


class Heat:
    """Which of some wakes comes first: of one, or of the winners of two other heats.

    Parameters
    ----------
    wake : Wake
        The winner.

    Attributes
    ----------
    time_ns : int [ns]
        When the winner is due.
    pair : Heat
        That of the winners of this and of `beside`; this one itself at the top.
    beside : Heat
        The other heat of the pair; this one itself at the top.
    """

    __slots__ = ("beside", "pair", "time_ns", "wake")

    def __init__(self, wake: Wake) -> None:
        self.wake = wake
        self.time_ns = FOREVER
        self.pair: Heat = self
        self.beside: Heat = self


def _nobody_fires(_: Wake) -> None:
    raise AssertionError("nobody's wake has fired")


NOBODY: Final = Wake(_nobody_fires)
"""Wins where nothing is due."""

NOBODY.time_ns = NOBODY.rank = FOREVER
