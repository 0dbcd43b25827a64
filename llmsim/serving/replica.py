"""One engine instance: wake, account, deliver, plan, price, sleep.

The replica sleeps from one decision point to the next. A *call* (of the scheduler) plans either a
mixed step (prefill chunks, with or without the decodes) or a *stretch*: as many decode steps as
can run before something changes. Boundaries inside a stretch are ``anchor + C(n)``, C in closed
form; the anchor moves only with the composition: stretches are slept or stepped through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmsim.core.integers import rounded
from llmsim.costmodel.contract import PriceLine, StepCost
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.roofline import RooflineCost
from llmsim.kvcache import CountLedger, PrefixLedger
from llmsim.policies.answers import nothing_planned
from llmsim.policies.batching import BatchingPolicy, VllmBatching
from llmsim.serving.admission import admit_waiting
from llmsim.serving.board import LoadBoard
from llmsim.serving.clock import CALL_PRIORITY, FOREVER, Clock
from llmsim.serving.config import EngineConfig
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.equipment import fit_out, make_ledger, make_line
from llmsim.serving.meter import Meter
from llmsim.serving.port import Port
from llmsim.serving.record import CallRecord, record_of
from llmsim.serving.request import DECODE, FINISHING, HANDED, WAITING, Request
from llmsim.serving.step import Step
from llmsim.serving.stretch import Stretch
from llmsim.serving.tape import Tape, cohort_for
from llmsim.serving.wake import Alarm, Wake

if TYPE_CHECKING:
    from llmsim.serving.lockstep import Lockstep


class Replica:
    """An engine instance on its GPUs.

    Parameters
    ----------
    clock : Clock
    index : int
        Index within the fleet.
    pool : int
        Index of its pool.
    cost : StepCost
    config : EngineConfig
    policy : BatchingPolicy
    itl_slo_ns : int [ns]
    on_end : callable
        Called with (request, outcome name, time) when a request ends here.
    energy : ActiveEnergy or None
        None to leave energy at zero.
    ledger : CountLedger or PrefixLedger or None
        KV blocks that others use too; None for blocks of its own.
    tape : Tape or None
        Takes down token times.
    stretch : Stretch or None
        None for one of its own; a rank gets one whose clock it shares.
    """

    def __init__(
        self,
        clock: Clock,
        index: int,
        pool: int,
        cost: StepCost,
        config: EngineConfig,
        policy: BatchingPolicy,
        itl_slo_ns: int,
        on_end: Callable[[Request, str, int], None],
        energy: ActiveEnergy | None = None,
        ledger: CountLedger | PrefixLedger | None = None,
        tape: Tape | None = None,
        stretch: Stretch | None = None,
    ) -> None:
        self.clock = clock
        self.index, self.pool = index, pool
        self.config = config
        self._roofline = cost if isinstance(cost, RooflineCost) else None
        self._policy, self._plain = policy, type(policy) is VllmBatching
        self._lookahead = config.lookahead
        self._steady = config.fast_forward and not policy.every_step
        self.tape = tape
        self.cohort, self.cost = cohort_for(tape, index, cost, config.block_tokens)
        self.ledger = ledger or make_ledger(config, self._registrable)
        self.line = make_line(policy)
        self.meter = Meter(itl_slo_ns)
        self.decisions: list[int] = []
        self.draft = Draft(
            config, policy, self.ledger, self.cohort, self.line, self.meter, self.decisions
        )
        self._step = Step(self.draft)
        on_end = fit_out(self.draft, policy, on_end)
        self.running_set = self.draft.running_set
        self.recorder: Callable[[CallRecord], None] | None = None
        self._asleep = True  # nothing planned, nothing in flight
        self._call_ns = -1  # when the pending call is due
        self._front_ns = self._exec_end_ns = 0  # when planned work starts, when all has run
        self._kv_blocks, self._shares = config.kv_blocks, False  # with others
        self._ticks = self._gap = 0  # decode ticks of the planned work, gap of the first
        self._merged = self._chunked_step = False  # a stretch that an arrival may cut; a step
        self._stretch = Stretch(self.cohort, cost.window_tokens > 0) if stretch is None else stretch
        self._drag = 0.0  # by how much transfers lengthen every step
        self.delivery = Delivery(
            self.draft, self._stretch, config.block_tokens, config.lookahead, on_end
        )
        self.board: LoadBoard | None = None
        self.slot = self.turn = index  # on its board; among the calls of one instant
        self.ranks: Lockstep | None = None  # of which it is one
        self.port = Port(self)
        self._energy, self._active_uj = energy, 0  # of a step under way that is not a stretch
        self.events = self._prefill_tokens = self._kv_used = 0
        self._alarm = Alarm(self)
        self._priority = CALL_PRIORITY + index  # at one instant replicas go in order of index

    def _registrable(self, request: Request) -> int:
        """Tokens of a request with an output whose blocks may be registered during this call."""
        if request.state != DECODE:
            return request.computed - (self._lookahead if request.state == FINISHING else 0)
        tick = self.cohort.tick + (1 if self.draft.decoding else 0)
        return request.base + tick - self._lookahead

    # --- from outside -----------------------------------------------------------------------

    def enqueue(self, request: Request, called_now: bool = False) -> None:
        """Take in a request that has just arrived here.

        Parameters
        ----------
        request : Request
        called_now : bool
            This replica's turn to be called at this instant has passed: it sees the request at
            a later call.
        """
        request.replica = self
        if self.draft.retainer is not None:
            self.draft.retainer.came(request)
        line = self.line
        alone = not line.count
        line.push(request)
        if self._asleep:
            self._asleep = False
            self._call_at(self.clock.now)
        elif (
            self._merged
            and (alone or not self.draft.fcfs)
            and (len(self.running_set) < self.config.max_num_seqs or self.draft.displaces)
        ):
            self._cut(called_now)

    def drop(self, request: Request, outcome: str, called_now: bool = False) -> None:
        """Let a request go because its client left; takes effect at the next call.

        Who still waits ends at once. For `called_now` see `enqueue`.
        """
        if request.state >= HANDED:
            self.port.drop(request, outcome)
            return
        if request.state == WAITING:
            if request.lease is not None:
                request.lease.abandon(request)
            makes_room = request.fetched_blocks > 0 or self.line.head() is request
            self.delivery.withdraw(request, outcome, self.clock.now)
            if makes_room and self._merged:
                self._cut(called_now)
            return
        self.delivery.leaving.append((request, outcome))
        if self._merged:
            self._cut(called_now)

    @property
    def running(self) -> int:
        """Requests that hold KV now."""
        return len(self.running_set)

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return self.line.count

    def ticks_begun(self) -> int:
        """Return how many ticks of the planned work a call now would have behind it."""
        if not self._ticks or self._chunked_step:
            return self._ticks
        return self._stretch.ticks_before(self.clock.now, self._ticks, self._lookahead)

    def unbooked_blocks(self) -> int:
        """Return the KV blocks that steps begun use and the ledger does not know of yet."""
        if not self._ticks or self._chunked_step:
            return 0
        return self.cohort.blocks_needed(self.ticks_begun()) - self.draft.first_need

    def cut(self, called_now: bool = False) -> None:
        """Have a stretch under way end at its next step: what it was planned on has changed."""
        if self._merged:
            self._cut(called_now)

    def slow_down(self, drag_frac: float) -> None:
        """Let every step that starts from the next call on take that much longer."""
        self._drag = drag_frac
        self._stretch.anchored = False
        self.cut()

    def look_again(self, called_now: bool = False) -> None:
        """Have the scheduler called for what has just become possible here."""
        if self._asleep:
            self._asleep = False
            self._call_at(self.clock.now)
        elif self._merged:
            self._cut(called_now)

    # --- the clock --------------------------------------------------------------------------

    def _call_at(self, time_ns: int) -> None:
        self._call_ns = time_ns
        self.clock.at(self._alarm, self._priority, time_ns)

    def _cut(self, called_now: bool) -> None:
        """End the stretch under way at the first call that can see what has just happened."""
        self._merged = False
        stretch = self._stretch
        lookahead = self._lookahead
        now = self.clock.now + called_now
        ticks = stretch.ticks_before(now, self._ticks, lookahead)
        if ticks >= self._ticks:
            return  # the pending call is the one
        self._ticks = ticks
        self._exec_end_ns = end = stretch.end_ns(ticks)
        self._call_at(stretch.start_of_last_ns() if lookahead else end)

    # --- the call ---------------------------------------------------------------------------

    def wake(self, alarm: Wake) -> None:
        """Call the scheduler, again and again while nothing else in the world comes first."""
        clock = self.clock
        if clock.now != self._call_ns or self._asleep:
            return  # superseded: the call this alarm was set for takes place earlier
        self._call(self._call_ns)
        # a call that is next in the world anyway need not go through the event queue
        while not self._asleep and clock.idle_until(self._call_ns):
            clock.jump(self._call_ns)
            self._call(self._call_ns)
        if not self._asleep:
            self._call_at(self._call_ns)

    def _call(self, now: int) -> None:
        """One call of the scheduler at time `now` [ns]."""
        self.events += 1
        self._merged = False
        if self._ticks or self._chunked_step:
            if self.tape is not None and self._ticks:
                merged = 0 if self._chunked_step else self._ticks
                self.tape.ran(self.index, self._stretch, merged, self._exec_end_ns)
            self._account()
        cohort = self.cohort
        delivery = self.delivery
        end = self._exec_end_ns
        if (
            delivery.completing
            or cohort.due <= cohort.tick
            or delivery.pending
            or delivery.leaving
            or delivery.arrived
            or delivery.departing
            or delivery.failing
            or not cohort.count
        ):
            delivery.settle(now, end)
        draft = self.draft
        draft.begin(now)
        if draft.swapper is not None and draft.swapper.swapped:
            draft.swapper.bring_back()
        if draft.claims is not None:
            draft.claims.renew(draft)
        if self.running_set or self.line.count:
            if not self._plain:
                self._policy.plan(self._step)
            elif draft.advance_running() and self.line.count:
                admit_waiting(draft, False)  # as `VllmBatching.plan`, but not through Python
        self._launch(now)

    def _account(self) -> None:
        """Bring cohort, KV, gaps and log up to the end of the planned work."""
        ticks = self._ticks
        cohort = self.cohort
        draft = self.draft
        meter = self.meter
        delivery = self.delivery
        count = cohort.count
        logits = draft.logits
        active_uj = self._active_uj if self._chunked_step else 0
        first = last = self._gap if ticks else 0
        if ticks:
            if self._chunked_step:
                cohort.padded_sum(1)
                grown = cohort.grown
            else:
                stretch = self._stretch
                last = stretch.run(ticks)
                grown = cohort.grown
                if self._energy is not None:
                    active_uj = self._energy.decode_uj(
                        count, ticks, stretch.ran_padded, stretch.ran_windowed
                    )
                if ticks > 1:
                    more = cohort.blocks_needed(ticks) - draft.first_need
                    if more:
                        self.ledger.take(more)
            if delivery.stalled or draft.late:
                end = self._exec_end_ns
                logits += delivery.tick_unevenly(count, self._front_ns, end, self._gap)
                count = 0
            else:
                tick = cohort.tick + ticks - 1
                if delivery.leaving and self._lookahead:
                    logits -= delivery.tick_without_leaving(ticks - 1, first, last, self._call_ns)
                    self.meter.over += last > meter.slo
                elif last > meter.slo:
                    meter.exceeded(ticks, first, self._stretch.gap_at)
                meter.ticked(tick, last)
            cohort.advance(ticks, grown)
            draft.tick_end_ns = self._exec_end_ns
            if delivery.unticked:
                delivery.unticked.clear()
        meter.log(
            self._front_ns if draft.claims is None else draft.claims.began_ns(self._front_ns),
            self._exec_end_ns,
            ticks,
            count,
            len(self.running_set),
            self._kv_used,
            self._kv_held() if self._shares else self._kv_blocks - self.ledger.free,
            self._prefill_tokens,
            logits,
            first,
            last,
            active_uj,
        )
        self._ticks, self._chunked_step = 0, False

    def _kv_held(self) -> int:
        return self._kv_blocks - self.ledger.free

    # --- launch -----------------------------------------------------------------------------

    def _launch(self, now: int) -> None:
        """Price what was planned and sleep until the next call."""
        draft = self.draft
        front = self._exec_end_ns if self._exec_end_ns > now else now
        if draft.claims is not None and draft.claims.wait_ns:
            front = draft.claims.ready_ns(front)
            self._stretch.anchored = False
            if self.cohort.count:
                self.delivery.sit_out()
        self._front_ns = front
        if draft.preempted:
            self._stretch.anchored = False
        alone = draft.first_need < 0 or (len(draft.gates) > 0 and draft.holds_step())
        if draft.chunks or (alone and draft.decoding):
            self._launch_step(front)
        elif draft.decoding:
            self._launch_stretch(front)
        else:
            self._rest(now)
            return
        if self.recorder is not None:
            self._record(now)

    def _rest(self, now: int) -> None:
        """Nothing was planned: wait for work in flight, or sleep."""
        self._stretch.anchored = False
        if self.recorder is not None and (self._exec_end_ns > now or self.draft.preempted):
            self._record(now)
        if self._exec_end_ns > now:
            self._call_ns = self._exec_end_ns
        elif self.draft.preempted:
            self._call_ns = now  # everybody lost their KV; the queue is looked at next
        elif (self.running_set or self.port.somebody_waits()) and not self._expects():
            who = f"replica {self.index}"
            raise nothing_planned(self._policy, who, self.running, self.waiting)
        else:
            self._asleep = True

    def _expects(self) -> bool:
        """Whether something that is not planned here may change what can be done."""
        return self.port.expected > 0

    def _launch_step(self, front: int) -> None:
        """One step with prefill chunks, or one that was put together request by request."""
        draft = self.draft
        cohort = self.cohort
        decoding = draft.decoding and cohort.count > 0
        count = cohort.count if decoding else 0
        slices = [(tokens, past) for _, tokens, past in draft.chunks]
        padded = cohort.padded if decoding else 0
        windowed = cohort.windowed if decoding else 0
        rows = count + draft.logits
        duration = self._price_step(slices, count, padded, windowed, rows)
        if self._energy is not None:
            self._active_uj = self._energy.priced_step_uj(count, padded, windowed, rows)
        self._stretch.anchored = False
        self._gap = duration
        self._ticks = 1 if decoding else 0
        self._chunked_step = True
        if cohort.count and not decoding:
            self.delivery.sit_out()
        self._kv_used = self._kv_held() if self._shares else self._kv_blocks - self.ledger.free
        if draft.gates and draft.holds_step():  # until what it waits for has come
            self._exec_end_ns = front
            self._call_ns = FOREVER
            return
        self._end_step(front)
        if self.delivery.hands_early:
            self.delivery.hand_early()

    def open_gate(self) -> None:
        """End the launch of a step that had to wait: all that it waited for has come."""
        if self._call_ns != FOREVER or self._asleep or self.draft.holds_step():
            return
        front = self._front_ns
        self._gap = self.draft.gated_end_ns(front, self._gap) - front
        self._end_step(front)
        self._call_at(max(self._call_ns, self.clock.now))

    def _end_step(self, front: int) -> None:
        end = front + self._gap
        self._prefill_tokens = self._emit(end)
        self._exec_end_ns = end
        self._call_ns = front if self._lookahead else end

    def _emit(self, end: int) -> int:
        """Note which prefills give a token at the end of the step [ns]; return its new tokens."""
        total = 0
        for request, tokens, _ in self.draft.chunks:
            total += tokens
            if request.computed == request.prompt + request.generated:
                self.delivery.emit_first(request, end)
                if self.tape is not None:
                    self.tape.alone(request, end)
        return total

    def _price_step(
        self, slices: list[tuple[int, int]], decode: int, padded: int, windowed: int, rows: int
    ) -> int:
        """Return how long a step will take [ns]; see `StepCost.step_ns`."""
        roofline = self._roofline
        if roofline is not None:  # compiled against its class, not against the protocol
            duration = roofline.step_ns(slices, decode, padded, windowed, rows)
        else:
            duration = self.cost.step_ns(slices, decode, padded, windowed, rows)
        return rounded(duration * (1 + self._drag)) if self._drag else duration

    def _price_line(self, decode: int, padded: int) -> PriceLine:
        """Return what decode steps will take; see `StepCost.decode_line`."""
        line = self.cost.decode_line(decode, padded)
        return line.slower(self._drag) if self._drag else line

    def _launch_stretch(self, front: int) -> None:
        """Decode steps of the same requests, as many as can run before something changes."""
        cohort = self.cohort
        delivery, draft, stretch = self.delivery, self.draft, self._stretch
        if not stretch.anchored or cohort.padded > stretch.line.until_tokens:
            stretch.anchor(front, self._price_line(cohort.count, cohort.padded))
        stretch.launch(front)
        self._gap = stretch.gap_ns
        self._prefill_tokens = 0
        self._kv_used = self._kv_held() if self._shares else self._kv_blocks - self.ledger.free
        ticks = 1
        # a plan that sends somebody out makes a seat, which is given away at the next call
        if self._steady and not (
            (delivery.pending or delivery.stalled or draft.late or draft.blocked_on_writer)
            or (delivery.arrived and draft.has_seat())
        ):
            room = self.ledger.free + draft.first_need
            ticks = stretch.longest(room, self.config.block_tokens)
            if ticks > draft.most_ticks:
                ticks = draft.most_ticks
        self._ticks = ticks
        self._merged = ticks > 1
        self._exec_end_ns = end = stretch.end_ns(ticks)
        if self._lookahead:
            self._call_ns = stretch.start_of_last_ns() if ticks > 1 else front
        else:
            self._call_ns = end

    # --- reports ----------------------------------------------------------------------------

    def _record(self, now: int) -> None:
        if self.recorder is not None:
            self.recorder(record_of(self.draft, now, self._front_ns, self._exec_end_ns))
