"""A copy of a replica in a world of its own: what would become of a request that it got now.

The copy is a replica like any other: the same cohort, the same closed forms, the same scheduler, so
that it does what the real one would do. It differs in what is believed: requests end where they
are believed to end, nothing else arrives, and nobody hears of it. Nothing of the real replica is
written to, and no random number is drawn.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import Final

from llmsim.kvcache import CountLedger
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.ordering import ChoosesVictims, GuardsAdmission, HearsOfEnds, OrdersWaiting
from llmsim.policies.views import RequestView
from llmsim.results.histogram import LogHistogram
from llmsim.serving.clock import FOREVER, Clock
from llmsim.serving.delivery import Delivery
from llmsim.serving.equipment import make_line
from llmsim.serving.meter import NEVER, Meter
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, FINISHING, Request

FIRST_TOKEN: Final = 0
LAST_TOKEN: Final = 1


class QuietMeter(Meter):
    """Measures nothing but when a request has had its latest token."""

    def __init__(self) -> None:  # without the parent's tables, which nobody will read
        self.slo = NEVER
        self.over = 0
        self.steps = 0
        self.peak_kv_blocks = 0
        self.together = -1
        self.itl = LogHistogram()

    def log(self, row: tuple[int, ...]) -> None:
        """Note nothing."""

    def waited(self, start_ns: int, end_ns: int) -> None:
        """Note nothing."""

    def ticked(self, last_tick: int, last_gap: int) -> None:
        """Note nothing."""

    def clear(self) -> None:
        """Forget nothing."""

    def lone_gap(self, request: Request, gap_ns: int) -> None:
        """Note nothing."""

    def left(self, request: Request, tick: int, tick_end_ns: int) -> None:
        """Bring the time of a request's latest token up to date."""
        if request.join_tick < tick:
            request.last_token_ns = tick_end_ns


class Shadow(Replica):
    """A replica that can be loaded, again and again, with the state of another.

    Parameters
    ----------
    like : Replica
        Whose engine, price and policy it has.
    beyond_tokens : int [tokens]
        Who has had all the tokens that it was believed to get is believed to get so many more.
    """

    def __init__(self, like: Replica, beyond_tokens: int) -> None:
        config = like.config
        ledger = CountLedger(config.kv_blocks, config.block_tokens)
        super().__init__(
            Clock(),
            like.index,
            like.pool,
            like.cost,
            config,
            like.draft.policy,
            NEVER,
            _nobody_hears,
            None,
            ledger,
        )
        self.meter = self.draft.meter = QuietMeter()
        self.delivery = Delivery(
            self.draft, self._stretch, config.block_tokens, config.lookahead, _nobody_hears
        )
        self._beyond = beyond_tokens
        self._clones: dict[Request, Request] = {}

    def _call_at(self, time_ns: int) -> None:
        self._call_ns = time_ns

    # --- taking over ------------------------------------------------------------------------

    def load(self, other: Replica, now: int, called_now: bool = False) -> None:
        """Be another replica as it is now [ns], with believed lengths in place of true ones.

        Parameters
        ----------
        other : Replica
            May be a shadow: its lengths are believed already.
        now : int [ns]
        called_now : bool
            Its turn to be called at this instant has passed.
        """
        self.clock.jump(now)
        self._asleep = other._asleep
        self._call_ns = other._call_ns
        self._front_ns = other._front_ns
        self._exec_end_ns = other._exec_end_ns
        self._ticks = other._ticks
        self._gap = other._gap
        self._merged = other._merged
        self._chunked_step = other._chunked_step
        self._drag = other._drag
        self.ledger.free = other.ledger.free
        self.cohort.mirror(other.cohort)
        self._stretch.mirror(other._stretch)
        policy = _copied(other.draft.policy)
        self._policy = self.draft.policy = policy
        self.line = self.draft.line = make_line(policy)
        if self._merged:
            # the stretch was planned up to a true end: what is committed is the step under way
            self._cut(called_now)
        self._load_requests(other, isinstance(other, Shadow))
        self._load_draft(other)
        self._load_delivery(other)

    def _load_requests(self, other: Replica, believed: bool) -> None:
        """Copy everybody who is here, with believed lengths."""
        clones = self._clones
        clones.clear()
        tick = self.cohort.tick
        committed = tick + self._ticks  # the cohort's ticks that are planned whatever one believes
        completing = other.delivery.completing
        for request in other.running_set:
            clone = _clone(request)
            clones[request] = clone
            if request.state == DECODE:
                if not believed:
                    had = request.output - (request.finish_tick - tick)
                    finish = tick + self._within(request, request.view.believed_tokens) - had
                    if finish < committed or finish == tick:
                        outlived = had + self._ticks + self._beyond
                        finish = tick + self._within(request, outlived) - had
                    clone.finish_tick = finish
                    clone.output = had + finish - tick
            elif not believed and request.state != FINISHING:
                clone.output = self._believed(request, request in completing)
        for request in other.line.requests():
            clone = _clone(request)
            clones[request] = clone
            if not believed:
                clone.output = self._believed(request, False)
            self.line.push(clone)
        self.cohort.adopt(other.cohort, clones)

    def _believed(self, request: Request, completing: bool) -> int:
        """Return how long an output is believed to be of somebody who does not decode [tokens].

        Parameters
        ----------
        request : Request
        completing : bool
            Its latest token comes with the step under way: it may be the last one.
        """
        had = request.generated
        tokens = request.view.believed_tokens
        if tokens < had or (tokens == had and not completing):
            tokens = had + self._beyond
        return self._within(request, tokens)

    def _within(self, request: Request, tokens: int) -> int:
        """Return an output as the engine would cut it [tokens]."""
        config = self.config
        room = min(config.max_model_len, config.kv_blocks * config.block_tokens + 1)
        return min(tokens, room - request.prompt)

    def _copy_of(self, request: Request) -> Request:
        """Return the copy of somebody who may run no more."""
        found = self._clones.get(request)
        if found is None:
            found = self._clones[request] = _clone(request)
        return found

    def _load_draft(self, other: Replica) -> None:
        draft, theirs = self.draft, other.draft
        clones = self._clones
        self.running_set = draft.running_set = {clones[r]: None for r in theirs.running_set}
        draft.prefilling = {clones[r]: None for r in theirs.prefilling}
        draft.parked = {clones[r]: None for r in theirs.parked}
        draft.late = [clones[r] for r in theirs.late]
        draft.seats = theirs.seats
        draft.tick_end_ns = theirs.tick_end_ns
        draft.first_need = theirs.first_need
        draft.decoding = theirs.decoding
        draft.decisions.clear()

    def _load_delivery(self, other: Replica) -> None:
        delivery, theirs = self.delivery, other.delivery
        delivery.completing = [self._copy_of(r) for r in theirs.completing]
        delivery.pending = [self._copy_of(r) for r in theirs.pending]
        delivery.leaving = [(self._copy_of(r), why) for r, why in theirs.leaving if not r.ended]
        clones = self._clones
        delivery.unticked = [clones[r] for r in theirs.unticked if r in clones]
        delivery.stalled = theirs.stalled

    def present(self) -> set[int]:
        """Return the numbers of the requests that were here when this was loaded."""
        return {request.view.index for request in self._clones}

    # --- what would become of it ------------------------------------------------------------

    def arrive(self, view: RequestView, time_ns: int, called_now: bool = False) -> Request | None:
        """Let a request arrive at `time_ns` [ns], with its believed length; None: never fits.

        Everything up to then happens before.
        """
        while not self._asleep and self._call_ns < time_ns:
            self.clock.jump(self._call_ns)
            self._call(self._call_ns)
        self.clock.jump(time_ns)
        target = Request(view, 1)
        target.output = self._within(target, max(1, view.believed_tokens))
        if target.output < 1:
            return None
        self.enqueue(target, called_now)
        return target

    def token_ns(self, target: Request, which: int, before_ns: int) -> int:
        """Return when a request that has arrived gets its first or last token [ns].

        Parameters
        ----------
        target : Request
        which : int
            `FIRST_TOKEN` or `LAST_TOKEN`.
        before_ns : int [ns]
            Look no further: a later time may be returned as `FOREVER`.
        """
        clock = self.clock
        while not self._asleep:
            now = self._call_ns
            if now > before_ns:
                return FOREVER
            clock.jump(now)
            self._call(now)
            if which == FIRST_TOKEN:
                if target.first_token_ns >= 0:
                    return target.first_token_ns
            elif target.ended or target.state == FINISHING:
                return target.last_token_ns
        return FOREVER


def _nobody_hears(request: Request, outcome: str, time_ns: int) -> None:
    """Tell nobody what happens in a fork."""


def _copied(policy: BatchingPolicy) -> BatchingPolicy:
    """Return a policy to plan in a fork with: a copy, or itself if it keeps nothing."""
    if is_dataclass(policy) and all(field.init for field in fields(policy)):
        return policy
    return deepcopy(policy)


def _clone(request: Request) -> Request:
    clone = Request(request.view, request.output)
    clone.generated = request.generated
    clone.computed = request.computed
    clone.seat = request.seat
    clone.state = request.state
    clone.base = request.base
    clone.join_tick = request.join_tick
    clone.finish_tick = request.finish_tick
    clone.window_tick = request.window_tick
    clone.scheduled_ns = request.scheduled_ns
    clone.first_token_ns = request.first_token_ns
    clone.last_token_ns = request.last_token_ns
    clone.missed_gap_ns = request.missed_gap_ns
    clone.preemptions = request.preemptions
    clone.queued_ns = request.queued_ns
    return clone


def unforkable(replica: Replica) -> str:
    """Return what of a replica cannot be copied; empty if everything can."""
    draft = replica.draft
    if isinstance(draft.policy, OrdersWaiting | ChoosesVictims | GuardsAdmission | HearsOfEnds):
        return "batching policies that keep more than the next step"
    if type(replica) not in (Replica, Shadow):
        return "lanes, attention ranks, pipeline stages and steps that can be stopped"
    if draft.claims is not None:
        return "promises of KV"
    if draft.together is not None:
        return "results that leave together"
    if draft.keeper is not None or draft.swapper is not None:
        return "KV below the GPU"
    if draft.retainer is not None:
        return "pinned KV"
    return ""
