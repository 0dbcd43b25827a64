"""A copy of a replica in a world of its own: what would become of a request that it got now.

The copy is a replica like any other: the same cohort, the same closed forms, the same scheduler, so
that it does what the real one would do. It differs in what is believed: requests end where they
are believed to end, nothing else arrives, and nobody hears of it. Nothing of the real replica is
written to, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmsim.kvcache import CountLedger
from llmsim.policies.views import RequestView
from llmsim.serving.clock import ARRIVAL_PRIORITY, FOREVER, Clock
from llmsim.serving.fork_tiers import ShadowTiers
from llmsim.serving.likeness import Likeness, blank, nobody_hears
from llmsim.serving.meter import NEVER
from llmsim.serving.replica import Replica
from llmsim.serving.request import FINISHING, Request
from llmsim.serving.wake import Wake

FIRST_TOKEN: Final = 0
LAST_TOKEN: Final = 1


class Shadow(Replica):
    """A replica that can be loaded, again and again, with the state of another.

    Parameters
    ----------
    clock : Clock
        Of its own world.
    like : Replica
        Whose engine, price and policy it has.
    """

    def __init__(self, clock: Clock, like: Replica) -> None:
        config = like.config
        super().__init__(
            clock,
            like.index,
            like.pool,
            like.cost,
            config,
            blank(like),
            NEVER,
            nobody_hears,
            None,
            CountLedger(config.kv_blocks, config.block_tokens),
        )

    def wake(self, alarm: Wake) -> None:
        """Call the scheduler once: who asks may know enough then."""
        if self.clock.now == self._call_ns and not self._asleep:
            self._call(self._call_ns)
            if not self._asleep:
                self._call_at(self._call_ns)


class Fork:
    """A copy of what stands behind a door of the fleet, in a world of its own.

    Parameters
    ----------
    clock : Clock
        Of that world.
    members : list of Replica
        Shadows of all replicas behind the door, the door's own first.
    beyond_tokens : int [tokens]
        Who has had all the tokens that it was believed to get is believed to get so many more.
    likes : sequence of Replica
        Whom the members are like, in the same order.
    keeps : bool
        They go on between a load and what is asked then: nothing of them may be looked up later.
    """

    def __init__(
        self,
        clock: Clock,
        members: Sequence[Replica],
        likes: Sequence[Replica],
        beyond_tokens: int,
        keeps: bool,
    ) -> None:
        self.clock = clock
        self.members = list(members)
        self.likenesses = [self._likeness(member, beyond_tokens) for member in members]
        self._tiers: ShadowTiers | None = None
        first = likes[0].draft
        if first.keeper is not None or first.swapper is not None:
            self._tiers = ShadowTiers(clock, self.likenesses, likes)
        self._keeps = keeps

    # --- taking over ------------------------------------------------------------------------

    def _likeness(self, member: Replica, beyond_tokens: int) -> Likeness:
        """Return a member's way to the state of whom it is like."""
        return Likeness(member, beyond_tokens)

    def load(
        self,
        others: Sequence[Replica],
        now: int,
        called_now: Sequence[bool],
        believed: bool = False,
    ) -> None:
        """Be other replicas as they are now [ns], with believed lengths in place of true ones.

        Parameters
        ----------
        others : sequence of Replica
            In the order of `members`.
        now : int [ns]
        called_now : sequence of bool
            Whose turn to be called at this instant has passed.
        believed : bool
            They are shadows: their lengths are believed already.
        """
        self.clock.restart(now)
        for likeness, other in zip(self.likenesses, others, strict=True):
            likeness.mirror(other)
        self._mirror(others, called_now)
        for likeness, other in zip(self.likenesses, others, strict=True):
            likeness.settle(other, believed)
        if self._tiers is not None:
            self._tiers.load(others, believed, self._keeps)
        self._set_alarms()

    def _mirror(self, others: Sequence[Replica], called_now: Sequence[bool]) -> None:
        """Take over what is no replica's own, and commit to no more than is under way."""
        for member, called in zip(self.members, called_now, strict=True):
            member.cut(called)

    def _set_alarms(self) -> None:
        """Let everything happen that is due."""
        for member in self.members:
            if not member._asleep:
                member._call_at(member._call_ns)

    def present(self) -> set[int]:
        """Return the numbers of the requests that were here when this was loaded."""
        return {request.view.index for likeness in self.likenesses for request in likeness.clones}

    # --- what would become of it ------------------------------------------------------------

    def send(
        self, view: RequestView, time_ns: int, delay_ns: int, called_now: bool, place: int = -1
    ) -> Request | None:
        """Let a request be sent, with its believed length; None: it never fits.

        Parameters
        ----------
        view : RequestView
        time_ns : int [ns]
            When it is sent; everything up to then happens before.
        delay_ns : int [ns]
            How long it is under way.
        called_now : bool
            Its replica's turn to be called at the instant of arrival has passed.
        place : int
            Which of the members it goes to; -1 for the one that the front door would choose.
        """
        clock = self.clock
        while clock.next_ns() < time_ns:
            clock.fire()
        clock.jump(time_ns)
        member = self._taker() if place < 0 else self.members[place]
        target = Request(view, 1)
        target.output = self.likenesses[0].within(target, max(1, view.believed_tokens))
        if target.output < 1:
            return None
        if not delay_ns:
            member.enqueue(target, called_now)
            return target

        def arrive(_: Wake) -> None:
            member.enqueue(target, False)

        clock.at(Wake(arrive), ARRIVAL_PRIORITY, time_ns + delay_ns)
        return target

    def _taker(self) -> Replica:
        """Return who gets the next request."""
        return self.members[0]

    def token_ns(self, target: Request, which: int, before_ns: int) -> int:
        """Return when a request that was sent gets its first or last token [ns].

        Parameters
        ----------
        target : Request
        which : int
            `FIRST_TOKEN` or `LAST_TOKEN`.
        before_ns : int [ns]
            Look no further: a later time may be returned as `FOREVER`.
        """
        clock = self.clock
        while True:
            now = clock.next_ns()
            if now > before_ns or now == FOREVER:
                return FOREVER
            clock.fire()
            if has_token(target, which):
                return target.first_token_ns if which == FIRST_TOKEN else target.last_token_ns


class ReplicaFork(Fork):
    """A copy of a replica with GPUs of its own.

    Parameters
    ----------
    like : Replica
    beyond_tokens, keeps
        See `Fork`.
    """

    def __init__(self, like: Replica, beyond_tokens: int, keeps: bool) -> None:
        clock = Clock()
        super().__init__(clock, [Shadow(clock, like)], [like], beyond_tokens, keeps)

    def token_ns(self, target: Request, which: int, before_ns: int) -> int:
        """Return when a request gets a token; see `Fork.token_ns`."""
        member = self.members[0]
        if self._tiers is not None or member._asleep or self.clock.due() > 1:
            return super().token_ns(target, which, before_ns)
        while not member._asleep:  # nothing but its calls can happen: they need no queue
            now = member._call_ns
            if now > before_ns:
                return FOREVER
            self.clock.jump(now)
            member._call(now)
            if has_token(target, which):
                return target.first_token_ns if which == FIRST_TOKEN else target.last_token_ns
        return FOREVER


def has_token(target: Request, which: int) -> bool:
    """Whether it is settled when a request gets its first or its last token."""
    if which == FIRST_TOKEN:
        return target.first_token_ns >= 0
    return target.ended or target.state == FINISHING
