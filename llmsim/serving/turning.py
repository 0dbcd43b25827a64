"""The waiting line where steps can be stopped: ranks that may change in the meantime."""

from __future__ import annotations

from heapq import heappop, heappush

from llmsim.policies.precedence import NO_TURN, Precedence, Rank
from llmsim.serving.clock import Clock
from llmsim.serving.queue import UrgencyQueue
from llmsim.serving.request import WAITING, Request


def _no_urgency(view: object) -> tuple[int, ...] | None:
    return None


class TurningQueue(UrgencyQueue):
    """Least rank first; a rank that turns is looked up anew once its time has come.

    Parameters
    ----------
    precedence : Precedence
    clock : Clock
    """

    __slots__ = ("_clock", "_precedence", "_ranks", "_turns")

    def __init__(self, precedence: Precedence, clock: Clock) -> None:
        super().__init__(_no_urgency)
        self._precedence = precedence
        self._clock = clock
        self._ranks: dict[Request, Rank] = {}  # of everybody in line; other entries are stale
        self._turns: list[tuple[int, int, Request]] = []

    def rank(self, request: Request) -> Rank:
        """Return the rank of somebody in line."""
        return self._ranks[request]

    def push(self, request: Request) -> None:
        """Add a request at its place."""
        now = self._clock.now
        turn = self._precedence.turns_ns(request.view)
        if now < turn < NO_TURN:
            heappush(self._turns, (turn, request.view.index, request))
        self._enter(request, now)
        self.count += 1

    def _enter(self, request: Request, now: int) -> None:
        tokens = request.prompt + request.generated
        rank = self._precedence.rank(request.view, tokens, 0, now)
        if self._ranks.get(request) != rank:
            self._ranks[request] = rank
            heappush(self._heap, (rank, request))

    def head(self) -> Request | None:
        """Return the next request without removing it."""
        turns = self._turns
        now = self._clock.now
        while turns and turns[0][0] <= now:
            request = heappop(turns)[2]
            if request in self._ranks:
                self._enter(request, now)
        heap = self._heap
        while heap:
            rank, request = heap[0]
            if self._ranks.get(request) == rank:
                if not request.ended and request.state == WAITING:
                    return request
                del self._ranks[request]
            heappop(heap)
        return None

    def pop(self) -> Request:
        """Remove the request that `head` returned."""
        self.count -= 1
        request = heappop(self._heap)[1]
        del self._ranks[request]
        return request

    def remove(self, request: Request) -> None:
        """Take out a request that goes on elsewhere."""
        del self._ranks[request]
        self.count -= 1

    def requests(self) -> list[Request]:
        """Return everybody in line, in order."""
        ranked = sorted((rank, request) for request, rank in self._ranks.items())
        return [r for _, r in ranked if r.state == WAITING and not r.ended]
