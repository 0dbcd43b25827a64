"""Lock-step: the ranks of one engine have one clock, and one front door.

What is called, and when, is for the kinds of groups to say: `RankGroup`, whose ranks run one step
after another, and `PipelineGroup`, whose ranks have several micro-batches in flight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from llmsim.serving.clock import CALL_PRIORITY, Clock
from llmsim.serving.replica import Replica
from llmsim.serving.wake import Wake

COUNTS_EVERY_NS: Final = 100_000_000
"""How often the front door hears of its ranks' queues [ns]: vLLM's coordinator publishes counts
that have changed every 100 ms (``stats_update_interval_ms`` of ``vllm/v1/engine/coordinator.py``).
"""

_WAITING_WEIGHT: Final = 4
"""A request that waits counts as four that run (vLLM ``DPLBAsyncMPClient``, since 0.10)."""


class Lockstep(ABC):
    """The attention ranks of one replica: a front door, and an alarm that calls all of them.

    Parameters
    ----------
    clock : Clock
    index : int
        Index of its first rank within the fleet.
    round_robin : bool
        Requests go to the ranks in turn; otherwise to the one with the shortest queue, as the
        front door knows it.

    Attributes
    ----------
    members : list of Replica
    """

    def __init__(self, clock: Clock, index: int, round_robin: bool) -> None:
        self.clock = clock
        self.index = index
        self.members: list[Replica] = []
        self._alarm = Wake(self.wake)
        self._priority = CALL_PRIORITY + index
        self._asleep = True
        self._call_ns = -1
        self._round_robin = round_robin
        self._turn = 0
        self._counts: list[int] = []
        self._counted = -1

    # --- from outside -----------------------------------------------------------------------

    def choose(self) -> Replica:
        """Return the rank that the next request goes to.

        Notes
        -----
        The counts of requests that wait and run are those of the latest report, and the requests
        sent since then. A report comes with the first request of each interval.
        """
        members = self.members
        if self._round_robin:
            rank = members[self._turn]
            self._turn = (self._turn + 1) % len(members)
            return rank
        counts = self._counts = self._known_counts()
        self._counted = self.clock.now // COUNTS_EVERY_NS
        best = counts.index(min(counts))
        counts[best] += _WAITING_WEIGHT
        return members[best]

    def next_place(self) -> int:
        """Return the number of the rank that `choose` would return; changes nothing."""
        if self._round_robin:
            return self._turn
        counts = self._known_counts()
        return counts.index(min(counts))

    def _known_counts(self) -> list[int]:
        """Return what the front door knows of the queues now: an old report, or a new one."""
        if self.clock.now // COUNTS_EVERY_NS == self._counted:
            return self._counts
        return [_WAITING_WEIGHT * rank.waiting + rank.running for rank in self.members]

    @abstractmethod
    def alone_ns(self, tokens: int, past: int) -> int:
        """Return what a joint step takes with some tokens of one prompt on one rank [ns]."""

    def call_at(self, time_ns: int) -> None:
        """Have all ranks called at `time_ns` [ns]."""
        if self._asleep:
            self._asleep = False
            self._doze(False)
        self._call_ns = time_ns
        self._set_alarm(time_ns)

    def _set_alarm(self, time_ns: int) -> None:
        self.clock.at(self._alarm, self._priority, time_ns)

    # --- the call ---------------------------------------------------------------------------

    @abstractmethod
    def _doze(self, asleep: bool) -> None:
        """Tell all ranks that they sleep, or no longer do."""

    @abstractmethod
    def _call(self, now: int) -> None:
        """One call of all schedulers at time `now` [ns]."""

    def wake(self, alarm: Wake) -> None:
        """Call all schedulers, again and again while nothing else in the world comes first."""
        clock = self.clock
        if clock.now != self._call_ns or self._asleep:
            return
        self._call(self._call_ns)
        while not self._asleep and clock.idle_until(self._call_ns):
            clock.jump(self._call_ns)
            self._call(self._call_ns)
        if not self._asleep:
            self._set_alarm(self._call_ns)
