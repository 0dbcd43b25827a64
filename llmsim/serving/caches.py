"""What a router sees that declares ``reads_caches``: loads, caches, lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmsim.kvcache import PrefixLedger
from llmsim.kvcache.looking import cached_tokens
from llmsim.policies.routing import FleetView, Reroute, RoutingPolicy
from llmsim.policies.views import RequestView
from llmsim.serving.board import LoadBoard
from llmsim.serving.parts import drafts_of, prompts_begun
from llmsim.serving.replica import Replica
from llmsim.serving.rerouting import Rerouting

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.simulate import PoolPlan


class Caches:
    """Loads as they are reported, caches and lines as they are. Implements `LineView`.

    Parameters
    ----------
    board : LoadBoard
    """

    def __init__(self, board: LoadBoard) -> None:
        self._board = board
        self.replicas = board.replicas
        self._members: list[Sequence[Replica]] = []
        self._ledgers: list[list[PrefixLedger]] = []

    def connect(self, doors: Sequence[Replica]) -> None:
        """Get to know the replicas, in the order of the router's indices."""
        for door in doors:
            members: Sequence[Replica] = (door,) if door.ranks is None else door.ranks.members
            self._members.append(members)
            ledgers = [each.ledger for each in members]
            self._ledgers.append([each for each in ledgers if isinstance(each, PrefixLedger)])

    def outstanding(self, replica: int) -> int:
        """Return how many requests a replica has in line or running, as last reported."""
        return self._board.outstanding(replica)

    def least_outstanding(self) -> int:
        """Return the replica with the fewest requests, as last reported; the lowest of equals."""
        return self._board.least_outstanding()

    def cached_tokens(self, replica: int, request: RequestView) -> int:
        """Return how many leading tokens of a prompt a replica has cached now [tokens]."""
        segments = request.segments
        if segments is None:
            return 0
        return max(
            (
                cached_tokens(each.root, segments, request.prompt_tokens, each.block_tokens)
                for each in self._ledgers[replica]
            ),
            default=0,
        )

    def waiting(self, replica: int) -> list[RequestView]:
        """Return who is in line on a replica, in order; rank by rank where it has several."""
        return [request.view for each in self._members[replica] for request in each.line.requests()]

    def begun_tokens(self, replica: int) -> int:
        """Return what prompts begun on a replica have still to compute [tokens]."""
        left = 0
        for each in self._members[replica]:
            for draft in drafts_of(each):
                left += sum(tokens for _, tokens, _ in draft.chunks)
            for request in prompts_begun(each):
                left += request.prompt + request.generated - request.computed
        return left


class Knowing:
    """A router that sees caches in place of the board that it is given.

    Parameters
    ----------
    router : RoutingPolicy
    view : Caches
    """

    reads_caches = True

    def __init__(self, router: RoutingPolicy, view: Caches) -> None:
        self.router = router
        self.view = view
        self.choose = router.choose

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Start the router with its view."""
        self.router.start(self.view, rng)


def knowing(router: RoutingPolicy, board: LoadBoard) -> RoutingPolicy:
    """Return a router that sees caches if it declares that it reads them; else itself."""
    return Knowing(router, Caches(board)) if getattr(router, "reads_caches", False) else router


def show_caches(router: RoutingPolicy, doors: Sequence[Replica], fleet: Fleet) -> None:
    """Let a router that reads caches know its replicas, and move who waits if it does that."""
    if not isinstance(router, Knowing):
        return
    router.view.connect(doors)
    moves: Callable[[], Sequence[Reroute]] | None = getattr(router.router, "moves", None)
    if moves is not None:
        fleet.rerouting = Rerouting(fleet, moves)


def step_by_step(pools: Sequence[PoolPlan], router: RoutingPolicy) -> Sequence[PoolPlan]:
    """Return pools whose replicas merge no steps where somebody looks into their caches.

    A merged stretch takes its blocks, and overwrites what they cached, when it ends.
    """
    if not getattr(router, "reads_caches", False):
        return pools
    return [replace(each, config=replace(each.config, fast_forward=False)) for each in pools]
