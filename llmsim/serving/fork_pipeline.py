"""A copy of a pipeline: its micro-batches in flight are in flight there, too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmsim.core.errors import InvariantError
from llmsim.policies.views import RequestView
from llmsim.serving.clock import ARRIVAL_PRIORITY, FOREVER, Clock
from llmsim.serving.delivery import Delivery
from llmsim.serving.equipment import empty_line
from llmsim.serving.fork import Fork
from llmsim.serving.gate import Gate
from llmsim.serving.likeness import Likeness, QuietMeter, copied, nobody_hears
from llmsim.serving.meter import NEVER
from llmsim.serving.microbatch import Slot
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.replica import Replica
from llmsim.serving.request import Request
from llmsim.serving.rounds import Rounds
from llmsim.serving.wake import Wake


class ShadowPipeline(Pipeline):
    """A pipeline that can be loaded, again and again, with the state of another.

    Parameters
    ----------
    clock : Clock
        Of its own world.
    like : Pipeline
        Whose engine, price and policy it has.
    """

    def __init__(self, clock: Clock, like: Pipeline) -> None:
        # a prompt counts whole in a fork
        config = replace(like.config, prefix_caching=False)
        policy = like.draft.policy
        super().__init__(
            clock, like.index, like.pool, like._staged, config, policy, NEVER, nobody_hears
        )

    def wake(self, alarm: Wake) -> None:
        """Call the scheduler once: who asks may know enough then."""
        if self.clock.now == self._call_ns and not self._asleep:
            self._call(self._call_ns)
            if not self._asleep:
                self._call_at(self._call_ns)


class PipelineLikeness(Likeness):
    """A shadow's way to the state of another pipeline, micro-batch by micro-batch.

    Parameters
    ----------
    shadow : Pipeline
    beyond_tokens : int [tokens]
        See `Likeness`.
    """

    def __init__(self, shadow: Pipeline, beyond_tokens: int) -> None:
        super().__init__(shadow, beyond_tokens)
        self._pipeline = shadow
        block = shadow.config.block_tokens
        shadow._rounds = Rounds(len(shadow._free_ns), block, quiet=True)
        arrived: deque[Request] = deque()  # whoever is planned next seats those
        for slot in shadow.slots:
            slot.meter = slot.draft.meter = QuietMeter()
            slot.delivery = Delivery(slot.draft, slot.stretch, block, 0, nobody_hears)
            slot.delivery.arrived = arrived
        shadow.enter(shadow.slots[0])

    def mirror(self, other: Replica) -> None:
        """Take over everything but requests; the shadow's alarm is not set yet."""
        own, theirs = self._pipeline, _pipeline(other)
        own._asleep = theirs._asleep
        own._call_ns = theirs._call_ns
        own.ledger.free = theirs.ledger.free
        own.port.expected = theirs.port.expected
        own._exec_end_ns = theirs._exec_end_ns
        own._free_ns = theirs._free_ns.copy()
        own._seats = theirs._seats
        own._policy = policy = copied(theirs._policy)
        own.line = line = empty_line(theirs.line, policy)
        for slot, like in zip(own.slots, theirs.slots, strict=True):
            slot.draft.policy, slot.draft.line = policy, line
            slot.cohort.mirror(like.cohort)
            slot.end_ns = like.end_ns
            slot.seen = -1  # it is planned, and priced, when it has come out
        places = {slot: place for place, slot in enumerate(theirs.slots)}
        own._flying = deque([own.slots[places[slot]] for slot in theirs._flying])
        own._held = deque([own.slots[places[slot]] for slot in theirs._held])

    def settle(self, other: Replica, believed: bool) -> None:
        """Take over who is there; what is in flight, and no more than that, is planned."""
        own, theirs = self._pipeline, _pipeline(other)
        self.clones.clear()
        pairs: list[tuple[Slot, Slot]] = list(zip(own.slots, theirs.slots, strict=True))
        members = []
        for slot, like in pairs:
            # the token that is in flight has been counted, and may be the last one; while its way
            # waits for KV it has not
            tick = slot.cohort.tick
            coming = 1 if like.end_ns == FOREVER and like.way.count else 0
            given = tick, coming, tick + coming
            members.append(self._add_running(like.draft, like.delivery, *given, believed))
        loose = self.add(theirs.loose, believed)
        own.loose = dict.fromkeys(loose)
        for clone in self.add(theirs.line.requests(), believed):
            own.line.push(clone)
        for (slot, like), copies in zip(pairs, members, strict=True):
            slot.cohort.adopt(like.cohort, copies)
            self._settle_draft(slot.draft, like.draft)
            self._settle_delivery(slot.delivery, like.delivery)
        own.running_set = own.draft.running_set
        own._leaving = [(self.copy_of(r), why) for r, why in theirs._leaving if not r.ended]

    def take_gates(self, other: Replica, copy_of: Callable[[Gate], Gate]) -> None:
        """Wait for what another pipeline waits for, in flight and in what is sent next."""
        super().take_gates(other, copy_of)
        for slot, like in zip(self._pipeline.slots, _pipeline(other).slots, strict=True):
            if like.end_ns == FOREVER:
                slot.way = like.way.copied(tuple([copy_of(gate) for gate in like.way.gates]))


class StagedFork(Fork):
    """A copy of something with pipeline stages.

    Parameters
    ----------
    clock, members, likes, beyond_tokens, keeps
        See `Fork`; all of them have stages.
    """

    def __init__(
        self,
        clock: Clock,
        members: Sequence[Pipeline],
        likes: Sequence[Pipeline],
        beyond_tokens: int,
        keeps: bool,
    ) -> None:
        self._sending = Wake(_nothing_happens)
        super().__init__(clock, members, likes, beyond_tokens, keeps)

    def _likeness(self, member: Replica, beyond_tokens: int) -> Likeness:
        return PipelineLikeness(_pipeline(member), beyond_tokens)

    def send(
        self, view: RequestView, time_ns: int, delay_ns: int, called_now: bool, place: int = -1
    ) -> Request | None:
        """Let a request be sent; see `Fork.send`.

        Notes
        -----
        Decodes that the scheduler need not see go on until something else in the world comes first:
        here that is who sends.
        """
        clock = self.clock
        if time_ns > clock.now:
            clock.at(self._sending, ARRIVAL_PRIORITY, time_ns)
            while clock.next_ns() < time_ns:
                clock.fire()
            clock.fire()  # the first of this instant
        return super().send(view, time_ns, delay_ns, called_now, place)


class PipelineFork(StagedFork):
    """A copy of a pipeline.

    Parameters
    ----------
    like : Pipeline
    beyond_tokens, keeps
        See `Fork`.
    """

    def __init__(self, like: Pipeline, beyond_tokens: int, keeps: bool) -> None:
        clock = Clock()
        super().__init__(clock, [ShadowPipeline(clock, like)], [like], beyond_tokens, keeps)


def _pipeline(replica: Replica) -> Pipeline:
    if not isinstance(replica, Pipeline):
        raise InvariantError(f"replica {replica.index} has no stages")
    return replica


def _nothing_happens(wake: Wake) -> None:
    """Let a request be sent."""
