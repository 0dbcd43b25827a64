"""Attention ranks of a pipeline: each stage has all ranks, and these step together.

Each rank has a scheduler, a queue, KV and decodes of its own, as in `ranks`, and up to as many
micro-batches in flight as there are stages, as in `pipeline`. What joins them is the micro-batch:
all ranks have a share in each, and its stage ends for all at once, because the experts there wait
for the tokens of all. So shares are planned in one call, when the oldest micro-batch has come out,
and a rank that finds nobody to plan has a dummy batch in it.

References
----------
SGLang's ``event_loop_pp`` agrees upon every micro-batch between the ranks and gives an idle batch
to those without any (``prepare_mlp_sync_batch``). vLLM's ranks are engines whose n-th passes meet
at the experts; one that finds nobody waits for its oldest before it runs its dummy batch
(``DPEngineCoreProc.run_busy_loop``), which holds up the others: not so here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmsim.core.errors import InvariantError
from llmsim.costmodel.contract import RankLoad, StagedJointCost
from llmsim.policies.batching import BatchingPolicy
from llmsim.serving.clock import Clock
from llmsim.serving.cohort import FOREVER
from llmsim.serving.config import EngineConfig
from llmsim.serving.gate import Gate
from llmsim.serving.joint import StagedJointPrice
from llmsim.serving.lockstep import Lockstep
from llmsim.serving.microbatch import Slot
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.request import Request
from llmsim.serving.slowed import slowed_ns


class PipelineRank(Pipeline):
    """One attention rank of a pipeline, whose clock is its group's.

    Parameters
    ----------
    group : PipelineGroup
    index, pool, config, policy, itl_slo_ns, on_end
        As for `Pipeline`; what micro-batches cost is the group's affair.

    Notes
    -----
    The first rank keeps the time of the stations, which all ranks pass together.
    """

    def __init__(
        self,
        group: PipelineGroup,
        index: int,
        pool: int,
        config: EngineConfig,
        policy: BatchingPolicy,
        itl_slo_ns: int,
        on_end: Callable[[Request, str, int], None],
    ) -> None:
        super().__init__(group.clock, index, pool, group.price, config, policy, itl_slo_ns, on_end)
        self._group = group
        self.ranks = group
        self.turn = group.index
        if group.members:
            self.station_names = ()
            self.busy_ns = []

    def _call_at(self, time_ns: int) -> None:
        self._group.call_at(time_ns)

    # --- for the group ----------------------------------------------------------------------

    def doze(self, asleep: bool) -> None:
        """Note that the group sleeps, or no longer does."""
        self._asleep = asleep

    @property
    def drag_frac(self) -> float:
        """By how much transfers lengthen what this rank computes at each stage."""
        return self._drag

    def slow_down(self, drag_frac: float) -> None:
        """Let every micro-batch that is sent from now on take that much longer at each stage."""
        self._drag = drag_frac

    def lose(self, slot: Slot, now: int) -> None:
        """Lose what a micro-batch holds that has come out, and what is in none."""
        self.enter(slot)
        slot.delivery.failing = True
        slot.delivery.settle(now, now)

    def open_gate(self) -> None:
        """Have the group look whether what its micro-batches wait for has come."""
        self._group.open_gate()

    def hold(self, slot: Slot, now: int) -> None:
        """Take part in a micro-batch that is sent now, whose way is not settled yet."""
        self._way(slot, now, [], 0)
        slot.end_ns = FOREVER
        self._front_ns = now
        self._record(now)

    def settle(self, slot: Slot, end: int) -> None:
        """Account for a micro-batch that has waited, and comes out at `end` [ns]."""
        self._settle_until(slot, slot.way, end)
        slot.account()

    def note(self, now: int) -> None:
        """Tell the recorder of a call in which nothing was planned, if there is one."""
        self._record(now)

    def load(self, slot: Slot) -> RankLoad:
        """Return this rank's share in a micro-batch that has been planned."""
        draft, cohort = slot.draft, slot.cohort
        count = cohort.count if draft.decoding else 0
        slices = [(tokens, past) for _, tokens, past in draft.chunks]
        padded = cohort.padded if count else 0
        windowed = cohort.windowed if count else 0
        return RankLoad(slices, count, padded, windowed, count + draft.logits)

    def repeats(self, slot: Slot) -> bool:
        """Whether the scheduler would plan this rank's share again, be it nobody."""
        if slot.cohort.count:
            return super().repeats(slot)
        return slot.seen == self._changes and not self.loose

    def _seen(self, slot: Slot) -> int:
        """Return which changes the scheduler knows of, if it would plan the same again."""
        seen = super()._seen(slot)
        # a policy that wants to be asked again counts ticks, and here are none
        counts = slot.draft.most_ticks < FOREVER and not slot.cohort.count
        return -1 if counts else seen

    def share(self, slot: Slot) -> RankLoad:
        """Return this rank's share in a micro-batch of decodes that goes round again."""
        cohort = slot.cohort
        count = cohort.count
        if not count:
            return RankLoad([], 0, 0, 0, 0)
        return RankLoad([], count, cohort.padded, cohort.windowed, count)

    def go_round(self, slot: Slot, now: int, end: int) -> None:
        """Take part in a micro-batch that goes round again, from now until `end` [ns]."""
        if slot.cohort.count:
            self.repeat(slot, now, end, 0)
        else:
            self.sent(slot, now, end, 0)


class Held:
    """A micro-batch whose way may have to wait for KV.

    Attributes
    ----------
    number : int
    enters_ns : int [ns]
    times : list of int (stations,) [ns]
    gates : tuple of Gate
        Of all ranks.
    """

    __slots__ = ("enters_ns", "gates", "number", "times")

    def __init__(
        self, number: int, enters_ns: int, times: list[int], gates: tuple[Gate, ...]
    ) -> None:
        self.number = number
        self.enters_ns = enters_ns
        self.times = times
        self.gates = gates


def still_come(gates: tuple[Gate, ...]) -> bool:
    """Whether something has yet to come."""
    for gate in gates:  # noqa: SIM110  # not through a generator
        if gate.ended_ns < 0:
            return True
    return False


class PipelineGroup(Lockstep):
    """The attention ranks of a pipeline, which have a share in every micro-batch.

    Parameters
    ----------
    clock, index, round_robin
        As for `Lockstep`.
    cost : StagedJointCost

    Attributes
    ----------
    ranks : list of PipelineRank
        Its members.
    """

    def __init__(self, clock: Clock, index: int, cost: StagedJointCost, round_robin: bool) -> None:
        super().__init__(clock, index, round_robin)
        self.ranks: list[PipelineRank] = []
        self._cost = cost
        self.price = StagedJointPrice(cost)
        self._most = cost.stages
        self._slowed = [name.startswith("stage") for name in cost.names]
        self._end_ns = [-1] * cost.stages  # of each micro-batch; -1 while it is not in flight
        self._flying: deque[int] = deque()
        self._held: deque[Held] = deque()  # those in flight whose way waits for KV

    def add(self, rank: PipelineRank) -> None:
        """Take in one more rank, in order of index."""
        self.ranks.append(rank)
        self.members.append(rank)

    def alone_ns(self, tokens: int, past: int) -> int:
        """Return what a micro-batch takes with some tokens of one prompt on one rank [ns]."""
        idle = [RankLoad([], 0, 0, 0, 0) for _ in self.ranks[1:]]
        return self._cost.step_ns([RankLoad([(tokens, past)], 0, 0, 0, 1), *idle])

    # --- the call ---------------------------------------------------------------------------

    def _doze(self, asleep: bool) -> None:
        """Tell all ranks that they sleep, or no longer do."""
        for rank in self.ranks:
            rank.doze(asleep)

    def _call(self, now: int) -> None:
        """Take in the micro-batch that has come out, if one has, and launch as many as may be."""
        now = self._go_on(now)
        if now < 0:
            return
        flying, ranks = self._flying, self.ranks
        if flying and self._end_ns[flying[0]] <= now:
            number = flying.popleft()
            self._end_ns[number] = -1
            for rank in ranks:
                rank.come_out(rank.slots[number])
        else:
            number = self._idle()
        for rank in ranks:
            rank.events += 1
            if rank.failing:
                rank.lose(rank.slots[number], now)
                rank.failing = len(flying) > 0
        if ranks[0].failing:  # all do, and nothing is sent before all has come out
            self._call_ns = self._end_ns[flying[0]]
            return
        settles = True
        while self._plan(number, now, settles):
            if len(flying) == self._most:
                break
            settles = self._end_ns[number] < 0  # seats that were lost may go to others
            if not settles:
                number = self._idle()
        if flying:
            self._call_ns = self._end_ns[flying[0]]
            return
        for rank in ranks:
            rank.rest()
        self._asleep = True

    def _plan(self, number: int, now: int, settles: bool) -> bool:
        """Let all ranks plan their shares of a micro-batch, and launch it if there are any.

        Returns
        -------
        bool
            Whether there may be more to plan: it was launched, or somebody lost its KV.
        """
        planned = lost = False
        for rank in self.ranks:
            slot = rank.slots[number]
            rank.enter(slot)
            if settles:
                slot.delivery.settle(now, now)
        for rank in self.ranks:
            slot = rank.slots[number]
            planned = rank.plan(slot, now) or planned
            lost = lost or len(slot.draft.preempted) > 0
        if planned:
            loads = [rank.load(rank.slots[number]) for rank in self.ranks]
            end = self._launch(number, now, loads)
            for rank in self.ranks:
                if end == FOREVER:
                    rank.hold(rank.slots[number], now)
                else:
                    rank.sent(rank.slots[number], now, end, 0)
        for rank in self.ranks:
            if lost and not planned:
                rank.note(now)
            rank.leave(rank.slots[number])
        return planned or lost

    def _launch(self, number: int, now: int, loads: list[RankLoad]) -> int:
        """Send a micro-batch into the pipeline; return when it comes out [ns].

        Not known, and `FOREVER`, while it waits for KV of any rank, or is behind one that does.
        """
        times = self._cost.station_ns(loads)
        drag = 0.0
        for rank in self.ranks:  # all wait for the rank with most transfers
            if rank.drag_frac > drag:
                drag = rank.drag_frac
        if drag:
            times = slowed_ns(times, self._slowed, drag)
        self._flying.append(number)
        gates = self._gates()
        if self._held or (gates and still_come(gates)):
            self._held.append(Held(number, now, times, gates))
            self._end_ns[number] = FOREVER
            return FOREVER
        end = self.ranks[0].pass_stations(now, times, gates)
        self._end_ns[number] = end
        return end

    def _gates(self) -> tuple[Gate, ...]:
        """Return, and forget, what the micro-batch that is launched next has to wait for."""
        found: tuple[Gate, ...] = ()
        for rank in self.ranks:
            gates = rank.draft.gates
            if gates:
                found += tuple(gates)
                gates.clear()
        return found

    def open_gate(self) -> None:
        """Settle the way of those that have waited for what has come now."""
        held, flying = self._held, self._flying
        while held and not still_come(held[0].gates):
            way = held.popleft()
            end = self.ranks[0].pass_stations(way.enters_ns, way.times, way.gates)
            self._end_ns[way.number] = end
            for rank in self.ranks:
                rank.settle(rank.slots[way.number], end)
        if self._call_ns == FOREVER and flying and self._end_ns[flying[0]] < FOREVER:
            self.call_at(max(self._end_ns[flying[0]], self.clock.now))

    def _go_on(self, now: int) -> int:
        """Let micro-batches go round again that all schedulers would plan alike.

        Returns
        -------
        int [ns]
            When the schedulers must be called; -1 if something else in the world comes first.
        """
        flying, clock, ranks = self._flying, self.clock, self.ranks
        while flying:
            number = flying[0]
            if self._held:
                return now
            for rank in ranks:
                if not rank.repeats(rank.slots[number]):
                    return now
            flying.popleft()
            end = self._launch(number, now, [rank.share(rank.slots[number]) for rank in ranks])
            for rank in ranks:
                rank.go_round(rank.slots[number], now, end)
            self._call_ns = now = self._end_ns[flying[0]]
            if not clock.idle_until(now):
                return -1
            clock.jump(now)
        return now

    def _idle(self) -> int:
        for number, end in enumerate(self._end_ns):
            if end < 0:
                return number
        raise InvariantError(f"replica {self.index} has no micro-batch left")
