"""What a router sees of the fleet: loads as they were some time ago."""

from __future__ import annotations

from collections import deque
from typing import Final

from llmsim.serving.clock import Clock

CLOSED: Final = 2**40
"""Load that a closed replica seems to have on top of its own [requests]."""


class LoadBoard:
    """Outstanding requests per replica, as visible to a router after a delay.

    A report is one entry in a queue, applied when it is old enough and somebody looks: nothing is
    scraped, and idle time costs nothing.

    Parameters
    ----------
    clock : Clock
    replicas : int
    age_ns : int [ns]
        How long a change takes to become visible; 0 for at once.
    count_own_sends : bool
        What is sent is visible at once, only ends take time: the router remembers its own sends.
    """

    __slots__ = ("_age_ns", "_clock", "_loads", "_own", "_reports", "replicas")

    def __init__(
        self, clock: Clock, replicas: int, age_ns: int, count_own_sends: bool = False
    ) -> None:
        self._clock = clock
        self._own = count_own_sends
        self._age_ns = age_ns
        self._loads = [0] * replicas
        self._reports: deque[tuple[int, int, int]] = deque()
        self.replicas = replicas

    def change(self, replica: int, delta: int, now_ns: int) -> None:
        """Note that a replica's outstanding requests changed by `delta` at `now_ns`."""
        if self._age_ns and not (self._own and delta > 0):
            self._reports.append((now_ns + self._age_ns, replica, delta))
        else:
            self._loads[replica] += delta

    def close(self, replica: int) -> None:
        """Let a replica look too busy for any router: it takes no work."""
        self._loads[replica] += CLOSED

    def open(self, replica: int) -> None:
        """Let a replica look as busy as it is."""
        self._loads[replica] -= CLOSED

    def outstanding(self, replica: int) -> int:
        """Return the visible load of a replica [requests]."""
        if self._reports:
            self._catch_up()
        return self._loads[replica]

    def least_outstanding(self) -> int:
        """Return the replica with the least visible load; the lowest of equals."""
        if self._reports:
            self._catch_up()
        loads = self._loads
        best = 0
        least = loads[0]
        for replica, load in enumerate(loads):
            if load < least:
                least = load
                best = replica
        return best

    def _catch_up(self) -> None:
        now = self._clock.now
        reports = self._reports
        loads = self._loads
        while reports and reports[0][0] <= now:
            _, replica, delta = reports.popleft()
            loads[replica] += delta


class EchoBoard(LoadBoard):
    """A board whose loads another shows too, at an age of its own.

    Parameters
    ----------
    clock : Clock
    replicas : int
    age_ns : int [ns]
    count_own_sends : bool
    other : LoadBoard
        Of the same replicas.
    """

    __slots__ = ("_other",)

    def __init__(
        self, clock: Clock, replicas: int, age_ns: int, count_own_sends: bool, other: LoadBoard
    ) -> None:
        super().__init__(clock, replicas, age_ns, count_own_sends)
        self._other = other

    def change(self, replica: int, delta: int, now_ns: int) -> None:
        """Note it on both boards."""
        super().change(replica, delta, now_ns)
        self._other.change(replica, delta, now_ns)
