"""What a router sees where replicas report now and then, and some reports are lost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from llmsim.core.rng import stream
from llmsim.serving.board import LoadBoard
from llmsim.serving.clock import Clock

_WORD: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """When replicas report, and how many reports get lost.

    Parameters
    ----------
    period_ns : int [ns]
        Between two reports of a replica; each has a phase of its own, drawn from the seed.
    lost_frac : float
        Share of reports that never arrive.
    """

    period_ns: int
    lost_frac: float = 0.0


class HeartbeatBoard(LoadBoard):
    """Loads as they were in the latest report of each replica that has arrived.

    Nothing ticks: a report is read from what has changed when somebody looks, so a fleet that is
    idle, or large, costs nothing. Whether a report is lost is a hash of replica and number.

    Parameters
    ----------
    clock : Clock
    replicas : int
    age_ns : int [ns]
        How long a report is on its way.
    count_own_sends : bool
        What is sent is visible at once, only ends wait for a report.
    beats : Heartbeats
    seed : int
    """

    __slots__ = ("_beats", "_key", "_lost", "_period_ns", "_phase_ns", "_seen")

    def __init__(
        self,
        clock: Clock,
        replicas: int,
        age_ns: int,
        count_own_sends: bool,
        beats: Heartbeats,
        seed: int,
    ) -> None:
        super().__init__(clock, replicas, age_ns, count_own_sends)
        rng = stream(seed, "heartbeats")
        self._period_ns = beats.period_ns
        phases: list[int] = rng.integers(0, beats.period_ns, replicas).tolist()
        self._phase_ns = phases
        key: int = int(rng.integers(0, 2**62))
        self._key = key
        self._lost = round(beats.lost_frac * 2**64)
        self._beats: list[deque[tuple[int, int]]] = [deque() for _ in range(replicas)]
        self._seen = [-1] * replicas  # number of the latest report that has been read

    def change(self, replica: int, delta: int, now_ns: int) -> None:
        """Note that a replica's outstanding requests changed by `delta` at `now_ns`."""
        if self._own and delta > 0:
            self._add(replica, delta)
        else:
            self._beats[replica].append((now_ns, delta))

    def outstanding(self, replica: int) -> int:
        """Return the load of a replica in its latest report [requests]."""
        if self._beats[replica]:
            self._read(replica)
        return super().outstanding(replica)

    def least_outstanding(self) -> int:
        """Return the replica with the least load by the latest reports; the lowest of equals."""
        for replica, line in enumerate(self._beats):
            if line:
                self._read(replica)
        return super().least_outstanding()

    def _read(self, replica: int) -> None:
        """Read a replica's latest report that has arrived, unless that has been done."""
        since = self._clock.now - self._age_ns - self._phase_ns[replica]
        number = newest = since // self._period_ns
        seen = self._seen[replica]
        while number > seen and self._is_lost(replica, number):
            number -= 1
        self._seen[replica] = max(newest, seen)
        if number <= seen:
            return
        made_ns = number * self._period_ns + self._phase_ns[replica]
        line = self._beats[replica]
        delta = 0
        while line and line[0][0] <= made_ns:
            delta += line.popleft()[1]
        self._add(replica, delta)

    def _is_lost(self, replica: int, number: int) -> bool:
        """Whether a report is lost: splitmix64 of its place (Steele, Lea and Flood, 2014)."""
        if not self._lost:
            return False
        word = (self._key + 0x9E3779B97F4A7C15 * (number * self.replicas + replica + 1)) & _WORD
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        return (word ^ (word >> 31)) < self._lost
