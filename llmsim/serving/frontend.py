"""The one thread before the engines: work for all that have come together, work for one by one."""

from __future__ import annotations

from collections.abc import Callable

import simpy

from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.wake import Wake
from llmsim.workload.chunk import ClosedLoop


class FrontEnd:
    """An event loop with work for every request.

    What it does in pieces between which it waits (reading, checking, a batch of prompts to encode)
    it does for all that have come: they have it behind them together, and who comes meanwhile makes
    up the next round. What it does without waiting it does for one after the other.

    Parameters
    ----------
    clock : Clock
    send : callable
        Sends the next request; called once for each.
    loop : ClosedLoop
        How long the work for a request takes, of either kind.
    """

    def __init__(self, clock: Clock, send: Callable[[simpy.Event], None], loop: ClosedLoop) -> None:
        self._clock = clock
        self._send = send
        self._round_ns = loop.round_ns
        self._ingest_ns = loop.ingest_ns
        self._free_ns = 0  # until when it is taken by single requests
        self._waiting = self._round = 0
        self._in_round = False

    def expect(self, ready_ns: int) -> None:
        """Take in a request that comes at `ready_ns` [ns]."""
        if self._round_ns:
            self._clock.at(Wake(self._come), ARRIVAL_PRIORITY, ready_ns)
        else:
            self._one_by_one(ready_ns)

    def _one_by_one(self, ready_ns: int) -> None:
        self._free_ns = max(self._free_ns, ready_ns) + self._ingest_ns
        self._clock.at(Wake(self._send), ARRIVAL_PRIORITY, self._free_ns)

    def _come(self, _: simpy.Event) -> None:
        self._waiting += 1
        if not self._in_round:
            self._in_round = True
            # behind all others that come at this time
            self._clock.at(Wake(self._begin), ARRIVAL_PRIORITY, self._clock.now)

    def _begin(self, _: simpy.Event) -> None:
        self._round, self._waiting = self._waiting, 0
        end_ns = self._clock.now + self._round * self._round_ns
        self._clock.at(Wake(self._end), ARRIVAL_PRIORITY, end_ns)

    def _end(self, event: simpy.Event) -> None:
        for _ in range(self._round):
            self._one_by_one(self._clock.now)
        if self._waiting:
            self._begin(event)
        else:
            self._in_round = False
