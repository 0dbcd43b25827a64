"""What a router sees of the fleet: loads as they were some time ago."""

from __future__ import annotations

from collections import deque
from typing import Final

from llmsim.serving.clock import Clock

CLOSED: Final = 2**40
"""Load that a closed replica seems to have on top of its own [requests]."""

_PLACES: Final = 2**18
"""More replicas than a fleet has: load and index share one integer."""

_NOBODY: Final = 2**62 - 1
"""In place of both where there are no more replicas."""


class Standing:
    """Who is less loaded of some replicas: of one, or of those that lead in two other standings.

    Parameters
    ----------
    key : int
        The leader's load, and its index, in one number: the lower of two leads.

    Attributes
    ----------
    pair : Standing
        That of the leaders of this and of `beside`; this one itself at the top.
    beside : Standing
        The other of the pair; this one itself at the top.
    """

    __slots__ = ("beside", "key", "pair")

    def __init__(self, key: int) -> None:
        self.key = key
        self.pair: Standing = self
        self.beside: Standing = self


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

    __slots__ = ("_age_ns", "_clock", "_own", "_reports", "_standings", "_top", "replicas")

    def __init__(
        self, clock: Clock, replicas: int, age_ns: int, count_own_sends: bool = False
    ) -> None:
        self._clock = clock
        self._own = count_own_sends
        self._age_ns = age_ns
        self._reports: deque[tuple[int, int, int]] = deque()
        self._standings = [Standing(replica) for replica in range(replicas)]
        # pairs of them, pairs of pairs ... are there from when somebody first asks for the least
        self._top: Standing | None = None
        self.replicas = replicas

    def change(self, replica: int, delta: int, now_ns: int) -> None:
        """Note that a replica's outstanding requests changed by `delta` at `now_ns`."""
        if self._age_ns and not (self._own and delta > 0):
            self._reports.append((now_ns + self._age_ns, replica, delta))
        else:
            self._add(replica, delta)

    def close(self, replica: int) -> None:
        """Let a replica look too busy for any router: it takes no work."""
        self._add(replica, CLOSED)

    def open(self, replica: int) -> None:
        """Let a replica look as busy as it is."""
        self._add(replica, -CLOSED)

    def outstanding(self, replica: int) -> int:
        """Return the visible load of a replica [requests]."""
        if self._reports:
            self._catch_up()
        return self._standings[replica].key // _PLACES

    def least_outstanding(self) -> int:
        """Return the replica with the least visible load; the lowest of equals."""
        if self._reports:
            self._catch_up()
        top = self._top
        if top is None:
            top = self._top = self._paired()
        return top.key % _PLACES

    def _catch_up(self) -> None:
        now = self._clock.now
        reports = self._reports
        while reports and reports[0][0] <= now:
            _, replica, delta = reports.popleft()
            self._add(replica, delta)

    def _add(self, replica: int, delta: int) -> None:
        """Let a replica's visible load change."""
        standing = self._standings[replica]
        key = standing.key + delta * _PLACES
        standing.key = key
        pair = standing.pair
        while pair is not standing:
            other = standing.beside.key
            if other < key:
                key = other
            if pair.key == key:
                return  # who led here still does, as loaded as before
            pair.key = key
            standing = pair
            pair = standing.pair

    def _paired(self) -> Standing:
        """Compare all once; from then on a change compares those that it can have changed."""
        standings = list(self._standings)
        while len(standings) > 1:
            if len(standings) % 2:
                standings.append(Standing(_NOBODY))
            standings = [_pair(*standings[at : at + 2]) for at in range(0, len(standings), 2)]
        return standings[0]


def _pair(one: Standing, other: Standing) -> Standing:
    """Return the standing of the leaders of two others."""
    pair = Standing(min(one.key, other.key))
    one.pair = other.pair = pair
    one.beside, other.beside = other, one
    return pair


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
