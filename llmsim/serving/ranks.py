"""Attention ranks: replicas of one engine that step together.

Each rank has a queue, KV and decodes of its own, and its own scheduler; their steps begin and end
together, because the experts they share wait for the tokens of all. So a group has one clock: one
call plans for all ranks, one price holds for all, and a stretch of decode steps lasts until the
first rank has something to decide or another rank's attention becomes the slowest.
"""

from __future__ import annotations

from collections.abc import Callable

from llmsim.core.integers import rounded
from llmsim.costmodel.contract import JointCost, PriceLine, RankLoad
from llmsim.policies.answers import nothing_planned
from llmsim.policies.batching import BatchingPolicy
from llmsim.serving.clock import FOREVER, Clock
from llmsim.serving.cohort import Cohort
from llmsim.serving.config import EngineConfig
from llmsim.serving.joint import JointPrice, RankStretch, ticks_ahead
from llmsim.serving.lockstep import Lockstep
from llmsim.serving.replica import Replica
from llmsim.serving.request import Request
from llmsim.serving.stretch import Stretch


class Rank(Replica):
    """One attention rank: a replica whose clock is its group's.

    Parameters
    ----------
    group : RankGroup
    index, pool, config, policy, itl_slo_ns, on_end
        As for `Replica`; what steps cost is the group's affair.
    """

    def __init__(
        self,
        group: RankGroup,
        index: int,
        pool: int,
        config: EngineConfig,
        policy: BatchingPolicy,
        itl_slo_ns: int,
        on_end: Callable[[Request, str, int], None],
    ) -> None:
        view = group.view()
        super().__init__(
            group.clock,
            index,
            pool,
            group.price,
            config,
            policy,
            itl_slo_ns,
            on_end,
            stretch=view,
        )
        view.follow(self.cohort)
        self._view = view
        self._group = group
        self.ranks = group
        self.turn = group.index

    @property
    def merges(self) -> bool:
        """Whether the next decode steps of this rank may run without a call in between."""
        delivery, draft = self.delivery, self.draft
        return self._steady and not (
            (delivery.pending or delivery.stalled or draft.late or draft.blocked_on_writer)
            or (delivery.arrived and draft.has_seat())
        )

    @property
    def decodes(self) -> int:
        """Requests that decode in the step that has been drafted."""
        return self.cohort.count if self.draft.decoding else 0

    @property
    def changed(self) -> bool:
        """Whether other requests decode here than when the price was last fixed."""
        return not self._view.anchored or len(self.draft.preempted) > 0

    def _price_step(
        self, slices: list[tuple[int, int]], decode: int, padded: int, windowed: int, rows: int
    ) -> int:
        """Return what the group has priced, drag included [ns]."""
        return self._group.price.duration_ns

    def _call_at(self, time_ns: int) -> None:
        self._group.call_at(time_ns)

    def _cut(self, called_now: bool) -> None:
        self._group.cut(called_now)

    def _launch(self, now: int) -> None:
        """Leave it to the group, once all ranks have planned."""

    # --- for the group ----------------------------------------------------------------------

    def doze(self, asleep: bool) -> None:
        """Note that the group sleeps, or no longer does."""
        self._asleep = asleep
        self._merged = False

    def call(self, now: int, last_gap_ns: int) -> None:
        """Account for the work that has run, deliver, and draft the next step."""
        self._view.last_gap_ns = last_gap_ns
        self._call(now)

    def load(self) -> RankLoad:
        """Return what this rank computes in the step that has been drafted."""
        draft, cohort = self.draft, self.cohort
        count = self.decodes
        slices = [(tokens, past) for _, tokens, past in draft.chunks]
        padded = cohort.padded if count else 0
        windowed = cohort.windowed if count else 0
        return RankLoad(slices, count, padded, windowed, count + draft.logits)

    def start_step(self, front: int) -> None:
        """Take part in a joint step that is no part of a stretch."""
        self._front_ns = front
        self._launch_step(front)

    def _end_step(self, front: int) -> None:
        """End the launch of a step, unless it waits for what another rank needs."""
        if self._group.held:
            self._exec_end_ns = front
            self._call_ns = FOREVER
        else:
            super()._end_step(front)

    def open_gate(self) -> None:
        """Have the group look whether all that its step waits for has come."""
        self._group.open_gate()

    def end_held(self, front: int, gap: int) -> None:
        """Take part in a joint step that has waited, and takes so long with that [ns]."""
        self._gap = gap
        self._end_step(front)

    def start_stretch(self, front: int, gap: int) -> None:
        """Take part in a joint stretch of decode steps."""
        self._front_ns = front
        self._gap = gap
        self._prefill_tokens = 0
        self._kv_used = self._kv_blocks - self.ledger.free
        self._view.anchored = True

    def run_to(self, ticks: int, end: int, call: int, merged: bool) -> None:
        """Run `ticks` ticks of a stretch that end at `end`; be called at `call` [ns].

        What comes in before may cut the stretch if it is `merged`.
        """
        self._ticks = ticks
        self._merged = merged
        self._exec_end_ns = end
        self._call_ns = call

    def record(self) -> None:
        """Tell the recorder of the call, if there is one."""
        if self.recorder is not None:
            self._record(self.draft.now)


class RankGroup(Lockstep):
    """The attention ranks of one replica, which take one step after another.

    Parameters
    ----------
    clock, index, round_robin
        As for `Lockstep`.
    cost : JointCost
    config : EngineConfig
        Of each rank.

    Attributes
    ----------
    ranks : list of Rank
        Its members.
    stretch : Stretch
        Of all ranks; it follows the cohort of the slowest.
    held : bool
        The joint step waits for KV that some rank needs, and all with it.
    """

    def __init__(
        self, clock: Clock, index: int, cost: JointCost, config: EngineConfig, round_robin: bool
    ) -> None:
        super().__init__(clock, index, round_robin)
        self.ranks: list[Rank] = []
        self._cost = cost
        self._lookahead = config.lookahead
        self._block_tokens = config.block_tokens
        self._windowed = cost.window_tokens > 0
        idle = Cohort(cost.context_tile, config.block_tokens, cost.window_tokens)
        self.price = JointPrice(cost)
        self.stretch = Stretch(idle, self._windowed)
        self._idle = idle
        self._lead = 0
        self._attention: list[PriceLine | None] = []
        self._merged = self.held = False
        self._front_ns = self._exec_end_ns = 0
        self._ticks = 0
        self._gap = 0

    def add(self, rank: Rank) -> None:
        """Take in one more rank, in order of index."""
        self.ranks.append(rank)
        self.members.append(rank)

    def view(self) -> RankStretch:
        """Return what one more rank sees of the joint stretch."""
        return RankStretch(self.stretch, self._idle, self._windowed)

    # --- from outside -----------------------------------------------------------------------

    def alone_ns(self, tokens: int, past: int) -> int:
        """Return what a joint step takes with some tokens of one prompt on one rank [ns]."""
        idle = [RankLoad([], 0, 0, 0, 0) for _ in self.ranks[1:]]
        return self._cost.step_ns([RankLoad([(tokens, past)], 0, 0, 0, 1), *idle])

    def cut(self, called_now: bool) -> None:
        """End the stretch under way at the first call that can see what has just happened."""
        if not self._merged:
            return
        self._merged = False
        now = self.clock.now + called_now
        ticks = self.stretch.ticks_before(now, self._ticks, self._lookahead)
        sooner = ticks < self._ticks
        self._run_to(ticks)
        if sooner:
            self._set_alarm(self._call_ns)

    # --- the call ---------------------------------------------------------------------------

    def _doze(self, asleep: bool) -> None:
        """Tell all ranks that they sleep, or no longer do."""
        for rank in self.ranks:
            rank.doze(asleep)

    def _call(self, now: int) -> None:
        """One call of all schedulers at time `now` [ns]."""
        self._merged = False
        members = self.ranks
        last = self.stretch.run(self._ticks) if self._ticks else self._gap
        self._ticks = 0
        lead = members[self._lead]
        for rank in members:  # the lead last: gaps are worked out from its contexts
            if rank is not lead:
                rank.call(now, last)
        lead.call(now, last)
        front = max(self._exec_end_ns, now)
        stepwise = busy = waits = False
        for rank in members:
            draft = rank.draft
            if rank.changed:
                self.stretch.anchored = False
            idle = not draft.chunks and not rank.decodes
            busy = busy or not idle
            waits = waits or (len(draft.gates) > 0 and draft.holds_step())
            if draft.chunks or draft.first_need < 0 or (rank.cohort.count and idle):
                stepwise = True
        self.held = busy and waits
        if not busy:
            self._rest(now)
        elif stepwise or waits:
            self._launch_step(front)
        else:
            self._launch_stretch(front)
        if busy:
            for rank in members:
                rank.record()

    def _rest(self, now: int) -> None:
        """Nothing was planned: wait for work in flight, or sleep."""
        self.stretch.anchored = False
        members = self.ranks
        preempted = any(rank.draft.preempted for rank in members)
        if self._exec_end_ns > now:
            self._call_ns = self._exec_end_ns
        elif preempted:
            self._call_ns = now
        else:
            for rank in members:
                if (rank.running or rank.port.somebody_waits()) and not rank.port.expected:
                    who = f"rank {rank.index}"
                    raise nothing_planned(rank.draft.policy, who, rank.running, rank.waiting)
            self._asleep = True
            self._doze(True)
            return
        for rank in members:
            rank.record()

    def _launch_step(self, front: int) -> None:
        """One joint step with prefill chunks, or one that was put together request by request."""
        duration = self._cost.step_ns([rank.load() for rank in self.ranks])
        drag = self._drag_frac()
        if drag:
            duration = rounded(duration * (1 + drag))
        self.price.duration_ns = duration
        self.stretch.anchored = False
        self._gap = duration
        self._front_ns = self._exec_end_ns = front
        self._call_ns = FOREVER
        if not self.held:
            self._end_step()
        for rank in self.ranks:
            rank.start_step(front)

    def _end_step(self) -> None:
        """Note when the joint step ends, and the next call is."""
        self._exec_end_ns = end = self._front_ns + self._gap
        self._call_ns = self._front_ns if self._lookahead else end

    def open_gate(self) -> None:
        """End the launch of a joint step that had to wait, if all that it waited for has come."""
        if not self.held or any(rank.draft.holds_step() for rank in self.ranks):
            return
        self.held = False
        front, gap = self._front_ns, self._gap
        for rank in self.ranks:  # layers of all go on together
            if rank.draft.gates:
                self._gap = max(self._gap, rank.draft.gated_end_ns(front, gap) - front)
        self._end_step()
        for rank in self.ranks:
            rank.end_held(front, self._gap)
        self.call_at(max(self._call_ns, self.clock.now))

    def _launch_stretch(self, front: int) -> None:
        """Joint decode steps, as many as can run before something changes."""
        stretch = self.stretch
        members = self.ranks
        cohort = members[self._lead].cohort
        if (
            not stretch.anchored
            or cohort.padded > stretch.line.until_tokens
            or not self._still_slowest()
        ):
            self._anchor(front)
        stretch.launch(front)
        gap = stretch.gap_ns
        ticks = 2**62 - 1
        for rank in members:
            rank.start_stretch(front, gap)
            if not rank.merges:
                ticks = 1
        if ticks > 1:
            ticks = self._longest()
        self._merged = ticks > 1
        self._run_to(ticks)

    def _run_to(self, ticks: int) -> None:
        """Let the stretch be `ticks` ticks long."""
        stretch = self.stretch
        self._ticks = ticks
        self._exec_end_ns = end = stretch.end_ns(ticks)
        self._call_ns = end
        if self._lookahead:
            self._call_ns = stretch.start_of_last_ns() if ticks > 1 else stretch.front_ns
        self._tell(end)

    def _tell(self, end: int) -> None:
        """Let all ranks know how long the stretch is that ends at `end` [ns]."""
        for rank in self.ranks:
            rank.run_to(self._ticks, end, self._call_ns, self._merged)

    # --- who is the slowest -----------------------------------------------------------------

    def _anchor(self, front: int) -> None:
        """Find the slowest rank and price the steps by its contexts."""
        self._attention = []
        slowest = -1.0
        for number, rank in enumerate(self.ranks):
            cohort = rank.cohort
            if not cohort.count:
                self._attention.append(None)
                continue
            line = self._cost.attention_line(cohort.count, cohort.padded)
            self._attention.append(line)
            time = line.at_ns(cohort.padded, cohort.windowed)
            if time > slowest:
                slowest = time
                self._lead = number
        cohort = self.ranks[self._lead].cohort
        self.stretch.follow(cohort)
        batches = [rank.cohort.count for rank in self.ranks]
        line = self._cost.decode_line(batches, self._lead, cohort.padded)
        drag = self._drag_frac()
        self.stretch.anchor(front, line.slower(drag) if drag else line)

    def _drag_frac(self) -> float:
        """Return by how much transfers lengthen a step: all wait for the rank with most of them."""
        most = 0.0
        for rank in self.ranks:
            if rank._drag > most:
                most = rank._drag
        return most

    def _still_slowest(self) -> bool:
        """Whether no rank's attention has become slower than that of the one in the lead."""
        lead = self._attention[self._lead]
        if lead is None:
            return False
        cohort = self.ranks[self._lead].cohort
        slowest = lead.at_ns(cohort.padded, cohort.windowed)
        for line, rank in zip(self._attention, self.ranks, strict=True):
            cohort = rank.cohort
            if line is not None and (
                cohort.padded > line.until_tokens
                or line.at_ns(cohort.padded, cohort.windowed) > slowest
            ):
                return False
        return True

    def _longest(self) -> int:
        """Return how many ticks can run before a rank must decide, or another is the slowest."""
        size = self._block_tokens
        lead = self.ranks[self._lead]
        ticks = self.stretch.longest(lead.ledger.free + lead.draft.first_need, size)
        for rank in self.ranks:
            cohort = rank.cohort
            ticks = min(ticks, rank.draft.most_ticks)  # until its policy wants to be asked again
            if rank is lead or not cohort.count:
                continue
            ticks = min(ticks, cohort.due - cohort.tick)
            if self._windowed:
                ticks = min(ticks, max(1, cohort.next_saturation() - cohort.tick))
            room = rank.ledger.free + rank.draft.first_need
            if (ticks // size + 1) * cohort.count > room:
                ticks = cohort.ticks_within(room, ticks)
        own = self._attention[self._lead]
        for line, rank in zip(self._attention, self.ranks, strict=True):
            if rank is not lead and line is not None and own is not None and ticks > 1:
                ticks = self._ahead_of(own, lead.cohort, line, rank.cohort, ticks)
        return ticks

    def _ahead_of(
        self, own: PriceLine, lead: Cohort, line: PriceLine, other: Cohort, ticks: int
    ) -> int:
        """Return for how many of the next `ticks` ticks the lead stays the slower of two."""
        if (
            other.padded + other.growth(ticks - 1) <= line.until_tokens
            and ticks_ahead(own, lead, line, other) >= ticks
        ):
            return ticks
        first, second = lead.padded, other.padded
        first_windowed, second_windowed = lead.windowed, other.windowed
        for step in range(1, ticks):
            first += lead.growth_at(step)
            second += other.growth_at(step)
            first_windowed += lead.windowed_growth_at(step)
            second_windowed += other.windowed_growth_at(step)
            if second > line.until_tokens or line.at_ns(second, second_windowed) > own.at_ns(
                first, first_windowed
            ):
                return step
        return ticks
