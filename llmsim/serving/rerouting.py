"""Requests that change lines before anybody has begun them, as their router asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmsim.policies.routing import Reroute

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.replica import Replica
    from llmsim.serving.request import Request


class Rerouting:
    """Asks a router after every arrival who is to wait elsewhere, and moves them there.

    Parameters
    ----------
    fleet : Fleet
    moves : callable
        The router's `moves`.

    Attributes
    ----------
    moved : int
        Requests that have changed lines so far.
    """

    def __init__(self, fleet: Fleet, moves: Callable[[], Sequence[Reroute]]) -> None:
        self._fleet = fleet
        self._moves = moves
        self.moved = 0

    def carry_out(self) -> list[int]:
        """Do what the router asks for; return each request that changed lines, and its new door."""
        done: list[int] = []
        here: dict[int, dict[int, Request]] = {}
        for move in self._moves():
            if move.source not in here:
                here[move.source] = self._line(move.source)
            request = here[move.source].pop(move.request, None)
            if request is not None and self._move(request, move.target):
                done += [move.request, move.target]
        self.moved += len(done) // 2
        return done

    def _line(self, slot: int) -> dict[int, Request]:
        door = self._fleet.doors[slot]
        members: Sequence[Replica] = (door,) if door.ranks is None else door.ranks.members
        return {each.view.index: each for one in members for each in one.line.requests()}

    def _move(self, request: Request, slot: int) -> bool:
        fleet = self._fleet
        source, target = request.replica, fleet.doors[slot]
        if source is None or request.lease is not None or request.generated:
            return False
        if request.fetched_blocks or (fleet.gateway is not None and not fleet.gateway.takes(slot)):
            return False
        port = target.port
        if request.prompt + request.output > port.longest_tokens():
            return False
        if not port.can_ever_hold(request):
            return False
        if target.ranks is not None:
            target = target.ranks.choose()
        source.port.withdraw(request, fleet.called(source, fleet.clock.now))
        fleet.set_adrift(request)
        request.queued_ns = fleet.clock.now
        fleet.put(request, slot, target)
        return True
