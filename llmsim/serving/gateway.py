"""The front door where replicas may refuse: who is asked next, and who is held until one takes it.

The router says where it would send a request. If that replica takes no work, or refuses, the
gateway asks those after it in turn, each of which answers for itself, as it is now. If nobody takes
it the request is held, first come first served, until a request ends somewhere or a replica opens;
after a deadline the gateway gives it up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.request import WAITING, Request
from llmsim.serving.wake import Wake

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """What happens between the router's choice and a replica.

    Parameters
    ----------
    most_per_replica : int [requests]
        A replica with as many in line and running refuses, all its ranks together; 0: none refuses.
    hold_ns : int [ns]
        Longest time that a request is held; 0: for ever.
    """

    most_per_replica: int = 0
    hold_ns: int = 0


class Gateway:
    """Finds a replica that takes a request, or holds it.

    Parameters
    ----------
    clock : Clock
    plan : GatewayPlan
    fleet : Fleet
        Whose doors these are.

    Attributes
    ----------
    held : deque of Request
        Whom nobody takes now.
    closed : set of int
        Doors that take no work.
    refusals : int
        How often a replica said no.
    holds : int
        How often a request was held.
    elsewhere : callable or None
        Returns the door that takes a request for which the router has chosen another, by its
        index; -1 if there is none now.
    """

    def __init__(self, clock: Clock, plan: GatewayPlan, fleet: Fleet) -> None:
        self._clock = clock
        self._most = plan.most_per_replica
        self._hold_ns = plan.hold_ns
        self._fleet = fleet
        self._release = Wake(self._try_held)
        self.held: deque[Request] = deque()
        self.closed: set[int] = set()
        self.refusals = self.holds = 0
        self.elsewhere: Callable[[int], int] | None = None

    def door(self, first: int) -> int:
        """Return the first door from `first` on, in a circle, that takes a request now; or -1."""
        if self.elsewhere is not None:
            first = self.elsewhere(first)
            if first < 0:
                return -1
        doors = self._fleet.doors
        count = len(doors)
        for step in range(count):
            slot = (first + step) % count
            if slot in self.closed:
                continue
            if self._is_free(doors[slot]):
                return slot
            self.refusals += 1
        return -1

    def takes(self, slot: int) -> bool:
        """Whether a door takes a request now, with nobody else asked."""
        if self.elsewhere is not None and self.elsewhere(slot) != slot:
            return False
        return slot not in self.closed and self._is_free(self._fleet.doors[slot])

    def behind(self, slot: int) -> Replica:
        """Return who gets a request at a door: of attention ranks, the one that is chosen next."""
        replica = self._fleet.doors[slot]
        return replica if replica.ranks is None else replica.ranks.choose()

    def _is_free(self, replica: Replica) -> bool:
        if not self._most:
            return True
        members = [replica] if replica.ranks is None else replica.ranks.members
        return sum(each.running + each.waiting for each in members) < self._most

    def hold(self, request: Request) -> None:
        """Keep a request until somebody takes it."""
        request.replica = None
        request.state = WAITING
        self.holds += 1
        self.held.append(request)
        if self._hold_ns:
            wake = Wake(lambda _: self._give_up(request))
            self._clock.at(wake, ARRIVAL_PRIORITY, self._clock.now + self._hold_ns)

    def _give_up(self, request: Request) -> None:
        if not request.ended and request.replica is None and request in self.held:
            self._fleet.leave_unserved(request, "timed_out")

    def something_freed(self) -> None:
        """Try those who are held again, as soon as the calls of this instant are through."""
        if self.held and (not self._release.due or self._release.time_ns != self._clock.now):
            self._clock.at(self._release, ARRIVAL_PRIORITY, self._clock.now)

    def _try_held(self, _: Wake) -> None:
        held = self.held
        while held:
            if held[0].ended:
                held.popleft()
            elif not self._fleet.send(held[0]):
                return
            else:
                held.popleft()

    def close(self, slot: int) -> None:
        """Let a door take no more work."""
        if slot not in self.closed:
            self.closed.add(slot)
            self._fleet.board.close(slot)

    def open(self, slot: int) -> None:
        """Let a door take work again."""
        if slot in self.closed:
            self.closed.discard(slot)
            self._fleet.board.open(slot)
        self.something_freed()
