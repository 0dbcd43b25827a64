"""A copy of a replica with several attention ranks: they step together there, too.

Nobody measures anything in a fork, so that a rank on which nothing happens needs no calls there: it
*coasts*. What its steps have computed is added up when somebody asks, over all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmsim.core.errors import InvariantError
from llmsim.costmodel.contract import PriceLine
from llmsim.serving.clock import FOREVER, Clock
from llmsim.serving.fork import FIRST_TOKEN, Fork, has_token
from llmsim.serving.joint import ticks_ahead
from llmsim.serving.likeness import nobody_hears
from llmsim.serving.meter import NEVER
from llmsim.serving.ranks import Rank, RankGroup
from llmsim.serving.replica import Replica
from llmsim.serving.request import Request
from llmsim.serving.wake import Wake


class ShadowRank(Rank):
    """A rank that takes part in joint stretches without being called while nothing happens to it.

    Attributes
    ----------
    coasts : bool
        Its calls are left out.
    since : int [ticks]
        Joint ticks that its cohort and its KV blocks know of, while it coasts.
    until : int [ticks]
        Joint ticks at which it must be called: somebody has finished, or KV runs out.
    below : int [ticks]
        Its attention is known to be faster than that of the lead before so many joint ticks.
    attention : PriceLine or None
        Of its decodes; None where there are none.
    """

    coasts = False
    since = 0
    until = 0
    below = 0
    attention: PriceLine | None = None

    def enqueue(self, request: Request, called_now: bool = False) -> None:
        """Take in a request that has just arrived here."""
        if self.coasts:
            self._merged = self._group._merged
        super().enqueue(request, called_now)

    def start(self, attention: PriceLine | None) -> None:
        """Coast no more: another rank's state was taken over."""
        self.coasts = False
        self.below = 0
        self.attention = attention

    @property
    def may_coast(self) -> bool:
        """Whether this rank may ever coast: its policy is known to do nothing unless it must."""
        draft = self.draft
        return self._plain and self._steady and draft.keeper is None and draft.swapper is None

    @property
    def quiet(self) -> bool:
        """Whether a call would find nothing to do here but to go on with the same decodes."""
        delivery, draft = self.delivery, self.draft
        if (
            delivery.pending
            or self.line.count
            or delivery.completing
            or draft.late
            or delivery.stalled
            or delivery.leaving
            or delivery.arrived
            or draft.prefilling
            or draft.parked
            or draft.preempted
        ):
            return False
        if not self.cohort.count:
            return not self.running_set
        return draft.decoding and draft.first_need >= 0

    def ticks_left(self) -> int:
        """Return how many ticks can run from here before this rank must be called."""
        cohort = self.cohort
        if not cohort.count:
            return FOREVER
        ticks = cohort.due - cohort.tick
        if self._group._windowed:
            ticks = min(ticks, max(1, cohort.next_saturation() - cohort.tick))
        room = self.ledger.free + self.draft.first_need
        if (ticks // self.config.block_tokens + 1) * cohort.count > room:
            ticks = cohort.ticks_within(room, ticks)
        return ticks

    def coast(self, joint: int) -> None:
        """Need no calls from now on, after so many joint ticks."""
        self.coasts = True
        self.since = joint
        ticks = self.ticks_left()
        self.until = FOREVER if ticks == FOREVER else joint + ticks

    def catch_up(self, joint: int) -> None:
        """Have run up to so many joint ticks, none of which this rank had to be called for."""
        ticks = joint - self.since
        if not self.coasts or not ticks:
            return
        self.since = joint
        cohort, draft = self.cohort, self.draft
        if not cohort.count:
            cohort.advance(ticks, 0)
            return
        first = cohort.block_ring[(cohort.tick + ticks) % self.config.block_tokens]
        more = cohort.blocks_needed(ticks) - draft.first_need + first
        if more:
            self.ledger.take(more)
        draft.first_need = first
        cohort.advance(ticks, cohort.growth(ticks))
        self.delivery.unticked.clear()


class ShadowGroup(RankGroup):
    """Ranks that can be loaded, again and again, with the state of others.

    Parameters
    ----------
    clock : Clock
        Of their own world.
    like : RankGroup
        Whose engine, price and policies they have.
    """

    def __init__(self, clock: Clock, like: RankGroup) -> None:
        first = like.ranks[0]
        # a prompt counts whole in a fork
        config = replace(first.config, prefix_caching=False)
        super().__init__(clock, like.index, like._cost, config, like._round_robin)
        self._shadows: list[ShadowRank] = []
        for rank in like.ranks:
            policy = rank.draft.policy
            shadow = ShadowRank(self, rank.index, rank.pool, config, policy, NEVER, nobody_hears)
            self.add(shadow)
            self._shadows.append(shadow)
        self._coasting = False  # whether ranks may coast
        self._joint = 0  # ticks of joint stretches since the load

    def mirror(self, other: RankGroup, called_now: bool) -> None:
        """Be where another group is, whose ranks have been mirrored; commit to one step."""
        self._asleep = other._asleep
        self._merged = other._merged
        self._call_ns = other._call_ns
        self._front_ns, self._exec_end_ns = other._front_ns, other._exec_end_ns
        self.held = other.held
        self._ticks = other._ticks
        self._gap = other._gap
        self._lead = other._lead
        self._attention = list(other._attention)
        self._turn = other._turn
        self._counts = list(other._counts)
        self._counted = other._counted
        self.price.duration_ns = other.price.duration_ns
        self.stretch.follow(self.ranks[self._lead].cohort)
        self.stretch.mirror(other.stretch)
        self._joint = 0
        self._coasting = all(rank.may_coast for rank in self._shadows)
        for number, rank in enumerate(self._shadows):
            rank.start(self._attention[number] if self._attention else None)
        if not self._asleep:
            self._set_alarm(self._call_ns)
        self.cut(called_now)

    def wake(self, alarm: Wake) -> None:
        """Call all schedulers once: who asks may know enough then."""
        if self.clock.now == self._call_ns and not self._asleep:
            self._call(self._call_ns)
            if not self._asleep:
                self._set_alarm(self._call_ns)

    # --- calls of who does not coast --------------------------------------------------------

    def _call(self, now: int) -> None:
        """Do what `RankGroup` does, but call only ranks on which something happens."""
        if not self._coasting:
            super()._call(now)
            return
        self._merged = False
        shadows = self._shadows
        ticks = self._ticks
        last = self.stretch.run(ticks) if ticks else self._gap
        self._ticks = 0
        self._joint = joint = self._joint + ticks
        lead = shadows[self._lead]
        for rank in shadows:  # the lead last: gaps are worked out from its contexts
            if rank is not lead and (not rank.coasts or joint >= rank.until or rank.line.count):
                self._call_rank(rank, now, ticks, last)
        if lead.coasts and joint < lead.until and not lead.line.count:
            lead.catch_up(joint)
        else:
            self._call_rank(lead, now, ticks, last)
        front = max(self._exec_end_ns, now)
        stepwise = busy = False
        for rank in shadows:
            if rank.coasts:
                busy = busy or rank.cohort.count > 0
                continue
            draft = rank.draft
            if rank.changed:
                self.stretch.anchored = False
                rank.below = 0
                if rank is lead:
                    self._forget()
            idle = not draft.chunks and not rank.decodes
            busy = busy or not idle
            if draft.chunks or draft.first_need < 0 or (rank.cohort.count and idle):
                stepwise = True
        if not busy:
            self._rest(now)
        elif stepwise:
            self._launch_step(front)
        else:
            self._launch_stretch(front)

    def _call_rank(self, rank: ShadowRank, now: int, ticks: int, last_gap_ns: int) -> None:
        """Call a rank after so many ticks of a stretch, in which it may have coasted."""
        if rank.coasts:
            rank.catch_up(self._joint - ticks)
            rank.coasts = False
            rank.start_stretch(self.stretch.front_ns, self._gap)
            rank.run_to(ticks, self._exec_end_ns, now, False)
        rank.call(now, last_gap_ns)

    def _launch_step(self, front: int) -> None:
        for rank in self._shadows:
            rank.catch_up(self._joint)
            rank.coasts = False
        self._forget()
        super()._launch_step(front)

    def _launch_stretch(self, front: int) -> None:
        if not self._coasting:
            super()._launch_stretch(front)
            return
        stretch = self.stretch
        cohort = self._shadows[self._lead].cohort
        if (
            not stretch.anchored
            or cohort.padded > stretch.line.until_tokens
            or not self._still_slowest()
        ):
            self._anchor(front)
        stretch.launch(front)
        self._gap = gap = stretch.gap_ns
        ticks = FOREVER
        for rank in self._shadows:
            if rank.coasts:
                continue
            rank.start_stretch(front, gap)
            if rank.quiet:
                rank.coast(self._joint)
            elif not rank.merges:
                ticks = 1
        if ticks > 1:
            ticks = self._longest()
        self._merged = ticks > 1
        self._run_to(ticks)

    def _tell(self, end: int) -> None:
        for rank in self._shadows:
            if not rank.coasts:
                rank.run_to(self._ticks, end, self._call_ns, self._merged)

    # --- who is the slowest -----------------------------------------------------------------

    def _forget(self) -> None:
        """Know no more how long ranks stay faster than the lead."""
        for rank in self._shadows:
            rank.below = 0

    def _look_ahead(self, rank: ShadowRank, lead: ShadowRank) -> None:
        """Find out for how long a rank's attention stays faster than that of the lead, at least."""
        own, line = lead.attention, rank.attention
        if own is None or line is None:
            return
        rank.catch_up(self._joint)
        cohort = rank.cohort
        ticks = ticks_ahead(own, lead.cohort, line, cohort)
        if line.until_tokens < FOREVER:
            tile = max(1, cohort.tile)
            ticks = min(ticks, (line.until_tokens - cohort.padded) // (tile * cohort.count) * tile)
        rank.below = self._joint + ticks

    def _anchor(self, front: int) -> None:
        if not self._coasting:
            super()._anchor(front)
            return
        shadows = self._shadows
        lead = shadows[self._lead]
        if lead.attention is None or lead.cohort.padded > lead.attention.until_tokens:
            self._forget()
        joint = self._joint
        slowest = -1.0
        found = lead
        for rank in shadows:
            if rank.below > joint and rank is not lead:
                continue
            rank.catch_up(joint)
            cohort = rank.cohort
            rank.attention = None
            if cohort.count:
                rank.attention = line = self._cost.attention_line(cohort.count, cohort.padded)
                time = line.at_ns(cohort.padded, cohort.windowed)
                if time > slowest:
                    slowest = time
                    found = rank
        if found is not lead:
            self._forget()
            self._lead = shadows.index(found)
        for rank in shadows:
            if rank.below <= joint and rank is not found:
                self._look_ahead(rank, found)
        cohort = found.cohort
        self.stretch.follow(cohort)
        batches = [rank.cohort.count for rank in shadows]
        line = self._cost.decode_line(batches, self._lead, cohort.padded)
        drag = self._drag_frac()
        self.stretch.anchor(front, line.slower(drag) if drag else line)

    def _still_slowest(self) -> bool:
        if not self._coasting:
            return super()._still_slowest()
        lead = self._shadows[self._lead]
        own = lead.attention
        if own is None or lead.cohort.padded > own.until_tokens:
            return False
        joint = self._joint
        slowest = own.at_ns(lead.cohort.padded, lead.cohort.windowed)
        for rank in self._shadows:
            line = rank.attention
            if rank.below > joint or rank is lead or line is None:
                continue
            rank.catch_up(joint)
            cohort = rank.cohort
            if (
                cohort.padded > line.until_tokens
                or line.at_ns(cohort.padded, cohort.windowed) > slowest
            ):
                return False
            self._look_ahead(rank, lead)
        return True

    def _longest(self) -> int:
        if not self._coasting:
            return super()._longest()
        joint = self._joint
        lead = self._shadows[self._lead]
        own = lead.attention
        room = lead.ledger.free + lead.draft.first_need
        ticks = self.stretch.longest(room, self._block_tokens)
        for rank in self._shadows:
            left = rank.until - joint if rank.coasts else rank.ticks_left()
            if left < ticks and rank is not lead:
                ticks = left
        for rank in self._shadows:
            line = rank.attention
            if rank is lead or rank.below >= joint + ticks or ticks == 1:
                continue
            if own is not None and line is not None:
                rank.catch_up(joint)
                ticks = self._ahead_of(own, lead.cohort, line, rank.cohort, ticks)
        return ticks


class RankFork(Fork):
    """A copy of a replica with attention ranks.

    Parameters
    ----------
    like : RankGroup
    beyond_tokens, keeps
        See `Fork`.
    """

    def __init__(self, like: RankGroup, beyond_tokens: int, keeps: bool) -> None:
        clock = Clock()
        self._group = ShadowGroup(clock, like)
        super().__init__(clock, self._group.members, like.members, beyond_tokens, keeps)

    def _mirror(self, others: Sequence[Replica], called_now: Sequence[bool]) -> None:
        group = others[0].ranks
        if not isinstance(group, RankGroup):
            raise InvariantError(f"replica {others[0].index} has no ranks that step together")
        self._group.mirror(group, called_now[0])

    def _set_alarms(self) -> None:
        """Leave it to the group, which has one alarm."""

    def token_ns(self, target: Request, which: int, before_ns: int) -> int:
        """Return when a request gets a token; see `Fork.token_ns`."""
        group = self._group
        if self._tiers is not None or group._asleep or self.clock.due() > 1:
            return super().token_ns(target, which, before_ns)
        while not group._asleep:  # nothing but its calls can happen: they need no queue
            now = group._call_ns
            if now > before_ns:
                return FOREVER
            self.clock.jump(now)
            group._call(now)
            if has_token(target, which):
                return target.first_token_ns if which == FIRST_TOKEN else target.last_token_ns
        return FOREVER

    def _taker(self) -> Replica:
        """Return the rank that the front door chooses by what it knows."""
        return self._group.choose()
