"""What a shadow takes over from a replica: its state, with believed lengths for true ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import fields, is_dataclass
from typing import TypeVar, cast

from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.ordering import ChoosesVictims, GuardsAdmission, HearsOfEnds
from llmsim.results.histogram import LogHistogram
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.equipment import empty_line
from llmsim.serving.gate import Gate
from llmsim.serving.meter import NEVER, Meter
from llmsim.serving.queue import OrderedQueue
from llmsim.serving.replica import Replica
from llmsim.serving.request import DECODE, FINISHING, Request
from llmsim.serving.step import Engine

T = TypeVar("T")


class QuietMeter(Meter):
    """Measures nothing but when a request has had its latest token."""

    def __init__(self) -> None:  # without the parent's tables, which nobody will read
        self.slo = NEVER
        self.over = 0
        self.steps = 0
        self.peak_kv_blocks = 0
        self.together = -1
        self.itl = LogHistogram()

    def log(
        self,
        start_ns: int,
        end_ns: int,
        ticks: int,
        members: int,
        running: int,
        kv_start: int,
        kv_end: int,
        prefill_tokens: int,
        logits: int,
        first_gap_ns: int,
        last_gap_ns: int,
        active_uj: int,
    ) -> None:
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


class Likeness:
    """A shadow's way to another replica's state.

    Parameters
    ----------
    shadow : Replica
        Measures nothing, and tells nobody, from now on.
    beyond_tokens : int [tokens]
        Who has had all the tokens that it was believed to get is believed to get so many more.

    Attributes
    ----------
    clones : dict of Request to Request
        Of everybody who was on the other replica.
    """

    def __init__(self, shadow: Replica, beyond_tokens: int) -> None:
        self.shadow = shadow
        draft, config = shadow.draft, shadow.config
        shadow.meter = draft.meter = QuietMeter()
        shadow.delivery = Delivery(
            draft,
            shadow._stretch,
            config.block_tokens,
            config.lookahead,
            self._ended if isinstance(draft.policy, HearsOfEnds) else nobody_hears,
        )
        self._beyond = beyond_tokens
        self.clones: dict[Request, Request] = {}

    def mirror(self, other: Replica) -> None:
        """Take over everything but requests; the shadow's alarm is not set yet."""
        own = self.shadow
        own._asleep = other._asleep
        own._call_ns = other._call_ns
        own._front_ns = other._front_ns
        own._exec_end_ns = other._exec_end_ns
        own._ticks = other._ticks
        own._gap = other._gap
        own._merged = other._merged
        own._chunked_step = other._chunked_step
        own._drag = other._drag
        own.ledger.free = other.ledger.free
        own.port.expected = other.port.expected
        own.draft.first_need = other.draft.first_need
        own.cohort.mirror(other.cohort)
        own._stretch.mirror(other._stretch)
        self._take_policy(other)

    def settle(self, other: Replica, believed: bool) -> None:
        """Take over who is there; what is under way, and no more than that, is planned.

        Parameters
        ----------
        other : Replica
        believed : bool
            Its lengths are believed already.
        """
        own, clones = self.shadow, self.clones
        clones.clear()
        tick = own.cohort.tick
        # the cohort's ticks that are planned take place whatever one believes
        self._add_running(other.draft, other.delivery, tick, own._ticks, tick + 1, believed)
        self.add(other.delivery.arrived, believed)
        line = own.line
        waiting = self.add(other.line.requests(), believed)
        if isinstance(line, OrderedQueue):
            line.adopt(waiting)
        else:
            for clone in waiting:
                line.push(clone)
        own.cohort.adopt(other.cohort, clones)
        self._settle_draft(own.draft, other.draft)
        own.running_set = own.draft.running_set
        self._settle_delivery(own.delivery, other.delivery)

    def _take_policy(self, other: Replica) -> None:
        """Decide with a copy of another replica's policy, and with a copy of the line it keeps."""
        own, line = self.shadow, other.line
        if not isinstance(line, OrderedQueue) or line.order is None:
            policy = copied(other.draft.policy)
            own.line = own.draft.line = empty_line(line, policy)
        else:
            engine = Engine(own.draft)
            policy, order = deepcopy((other.draft.policy, line.order), {id(line.engine): engine})
            own.line = own.draft.line = kept = OrderedQueue()
            kept.kept_by(order, engine)
        own._policy = own.draft.policy = policy
        # as in theirs, and not asked of the policy again: a protocol answers slowly
        guards, chooses = other.draft.guard is not None, other.draft.chooser is not None
        own.draft.guard = cast(GuardsAdmission, policy) if guards else None
        own.draft.chooser = cast(ChoosesVictims, policy) if chooses else None

    def _ended(self, request: Request, outcome: str, time_ns: int) -> None:
        """Tell nobody but the policy's copy."""
        policy = self.shadow.draft.policy
        if isinstance(policy, HearsOfEnds):
            policy.ended(request.view, request.generated)

    def take_gates(self, other: Replica, copy_of: Callable[[Gate], Gate]) -> None:
        """Wait for what another replica's step waits for."""
        self.shadow.draft.gates[:] = [copy_of(gate) for gate in other.draft.gates]

    def _add_running(
        self,
        theirs: Draft,
        delivery: Delivery,
        tick: int,
        ticks: int,
        earliest_tick: int,
        believed: bool,
    ) -> dict[Request, Request]:
        """Copy requests that run; return the copies.

        Parameters
        ----------
        theirs, delivery
            With whom they run.
        tick : int
            Of their cohort.
        ticks : int
            That are planned from there on.
        earliest_tick : int
            No member can have ended before.
        believed : bool
            Their lengths are believed already.
        """
        earliest = max(tick + ticks, earliest_tick)
        completing = delivery.completing
        clones = {}
        for request in theirs.running_set:
            clone = _clone(request)
            clones[request] = clone
            if request.state == DECODE:
                if not believed:
                    had = request.output - (request.finish_tick - tick)
                    finish = tick + self.within(request, request.view.believed_tokens) - had
                    if finish < earliest:
                        outlived = had + ticks + self._beyond
                        finish = tick + self.within(request, outlived) - had
                    clone.finish_tick = finish
                    clone.output = had + finish - tick
            elif not believed and request.state != FINISHING:
                clone.output = self._believed(request, request in completing)
        self.clones.update(clones)
        return clones

    def add(self, requests: Iterable[Request], believed: bool) -> list[Request]:
        """Copy requests that do not run; return the copies."""
        added = []
        for request in requests:
            clone = self.clones[request] = _clone(request)
            if not believed:
                clone.output = self._believed(request, False)
            added.append(clone)
        return added

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
        return self.within(request, tokens)

    def within(self, request: Request, tokens: int) -> int:
        """Return an output as the engine would cut it [tokens]."""
        config = self.shadow.config
        room = min(config.max_model_len, config.kv_blocks * config.block_tokens + 1)
        return min(tokens, room - request.prompt)

    def copy_of(self, request: Request) -> Request:
        """Return the copy of somebody who may run no more."""
        found = self.clones.get(request)
        if found is None:
            found = self.clones[request] = _clone(request)
        return found

    def _settle_draft(self, draft: Draft, theirs: Draft) -> None:
        clones = self.clones
        draft.running_set = {clones[r]: None for r in theirs.running_set}
        draft.prefilling = {clones[r]: None for r in theirs.prefilling}
        draft.parked = {clones[r]: None for r in theirs.parked}
        draft.late = [clones[r] for r in theirs.late]
        draft.chunks = [(self.copy_of(r), tokens, past) for r, tokens, past in theirs.chunks]
        draft.seats = theirs.seats
        draft.tick_end_ns = theirs.tick_end_ns
        draft.decoding = theirs.decoding
        draft.decisions.clear()

    def _settle_delivery(self, delivery: Delivery, theirs: Delivery) -> None:
        clones = self.clones
        delivery.completing = [self.copy_of(r) for r in theirs.completing]
        delivery.pending = [self.copy_of(r) for r in theirs.pending]
        delivery.leaving = [(self.copy_of(r), why) for r, why in theirs.leaving if not r.ended]
        delivery.unticked = [clones[r] for r in theirs.unticked if r in clones]
        delivery.stalled = theirs.stalled
        delivery.arrived.clear()
        delivery.arrived.extend([clones[r] for r in theirs.arrived])


def nobody_hears(request: Request, outcome: str, time_ns: int) -> None:
    """Tell nobody what happens in a fork."""


def blank(like: Replica) -> BatchingPolicy:
    """Return a policy to build a shadow with: it may be shown an engine, and keep a line."""
    policy, line = like.draft.policy, like.line
    if not isinstance(line, OrderedQueue):
        return policy
    return deepcopy(policy, {id(line.engine): None})


def copied(policy: T) -> T:
    """Return a policy to decide in a fork with: a copy, or itself if it keeps nothing."""
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
    clone.fetched_blocks = request.fetched_blocks
    clone.ended = request.ended
    return clone
