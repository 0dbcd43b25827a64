"""Routing that takes its time: a request is under way to its replica while others arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.request import Request
from llmsim.serving.wake import Wake

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.replica import Replica


class Decision:
    """Holds every request for as long as its router takes to decide.

    The router looks at the fleet when the request arrives; what happens until the request is
    there, other decisions included, it has not seen.

    Parameters
    ----------
    clock : Clock
    fleet : Fleet
    delay_ns : int [ns]
    """

    __slots__ = ("_clock", "_delay_ns", "_fleet")

    def __init__(self, clock: Clock, fleet: Fleet, delay_ns: int) -> None:
        self._clock = clock
        self._fleet = fleet
        self._delay_ns = delay_ns

    def send(self, request: Request, chosen: int, replica: Replica) -> None:
        """Let a request reach the replica chosen for it when the decision is made."""

        def arrive(_: Wake) -> None:
            if not request.ended:
                self._fleet.put(request, chosen, replica)

        self._clock.at(Wake(arrive), ARRIVAL_PRIORITY, self._clock.now + self._delay_ns)
