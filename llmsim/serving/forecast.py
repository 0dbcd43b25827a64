"""What a predictive router sees of the fleet: loads, and what would become of a request where.

Each answer comes from a fork of a replica (`fork`). Where the view has an age, forks start from
snapshots of that age at most, and the router may remember what it has sent since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from llmsim.core.errors import Fault, InputError
from llmsim.core.units import seconds_to_ns
from llmsim.policies.routing import FleetView, RoutingPolicy
from llmsim.policies.views import RequestView
from llmsim.serving.beliefs import BeliefPlan, Beliefs
from llmsim.serving.board import CLOSED, LoadBoard
from llmsim.serving.caches import knowing, show_caches
from llmsim.serving.clock import FOREVER, Clock
from llmsim.serving.decision import Decision
from llmsim.serving.fleet import Fleet
from llmsim.serving.fork import FIRST_TOKEN, LAST_TOKEN, Fork
from llmsim.serving.forking import behind, fork_of, unforkable
from llmsim.serving.replica import Replica


class Forecasts:
    """The view of a router that declares `forecasts`; implements `ForecastView`.

    Parameters
    ----------
    clock : Clock
    board : LoadBoard
    age_ns : int [ns]
        A replica is looked at anew when what is known of it is older than this.
    count_own_sends : bool
        What was sent since is known.
    decision_ns : int [ns]
        How long a request is under way to the replica that is chosen for it.
    estimates : BeliefPlan or None
        Who believes what; needed.

    Attributes
    ----------
    forks : int
        Answers given so far.
    """

    def __init__(
        self,
        clock: Clock,
        board: LoadBoard,
        age_ns: int,
        count_own_sends: bool,
        decision_ns: int,
        estimates: BeliefPlan | None,
    ) -> None:
        if estimates is None:
            fault = Fault("", "routing", "foresees nothing without estimators.output_length")
            raise InputError("forecasts", [fault])
        self.replicas = board.replicas
        self.forks = 0
        self._clock = clock
        self._board = board
        self._age_ns = age_ns
        self._own = count_own_sends and (age_ns > 0 or decision_ns > 0)
        self._decision_ns = decision_ns
        self._beyond = estimates.beyond_tokens
        self._doors: list[Replica] = []
        self._behind: list[list[Replica]] = []
        self._work: list[Fork] = []
        self._seen: list[Fork] = []
        self._seen_ns: list[int] = []
        self._sent: list[deque[tuple[int, RequestView, int]]] = []
        self._called: Callable[[Replica, int], bool] = _nobody_was

    def connect(self, doors: list[Replica], called: Callable[[Replica, int], bool]) -> None:
        """Get to know the replicas.

        Parameters
        ----------
        doors : list of Replica
            In the order of the router's indices.
        called : callable
            Whether a replica's turn to be called at an instant [ns] has passed.

        Raises
        ------
        InputError
            If one of them cannot be forked.
        """
        self._behind = [behind(door) for door in doors]
        wrong = {found for each in self._behind for found in map(unforkable, each) if found}
        if wrong:
            faults = [Fault("", "routing", f"cannot foresee {each}") for each in sorted(wrong)]
            raise InputError("forecasts", faults)
        self._doors = doors
        self._called = called
        self._work = [fork_of(each, self._beyond, False) for each in self._behind]
        if self._age_ns:
            self._seen = [fork_of(each, self._beyond, True) for each in self._behind]
        self._seen_ns = [-1] * len(doors)
        self._sent = [deque() for _ in doors]

    # --- what the router reads --------------------------------------------------------------

    def outstanding(self, replica: int) -> int:
        """Return the visible load of a replica [requests]."""
        return self._board.outstanding(replica)

    def least_outstanding(self) -> int:
        """Return the replica with the least visible load; the lowest of equals."""
        return self._board.least_outstanding()

    def first_token_ns(self, replica: int, request: RequestView, before_ns: int = FOREVER) -> int:
        """Return when a request would have its first token; see `ForecastView`."""
        return self._foresee(replica, request, FIRST_TOKEN, before_ns)

    def last_token_ns(self, replica: int, request: RequestView, before_ns: int = FOREVER) -> int:
        """Return when a request would have its last token; see `ForecastView`."""
        return self._foresee(replica, request, LAST_TOKEN, before_ns)

    def _foresee(self, replica: int, request: RequestView, which: int, before_ns: int) -> int:
        if self._board.outstanding(replica) >= CLOSED:
            return FOREVER
        self.forks += 1
        now = self._clock.now
        work = self._work[replica]
        called = self._look(replica, work, now)
        if self._own:
            self._send_again(replica, work)
        target = work.send(request, now, self._decision_ns, called)
        if target is None:
            return FOREVER
        return work.token_ns(target, which, before_ns)

    def _look(self, replica: int, work: Fork, now: int) -> bool:
        """Load what is known of a replica; return whether its turn at this instant has passed."""
        there = self._behind[replica]
        if not self._age_ns:
            called = [self._called(each, now) for each in there]
            work.load(there, now, called)
            return called[0] and not self._decision_ns
        seen = self._seen[replica]
        if self._seen_ns[replica] < 0 or now - self._seen_ns[replica] > self._age_ns:
            seen.load(there, now, [self._called(each, now) for each in there])
            self._seen_ns[replica] = now
        work.load(seen.members, seen.clock.now, [False] * len(there), believed=True)
        return False

    def _send_again(self, replica: int, work: Fork) -> None:
        """Let what was sent, and is not there in the copy yet, arrive in it."""
        sent = self._sent[replica]
        since = work.clock.now
        delay = self._decision_ns
        while sent and sent[0][0] + delay < since:
            sent.popleft()
        if not sent:
            return
        here = work.present()
        for time_ns, view, place in sent:
            if view.index in here:
                continue
            if time_ns >= since:
                work.send(view, time_ns, delay, False, place)
            else:
                work.send(view, since, time_ns + delay - since, False, place)

    def note(self, replica: int, request: RequestView) -> None:
        """Remember where a request was sent, and to which rank, if there are some."""
        if self._own:
            ranks = self._doors[replica].ranks
            # what is looked at with an age finds the rank itself
            place = 0 if ranks is None else -1 if self._age_ns else ranks.next_place()
            self._sent[replica].append((self._clock.now, request, place))


class Foreseeing:
    """A router whose choices are noted in its own view.

    Parameters
    ----------
    router : RoutingPolicy
    forecasts : Forecasts
    """

    def __init__(self, router: RoutingPolicy, forecasts: Forecasts) -> None:
        self.router = router
        self.forecasts = forecasts

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Start the router with forecasts in place of the board that it is given."""
        self.router.start(self.forecasts, rng)

    def choose(self, request: RequestView) -> int:
        """Return the router's choice."""
        chosen = self.router.choose(request)
        self.forecasts.note(chosen, request)
        return chosen


def _delay_ns(router: RoutingPolicy) -> int:
    """Return what a decision of a router takes [ns]."""
    return seconds_to_ns(getattr(router, "decision_s", 0.0))


def foreseeing(
    router: RoutingPolicy,
    clock: Clock,
    board: LoadBoard,
    age_ns: int,
    count_own_sends: bool,
    estimates: BeliefPlan | None,
) -> RoutingPolicy:
    """Return a router that sees forecasts, or caches, if it declares that; else itself.

    Raises
    ------
    InputError
        If nothing is believed of output lengths.
    """
    if not getattr(router, "forecasts", False):
        return knowing(router, board)
    delay_ns = _delay_ns(router)
    view = Forecasts(clock, board, age_ns, count_own_sends, delay_ns, estimates)
    return Foreseeing(router, view)


def settle_in(
    router: RoutingPolicy,
    clock: Clock,
    fleet: Fleet,
    doors: list[Replica],
    estimates: BeliefPlan | None,
    seed: int,
) -> None:
    """Have requests told what is believed of them, and let a router know its replicas.

    Its decisions take their time from then on.
    """
    if estimates is not None:
        fleet.beliefs = Beliefs(estimates.length, seed)
    if isinstance(router, Foreseeing):
        router.forecasts.connect(doors, fleet.called)
        router = router.router
    show_caches(router, doors, fleet)
    delay_ns = _delay_ns(router)
    if delay_ns:
        fleet.decision = Decision(clock, fleet, delay_ns)


def _nobody_was(replica: Replica, now: int) -> bool:
    return False
