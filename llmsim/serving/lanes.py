"""Lanes: replicas that share GPUs and one KV pool, each with steps of its own.

One lane computes prompts, another decodes; both run at the same time, each limited to a share of
the SMs. KV stays where it is when a request goes over. What one lane runs slows the other down as
soon as both together ask for more SMs or bandwidth than there are (`llmsim.costmodel.lanes`), so
the pace of each changes whenever the other starts or ends a step. Work under way goes on at the
new pace from that instant; of a merged stretch, the steps that have run are booked and the one
under way becomes a step of its own, as it is without fast-forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsim.core.errors import InvariantError
from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S, seconds_to_ns
from llmsim.costmodel.contract import PriceLine, StepCost
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.lanes import IDLE, LaneUse, Use, pace_of
from llmsim.costmodel.roofline import RooflineCost
from llmsim.policies.sharing import LanesView, SharingPolicy
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.replica import Replica
from llmsim.serving.request import LOADING, Request
from llmsim.serving.wake import Wake


@dataclass(frozen=True, slots=True)
class LaneLevel:
    """A lane at one share of the SMs.

    Parameters
    ----------
    cost : StepCost
        Of its steps when nothing else runs.
    use : LaneUse
    energy : ActiveEnergy or None
    """

    cost: StepCost
    use: LaneUse
    energy: ActiveEnergy | None


@dataclass(frozen=True, slots=True)
class LanePlan:
    """How the replicas of a pool share GPUs with those of another.

    Parameters
    ----------
    on : int or None
        Index of the pool whose GPUs they run on; None for their own.
    level : callable
        Returns what steps cost and take at a share of the SMs.
    share_frac : float
    sharing : callable or None
        Returns a fresh policy that sets the shares of a device; of the pool that has `beside`.
    ttft_slo_s, tpot_slo_s : float [s]
        What that policy may know of the objectives.
    """

    on: int | None
    level: Callable[[float], LaneLevel]
    share_frac: float
    sharing: Callable[[], SharingPolicy] | None = None
    ttft_slo_s: float = math.inf
    tpot_slo_s: float = math.inf


class Device:
    """The GPUs that lanes share.

    Attributes
    ----------
    lanes : list of Lane
        In order of their indices.
    control : SharesControl or None
        Who changes their shares.
    """

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.control: SharesControl | None = None

    def join(self, lane: Lane) -> None:
        """Add a lane, whose ledger is that of the lanes before it."""
        if self.lanes and lane.ledger is not self.lanes[0].ledger:
            raise InvariantError(f"lane {lane.index} has KV blocks of its own")
        self.lanes.append(lane)
        lane.device = self
        for each in self.lanes:
            each.port.sharers = list(self.lanes)

    def book(self, caller: Lane) -> None:
        """Book the KV blocks that the steps of all other lanes have taken by now."""
        for lane in self.lanes:
            if lane is not caller:
                lane.port.book_kv()
        self.note_use(caller)

    def note_use(self, caller: Lane) -> None:
        """Keep in mind the most KV blocks that all lanes have had in use."""
        caller.port.count_use(caller.config.kv_blocks - caller.ledger.free)

    def pace(self, caller: Lane) -> None:
        """Let all lanes go on at the pace that their work allows; `caller` is about to start."""
        pace = pace_of([lane.use for lane in self.lanes])
        for lane in self.lanes:
            if lane is caller:
                lane.pace = pace
            elif lane.pace != pace:
                lane.retime(pace)

    def look(self, caller: Lane) -> None:
        """Let the other lanes see what a call has done to the KV blocks that they share."""
        self.note_use(caller)
        free = caller.ledger.free
        caller.seen_free = free
        owed = caller.draft.owing_blocks()
        settled = caller.owed > 0 and not owed  # where nothing is owed a first chunk may come in
        caller.owed = owed
        for lane in self.lanes:
            if lane is caller:
                continue
            lane.keep_to_room()
            if lane.line.count and (settled or free > lane.seen_free):
                lane.seen_free = free
                lane.look_again(lane.index < caller.index)

    def owed_blocks(self, caller: Lane) -> int:
        """Return what prompts in progress on the other lanes have yet to take [blocks].

        Whoever comes in leaves that much: two lanes that each hold part of a prompt, and neither
        of which finds room for the rest, would take from each other for ever.
        """
        owed = 0
        for lane in self.lanes:
            if lane is not caller:
                owed += lane.draft.owing_blocks()
        return owed

    def others_work(self, caller: Lane) -> bool:
        """Whether another lane has something to do, and may change what this one can do."""
        return any(lane is not caller and lane.has_work() for lane in self.lanes)


class Lane(Replica):
    """A replica that shares its GPUs and their KV blocks with others.

    Takes what `Replica` takes; joins a device and gets its share before the run begins.

    Attributes
    ----------
    device : Device
    use : Use
        Of the work under way.
    pace : float
        Speed over that of running alone, in (0, 1].
    seen_free : int [blocks]
        Free KV blocks when its scheduler last looked.
    owed : int [blocks]
        What its prompts in progress had yet to take after its last call.
    """

    device: Device
    use: Use
    pace: float
    seen_free: int
    owed: int

    def prepare(self, level: Callable[[float], LaneLevel], share_frac: float) -> None:
        """Say what steps cost and take at a share of the SMs, and which share it has at first."""
        if self._lookahead:
            raise InvariantError("a lane plans each step when the one before has ended")
        self._shares = True
        self._level = level
        self._levels: dict[float, LaneLevel] = {}
        self._next_share = 0.0  # 0: none
        self.use = IDLE
        self.pace = 1.0
        self.seen_free = self.ledger.free
        self.owed = 0
        self._single = False  # the planned step's end has been moved
        self.target: Lane | None = None  # who decodes what is computed here
        self.source: Lane | None = None  # whose prompts are decoded here
        self.first_tokens_ns: list[int] | None = None  # kept for a policy that asks for them
        self._take_share(share_frac)

    # --- shares -----------------------------------------------------------------------------

    def change_share(self, share_frac: float) -> None:
        """Give it another share of the SMs from the end of the step under way on."""
        if share_frac != self.share_frac:
            self._next_share = share_frac
            if self._merged:
                self._cut(False)

    def _take_share(self, share_frac: float) -> None:
        found = self._levels.get(share_frac)
        if found is None:
            found = self._levels[share_frac] = self._level(share_frac)
        self.share_frac = share_frac
        self._next_share = 0.0
        self.cost = found.cost
        self._roofline = found.cost if isinstance(found.cost, RooflineCost) else None
        self._energy = found.energy
        self._use_of = found.use.of
        self._stretch.anchored = False

    def step_ns(self) -> int:
        """Return how long the step under way takes; 0 when there is none [ns]."""
        if self._asleep:
            return 0
        if not self._ticks or self._chunked_step or self._single:
            return self._gap
        ticks = self._stretch.ticks_before(self.clock.now, self._ticks, 0)
        return self._stretch.gap_at(ticks - 1)

    # --- the call ---------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether somebody runs here, or is about to."""
        return bool(self.running_set) or bool(self.delivery.arrived)

    def _registrable(self, request: Request) -> int:
        owner = request.replica
        if owner is not None and owner is not self:
            return owner._registrable(request)
        return super()._registrable(request)

    def _call(self, now: int) -> None:
        self.device.book(self)
        self.draft.owed_blocks = self.device.owed_blocks(self)
        super()._call(now)
        self.device.look(self)

    def _account(self) -> None:
        if self._chunked_step:
            super()._emit(self._exec_end_ns)
        super()._account()
        self.device.note_use(self)

    def _kv_held(self) -> int:
        """Return this lane's part of the KV blocks in use: prompts here, the rest where they go."""
        if self.source is not None:
            return self._kv_blocks - self.ledger.free - self.source._kv_held()
        size = self.config.block_tokens
        return sum(-(-request.computed // size) for request in self.running_set)

    def _launch(self, now: int) -> None:
        self._single = False
        if self._next_share:
            self._take_share(self._next_share)
        super()._launch(now)

    def _emit(self, end: int) -> int:
        """Leave tokens to the end of the step, which may move."""
        return sum(tokens for _, tokens, _ in self.draft.chunks)

    def _price_step(
        self, slices: list[tuple[int, int]], decode: int, padded: int, windowed: int, rows: int
    ) -> int:
        alone = super()._price_step(slices, decode, padded, windowed, rows)
        self.use = self._use_of(slices, decode, padded, rows, alone)
        self.device.pace(self)
        return rounded(alone / self.pace)

    def _price_line(self, decode: int, padded: int) -> PriceLine:
        line = super()._price_line(decode, padded)
        alone = line.base_ns + line.per_token_ns * padded
        alone += line.per_windowed_ns * self.cohort.windowed
        self.use = self._use_of((), decode, padded, decode, alone)
        self.device.pace(self)
        pace = self.pace
        return PriceLine(
            line.base_ns / pace,
            line.per_token_ns / pace,
            line.per_windowed_ns / pace,
            line.until_tokens,
        )

    def _rest(self, now: int) -> None:
        super()._rest(now)
        if self._asleep and self.use is not IDLE:
            self.use = IDLE
            self.device.pace(self)

    def _expects(self) -> bool:
        return self.port.expected > 0 or self.device.others_work(self)

    # --- what others do ---------------------------------------------------------------------

    def keep_to_room(self) -> None:
        """End the stretch under way where the KV blocks end that others have left."""
        if not self._merged:
            return
        stretch = self._stretch
        room = self.ledger.free + self.draft.first_need
        ticks = stretch.longest(room, self.config.block_tokens)
        if ticks < self._ticks:
            self._ticks = ticks
            self._merged = ticks > 1
            self._exec_end_ns = end = stretch.end_ns(ticks)
            self._call_at(end)

    def retime(self, pace: float) -> None:
        """Let the work under way go on at another pace from now on."""
        before = self.pace
        self.pace = pace
        self._stretch.anchored = False
        if self._asleep:
            return
        if self._ticks and not self._chunked_step and not self._single:
            self._single_out()
        left = self._exec_end_ns - self.clock.now
        if left <= 0:
            return
        longer = rounded(left * before / pace) - left
        self._gap += longer
        self._stretch.gap_ns = self._gap
        self._exec_end_ns += longer
        self._call_at(self._exec_end_ns)

    def _single_out(self) -> None:
        """Book the ticks of a stretch that have run; the one under way stands alone."""
        stretch = self._stretch
        cohort = self.cohort
        draft = self.draft
        ticks = stretch.ticks_before(self.clock.now, self._ticks, 0)
        self._single = True
        self._merged = False
        end = stretch.end_ns(ticks)
        if ticks > 1:
            ran = cohort.blocks_needed(ticks - 1)
            begun = cohort.blocks_needed(ticks)
            self.ledger.take(begun - draft.first_need)
            draft.first_need = ran
            self._ticks = ticks - 1
            self._exec_end_ns = start = stretch.end_ns(ticks - 1)
            self._account()
            draft.first_need = begun - ran
            stretch.launch(start)
            self._front_ns = start
            self._gap = stretch.gap_ns
            self._kv_used = self._kv_held()
        self._ticks = 1
        self._exec_end_ns = end
        self._call_at(end)

    # --- from lane to lane ------------------------------------------------------------------

    def hand_on(self, request: Request) -> None:
        """Let another lane decode a request whose prompt is computed; its KV stays in place."""
        target = self.target
        board = self.board
        if target is None or target.board is None or board is None:
            raise InvariantError(f"lane {self.index} hands over to nobody")
        now = self.clock.now
        if self.first_tokens_ns is not None:
            self.first_tokens_ns.append(request.first_token_ns - request.arrival_ns)
        self.ledger.register(request, request.computed)
        board.change(self.slot, -1, now)
        target.board.change(target.slot, 1, now)
        request.replica = target
        request.state = LOADING
        target.port.expected += 1
        target.port.kv_arrived(request, target.index < self.index)


def share_devices(
    clock: Clock,
    plans: Sequence[LanePlan | None],
    replicas: Sequence[Replica],
) -> None:
    """Put the lanes of all pools on their devices.

    Parameters
    ----------
    clock : Clock
    plans : sequence of LanePlan or None
        By pool.
    replicas : sequence of Replica
        Of all pools, one behind the other; those of pools with a plan are lanes.
    """
    for number, plan in enumerate(plans):
        if plan is None or plan.on is None:
            continue
        host = plans[plan.on]
        if host is None:
            raise InvariantError(f"pool {plan.on} has GPUs of its own")
        sources = [replica for replica in replicas if replica.pool == plan.on]
        targets = [replica for replica in replicas if replica.pool == number]
        for source, target in zip(sources, targets, strict=True):
            if not isinstance(source, Lane) or not isinstance(target, Lane):
                raise InvariantError("pools that share GPUs consist of lanes")
            source.prepare(host.level, host.share_frac)
            target.prepare(plan.level, plan.share_frac)
            device = Device()
            for lane in sorted((source, target), key=lambda lane: lane.index):
                device.join(lane)
            source.target = target
            target.source = source
            source.delivery.hand_over = source.hand_on
            if plan.sharing is not None:
                device.control = SharesControl(clock, plan, plan.sharing(), source, target)
                device.control.start()


class SharesControl:
    """Asks a policy for the shares of two lanes, again and again.

    Parameters
    ----------
    clock : Clock
    plan : LanePlan
    policy : SharingPolicy
    prefill, decode : Lane

    Attributes
    ----------
    policy : SharingPolicy
    wake : Wake
        When it is asked next.
    """

    def __init__(
        self, clock: Clock, plan: LanePlan, policy: SharingPolicy, prefill: Lane, decode: Lane
    ) -> None:
        self._clock = clock
        self.plan = plan
        self.policy = policy
        self._prefill, self._decode = prefill, decode
        self._period_ns = seconds_to_ns(policy.period_s)
        self.wake = Wake(self._look)

    def start(self) -> None:
        """Ask for the first time when the first period is over; never if there are no periods."""
        if self._period_ns:
            self._prefill.first_tokens_ns = []
            self._clock.at(self.wake, ARRIVAL_PRIORITY, self._period_ns)

    def _look(self, wake: Wake) -> None:
        prefill, decode, plan = self._prefill, self._decode, self.plan
        times = prefill.first_tokens_ns or []
        told = tuple([time / NS_PER_S for time in times])
        times.clear()
        view = LanesView(
            prefill.share_frac,
            decode.share_frac,
            told,
            decode.step_ns() / NS_PER_S,
            prefill.waiting,
            decode.running,
            plan.ttft_slo_s,
            plan.tpot_slo_s,
        )
        for lane, share in zip((prefill, decode), self.policy.shares(view), strict=True):
            lane.change_share(share)
        self._clock.at(wake, ARRIVAL_PRIORITY, self._clock.now + self._period_ns)
