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

    __slots__ = ("_age_ns", "_clock", "_leaves", "_loads", "_own", "_reports", "_tree", "replicas")

    def __init__(
        self, clock: Clock, replicas: int, age_ns: int, count_own_sends: bool = False
    ) -> None:
        self._clock = clock
        self._own = count_own_sends
        self._age_ns = age_ns
        self._loads = [0] * replicas
        self._reports: deque[tuple[int, int, int]] = deque()
        # the less loaded of every pair of replicas, of every pair of pairs ... up to the first
        # entry, from when somebody first asks for it; -1 where there are no more replicas
        self._tree: list[int] = []
        self._leaves = 0
        self.replicas = replicas

    def change(self, replica: int, delta: int, now_ns: int) -> None:
        """Note that a replica's outstanding requests changed by `delta` at `now_ns`."""
        if self._age_ns and not (self._own and delta > 0):
            self._reports.append((now_ns + self._age_ns, replica, delta))
        elif self._tree:
            self._add(replica, delta)
        else:
            self._loads[replica] += delta

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
        return self._loads[replica]

    def least_outstanding(self) -> int:
        """Return the replica with the least visible load; the lowest of equals."""
        if self._reports:
            self._catch_up()
        if not self._tree:
            self._plant()
        return self._tree[1]

    def _catch_up(self) -> None:
        now = self._clock.now
        reports = self._reports
        while reports and reports[0][0] <= now:
            _, replica, delta = reports.popleft()
            self._add(replica, delta)

    def _add(self, replica: int, delta: int) -> None:
        """Let a replica's visible load change."""
        loads = self._loads
        loads[replica] += delta
        tree = self._tree
        if not tree:
            return  # nobody has asked for the least loaded yet
        place = (self._leaves + replica) >> 1
        while place:
            best = tree[2 * place]
            other = tree[2 * place + 1]
            if other >= 0 and loads[other] < loads[best]:
                best = other
            if best != replica and tree[place] == best:
                return  # who was less loaded here still is, and as loaded as before
            tree[place] = best
            place >>= 1

    def _plant(self) -> None:
        """Compare all pairs once; from then on a change compares those it can have changed."""
        leaves = 1
        while leaves < self.replicas:
            leaves *= 2
        self._leaves = leaves
        tree = [-1] * (2 * leaves)
        loads = self._loads
        for replica in range(self.replicas):
            tree[leaves + replica] = replica
        for place in range(leaves - 1, 0, -1):
            best = tree[2 * place]
            other = tree[2 * place + 1]
            if other >= 0 and loads[other] < loads[best]:
                best = other
            tree[place] = best
        self._tree = tree


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
