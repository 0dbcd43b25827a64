"""One engine instance: wake, account, deliver, plan, price, sleep.

The replica sleeps from one decision point to the next. A *call* (of the scheduler) plans either a
mixed step (prefill chunks, with or without the decodes) or a *stretch*: as many decode steps as
can run before something changes. Boundaries inside a stretch are ``anchor + C(n)`` with C in
closed form; the anchor moves only when the composition changes, so it makes no difference whether
a stretch is slept through or stepped through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import simpy

from llmsim.costmodel.contract import PriceLine, StepCost
from llmsim.kvcache import CountLedger, PrefixLedger
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.views import RequestView
from llmsim.results.facts import ReplicaFacts
from llmsim.serving.clock import CALL_PRIORITY, Wake
from llmsim.serving.cohort import FOREVER as UNBOUNDED
from llmsim.serving.cohort import Cohort
from llmsim.serving.draft import DROP, FINISH, Draft, EngineConfig
from llmsim.serving.meter import Meter
from llmsim.serving.queue import FcfsQueue, UrgencyQueue
from llmsim.serving.request import DECODE, FINISHING, PARKED, PREFILL, WAITING, Request

@dataclass(frozen=True, slots=True)
class CallRecord:
    """One scheduler call, for recorders that follow a replica step by step."""

    now_ns: int
    start_ns: int
    end_ns: int
    chunks: tuple[tuple[Request, int, int], ...]
    decoding: bool
    running: tuple[Request, ...]
    waiting: int
    free_blocks: int
    preempted: tuple[Request, ...]


class Replica:
    """An engine instance on its GPUs.

    Parameters
    ----------
    env : simpy.Environment
        Clock in integer nanoseconds.
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
    """

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        pool: int,
        cost: StepCost,
        config: EngineConfig,
        policy: BatchingPolicy,
        itl_slo_ns: int,
        on_end: Callable[[Request, str, int], None],
    ) -> None:
        self.env = env
        self.index = index
        self.pool = pool
        self.config = config
        self.cost = cost
        self._policy = policy
        self._on_end = on_end
        self._lookahead = config.lookahead
        self._steady = config.fast_forward and not policy.every_step
        self.cohort = Cohort(cost.context_tile, config.block_tokens, cost.window_tokens)
        self._windowed = cost.window_tokens > 0
        self.ledger = self._make_ledger(config)
        fcfs = policy.urgency(_PROBE) is None
        self.line = FcfsQueue() if fcfs else UrgencyQueue(policy.urgency)
        self._fcfs = fcfs
        self.meter = Meter(itl_slo_ns)
        self.decisions: list[int] = []
        self.draft = Draft(
            config, policy, self.ledger, self.cohort, self.line, self.meter, self.decisions
        )
        self.running_set = self.draft.running_set
        self.recorder: Callable[[CallRecord], None] | None = None
        self.events = 0
        self._version = 0
        self._asleep = True  # nothing planned, nothing in flight
        self._call_ns = -1  # when the pending call is due
        self._front_ns = 0  # when the planned work starts
        self._exec_end_ns = 0  # when all planned work has run
        self._kv_blocks = config.kv_blocks
        self._ticks = 0  # decode ticks of the planned work
        self._merged = False  # the planned work is a stretch that an arrival may cut
        self._chunked_step = False
        self._line_price = PriceLine(0.0, 0.0)
        self._anchored = False
        self._anchor_ns = 0
        self._offset = 0  # ticks since the anchor
        self._padded_done = 0  # sum of padded sums over these ticks
        self._windowed_done = 0
        self._gap = 0  # gap of the first planned tick
        self._ahead = 0  # ticks the cohort's sums were last asked for
        self._ahead_sum = 0
        self._tick_end_ns = 0  # end of the latest cohort tick
        self._stalled = False  # the cohort sat out a step
        self._unticked: list[Request] = []  # joined since the latest cohort tick
        self._completing: list[Request] = []
        self._pending: list[Request] = []
        self._leaving: list[tuple[Request, str]] = []
        self._prefill_tokens = 0
        self._kv_used = 0
        self._wake_cb = self._wake
        self._priority = CALL_PRIORITY + index

    def _make_ledger(self, config: EngineConfig) -> CountLedger | PrefixLedger:
        if not config.prefix_caching:
            return CountLedger(config.kv_blocks, config.block_tokens)
        return PrefixLedger(
            config.kv_blocks,
            config.block_tokens,
            config.rules.unfilled_blocks_first,
            _identity,
            self._registrable,
        )

    def _registrable(self, request: Request) -> int:
        """Tokens of a request with an output whose blocks may be registered during this call."""
        if request.state != DECODE:
            return request.computed - (self._lookahead if request.state == FINISHING else 0)
        tick = self.cohort.tick + (1 if self.draft.decoding else 0)
        return request.base + tick - self._lookahead

    # --- from outside -----------------------------------------------------------------------

    def enqueue(self, request: Request) -> None:
        """Take in a request that has just arrived here."""
        request.replica = self
        line = self.line
        alone = not line.count
        line.push(request)
        if self._asleep:
            self._asleep = False
            self._call_at(int(self.env.now))
        elif self._merged and (alone or not self._fcfs):
            if len(self.running_set) < self.config.max_num_seqs:
                self._cut()

    def drop(self, request: Request, outcome: str) -> None:
        """Let a request go because its client left; takes effect at the next call.

        A request that still waits ends at once.
        """
        if request.state == WAITING:
            now = int(self.env.now)
            was_head = self.line.head() is request
            request.ended = True
            self.line.withdraw(request)
            if request.queued_ns < now:
                self.meter.waited(request.queued_ns, now)
            self.decisions.extend((DROP, request.view.index, now))
            self.ledger.forget(request)
            self._on_end(request, outcome, now)
            if was_head and self._merged:
                self._cut()
            return
        self._leaving.append((request, outcome))
        if self._merged:
            self._cut()

    @property
    def running(self) -> int:
        """Requests that hold KV now."""
        return len(self.running_set)

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return self.line.count

    def kv_used_frac(self) -> float:
        """Share of KV blocks in use now, inside a stretch too."""
        used = self.config.kv_blocks - self.ledger.free
        if self._merged and self._ticks > 1:
            done = max(0, self._ticks_before(int(self.env.now)) - 1)
            used += self.cohort.blocks_needed(done + 1) - self.cohort.blocks_needed(1)
        return used / self.config.kv_blocks

    # --- the clock --------------------------------------------------------------------------

    def _call_at(self, time_ns: int) -> None:
        self._version = version = self._version + 1
        self._call_ns = time_ns
        env = self.env
        env.schedule(Wake(self._wake_cb, version), self._priority, time_ns - env.now)  # type: ignore[arg-type]

    def _boundary(self, ticks: int) -> int:
        """Return when the next `ticks` planned ticks will have run [ns]."""
        line = self._line_price
        cohort = self.cohort
        if ticks != self._ahead:
            self._ahead = ticks
            self._ahead_sum = cohort.padded_sum(ticks) if ticks else 0
        time = line.base_ns * (self._offset + ticks) + line.per_token_ns * (
            self._padded_done + self._ahead_sum
        )
        if self._windowed and ticks:
            time += line.per_windowed_ns * (self._windowed_done + cohort.windowed_sum(ticks))
        return self._anchor_ns + round(time)

    def _gap_at(self, step: int) -> int:
        """Return the duration of the `step`-th planned tick, from 0 [ns]."""
        cohort = self.cohort
        return self._gap_of(cohort.padded + cohort.growth(step), step)

    def _gap_of(self, padded: int, step: int) -> int:
        line = self._line_price
        time = line.base_ns + line.per_token_ns * padded
        if self._windowed:
            sums = self.cohort.windowed_sum
            time += line.per_windowed_ns * (sums(step + 1) - sums(step))
        return round(time)

    def _ticks_before(self, time_ns: int) -> int:
        """Return how many planned ticks a call at or after `time_ns` has behind it, at least 1.

        A call stands at the end of tick j (at its start with lookahead). The first gap is the
        shortest and the last the longest, which bounds j from both sides; what is left is
        stepped through.
        """
        ahead = self._lookahead
        elapsed = time_ns - self._front_ns
        most = self._ticks
        if elapsed <= 0:
            return 1
        step = -(-elapsed // self._gap) + ahead
        if step > most:
            step = most
        while self._boundary(step - ahead) < time_ns and step < most:
            step += 1  # the first gap was rounded up
        longest = self._gap_of(self.cohort.padded + self.cohort.grown_last, step - 1)
        while (
            step > 1
            and (step - 1 - ahead) * (longest + 1) >= elapsed
            and self._boundary(step - 1 - ahead) >= time_ns
        ):
            step -= 1
        return step

    def _cut(self) -> None:
        """End the stretch under way at the first call that can see what has just happened."""
        self._merged = False
        ticks = self._ticks_before(int(self.env.now))
        if ticks >= self._ticks:
            return  # the pending call is the one
        self._ticks = ticks
        if self._lookahead:
            call = self._boundary(ticks - 1)
            self._exec_end_ns = self._boundary(ticks)
        else:
            call = self._exec_end_ns = self._boundary(ticks)
        self._call_at(call)

    # --- the call ---------------------------------------------------------------------------

    def _wake(self, event: Wake) -> None:
        if event.version != self._version:
            return
        now = self._call_ns
        self.events += 1
        self._merged = False
        if self._ticks or self._chunked_step:
            self._account()
        cohort = self.cohort
        if (
            self._completing
            or cohort.due <= cohort.tick
            or self._pending
            or self._leaving
            or not cohort.count
        ):
            self._settle(now)
        draft = self.draft
        end = self._exec_end_ns
        draft.exec_end_ns = end if end > now else now
        draft.begin(now)
        if self.running_set or self.line.count:
            self._policy.plan(draft)
        self._launch(now)

    def _account(self) -> None:
        """Bring cohort, KV, gaps and log up to the end of the planned work."""
        ticks = self._ticks
        cohort = self.cohort
        draft = self.draft
        meter = self.meter
        count = cohort.count
        first = last = self._gap
        if ticks:
            if self._chunked_step:
                cohort.padded_sum(1)
                grown = cohort.grown
            else:
                if ticks != self._ahead:
                    self._ahead = ticks
                    self._ahead_sum = cohort.padded_sum(ticks)
                grown = cohort.grown
                self._offset += ticks
                self._padded_done += self._ahead_sum
                if self._windowed:
                    self._windowed_done += cohort.windowed_sum(ticks)
                if ticks > 1:
                    more = cohort.blocks_needed(ticks) - draft.first_need
                    if more:
                        self.ledger.take(more)
                    last = self._gap_of(cohort.padded + cohort.grown_last, ticks - 1)
            if self._stalled or draft.late:
                self._account_late(count)
                count = 0
            else:
                if last > meter.slo:
                    meter.exceeded(ticks, first, self._gap_at)
                meter.ticked(cohort.tick + ticks - 1, last)
            cohort.advance(ticks, grown)
            self._tick_end_ns = self._exec_end_ns
            if self._unticked:
                self._unticked.clear()
        in_use = self._kv_blocks - self.ledger.free
        meter.log(
            (
                self._front_ns,
                self._exec_end_ns,
                ticks,
                count,
                len(self.running_set),
                self._kv_used,
                in_use,
                self._prefill_tokens,
                draft.logits,
                first,
                last,
            )
        )
        self._ticks = 0
        self._chunked_step = False

    def _account_late(self, count: int) -> None:
        """One tick in which members have waited unequally long for their token."""
        meter = self.meter
        late = self.draft.late
        start, end = self._front_ns, self._exec_end_ns
        gap = end - self._tick_end_ns if self._stalled else self._gap
        self._stalled = False
        tick = self.cohort.tick
        regular = count - len(late)
        if regular:
            if gap > meter.slo:
                meter.over += 1
            meter.ticked(tick, gap)
            row = (start, start, 1, regular, 0, 0, 0, 0, 0, gap, gap)  # no time: gaps alone
            meter.log(row)
        for request in late:
            meter.lone_gap(request, end - request.last_token_ns)
            request.itl_over_at_join = meter.over
            request.join_tick = tick + 1
        late.clear()

    def _settle(self, now: int) -> None:
        """Deliver outputs, seat the prefilled among the decodes, let the finished go."""
        if self._pending:
            for request in self._pending:
                self._finish(request, request.last_token_ns)
            self._pending = []
        cohort = self.cohort
        done: list[Request] = []
        if cohort.due <= cohort.tick:
            while cohort.due <= cohort.tick:
                finished = cohort.pop_finished()
                self.meter.left(finished, self._exec_end_ns)
                done.append(finished)
            self._anchored = False
        if self._completing:
            self._seat_completed(done)
        if not cohort.count:
            self.meter.clear()
        if done:
            if len(done) > 1:
                done.sort(key=_seat_of)
            if self._lookahead and self._exec_end_ns > now:
                for request in done:
                    request.state = FINISHING
                self._pending = done
            else:
                for request in done:
                    self._finish(request, request.last_token_ns)
        if self._leaving:
            self._let_go(now)

    def _seat_completed(self, done: list[Request]) -> None:
        """Prefills whose step ran (or runs) become decodes, or are done with one token."""
        cohort = self.cohort
        stalled = self._stalled
        for request in self._completing:
            if request.state != PREFILL:
                continue  # preempted or gone meanwhile
            del self.draft.prefilling[request]
            if request.generated >= request.output:
                done.append(request)
                continue
            request.state = DECODE
            path = request.path
            if path and path[-1][0].slot is not None:
                path[-1][0].writer = request  # lookups ask for the blocks it is writing
            request.itl_over_at_join = self.meter.over
            cohort.join(request)
            if stalled:
                self.draft.late.append(request)
            else:
                self._unticked.append(request)
        self._completing = []
        self._anchored = False

    def _finish(self, request: Request, time_ns: int) -> None:
        # a request may lose its KV to a preemption while its last token is on the way
        if request.state != FINISHING or request in self.running_set:
            del self.running_set[request]
            computed = request.computed
            self.ledger.release(request, -(-computed // self.config.block_tokens), computed)
        request.ended = True
        self.ledger.forget(request)
        self.decisions.extend((FINISH, request.view.index, request.first_token_ns, time_ns))
        self._on_end(request, "finished", time_ns)

    def _let_go(self, now: int) -> None:
        for request, outcome in self._leaving:
            if request.ended:
                continue
            state = request.state
            if state == FINISHING:
                continue  # all its tokens are computed; it ends as finished
            if state == WAITING:  # preempted meanwhile
                request.ended = True
                self.line.withdraw(request)
            else:
                self._remove_running(request, state)
            request.ended = True
            self.ledger.forget(request)
            self.decisions.extend((DROP, request.view.index, now))
            self._on_end(request, outcome, now)
        self._leaving = []

    def _remove_running(self, request: Request, state: int) -> None:
        if state == DECODE:
            self.cohort.leave(request)
            self.meter.left(request, self._exec_end_ns)
            self._anchored = False
            late = self.draft.late
            if request in late:
                late.remove(request)
        elif state == PARKED:
            del self.draft.parked[request]
        else:
            del self.draft.prefilling[request]
        del self.running_set[request]
        computed = request.computed
        cached = computed - self._lookahead if state == DECODE else computed
        self.ledger.release(request, -(-computed // self.config.block_tokens), cached)

    # --- launch -----------------------------------------------------------------------------

    def _launch(self, now: int) -> None:
        """Price what was planned and sleep until the next call."""
        draft = self.draft
        front = self._exec_end_ns
        if front < now:
            front = now
        self._front_ns = front
        if draft.preempted:
            self._anchored = False
        if draft.chunks or draft.first_need < 0:
            if not draft.chunks and not draft.decoding:
                self._rest(now)
                return
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
        self._anchored = False
        if self.recorder is not None and (self._exec_end_ns > now or self.draft.preempted):
            self._record(now)
        if self._exec_end_ns > now:
            self._call_at(self._exec_end_ns)
        else:
            self._asleep = not self.running_set and not self.line.count
            if self.draft.preempted:
                self._call_at(now)  # everybody lost their KV; the queue is looked at next
            elif not self._asleep:
                self._stuck()

    def _stuck(self) -> None:
        from llmsim.core.errors import InvariantError

        raise InvariantError(
            f"replica {self.index} has {self.running} running and {self.waiting} waiting requests "
            "but its batching policy planned nothing"
        )

    def _launch_step(self, front: int) -> None:
        """One step with prefill chunks, or one that was put together request by request."""
        draft = self.draft
        cohort = self.cohort
        decoding = draft.decoding and cohort.count > 0
        count = cohort.count if decoding else 0
        chunks = draft.chunks
        duration = self.cost.step_ns(
            [(tokens, past) for _, tokens, past in chunks],
            count,
            cohort.padded if decoding else 0,
            cohort.windowed if decoding else 0,
            count + draft.logits,
        )
        end = front + duration
        self._anchored = False
        self._gap = duration
        self._ticks = 1 if decoding else 0
        self._chunked_step = True
        if cohort.count and not decoding and not self._stalled:
            self._stalled = True
            draft.late.extend(r for r in self._unticked if r.state == DECODE)
        self._kv_used = self._kv_blocks - self.ledger.free
        total = 0
        for request, tokens, _ in chunks:
            total += tokens
            if request.computed == request.prompt + request.generated:
                self._emit_first(request, end)
        self._prefill_tokens = total
        self._exec_end_ns = end
        self._call_at(front if self._lookahead else end)

    def _emit_first(self, request: Request, end: int) -> None:
        """A prefill gives its token at the end of its step."""
        if request.generated:
            self.meter.lone_gap(request, end - request.last_token_ns)
        else:
            request.first_token_ns = end
        request.generated += 1
        request.last_token_ns = end
        self._completing.append(request)

    def _launch_stretch(self, front: int) -> None:
        """Decode steps of the same requests, as many as can run before something changes."""
        cohort = self.cohort
        draft = self.draft
        line = self._line_price
        if not self._anchored or cohort.padded > line.until_tokens:
            line = self._line_price = self.cost.decode_line(cohort.count, cohort.padded)
            self._anchored = True
            self._anchor_ns = front
            self._offset = 0
            self._padded_done = 0
            self._windowed_done = 0
        self._gap = self._gap_of(cohort.padded, 0)
        self._ahead = -1
        self._prefill_tokens = 0
        self._kv_used = self._kv_blocks - self.ledger.free
        ticks = 1
        if self._steady and not (
            self._pending or self._stalled or draft.late or draft.blocked_on_writer or self._leaving
        ):
            ticks = self._stretch_ticks(line)
        self._ticks = ticks
        self._merged = ticks > 1
        call = front
        if self._lookahead and ticks > 1:
            call = self._boundary(ticks - 1)
        self._exec_end_ns = end = self._boundary(ticks)
        self._call_at(call if self._lookahead else end)

    def _stretch_ticks(self, line: PriceLine) -> int:
        cohort = self.cohort
        ticks = cohort.due - cohort.tick
        if self._windowed:
            ticks = min(ticks, max(1, cohort.next_saturation() - cohort.tick))
        room = self.ledger.free + self.draft.first_need
        size = self.config.block_tokens
        if (ticks // size + 1) * cohort.count > room:
            ticks = cohort.ticks_within(room, ticks)
        if (
            line.until_tokens != UNBOUNDED
            and cohort.padded + cohort.growth(ticks - 1) > line.until_tokens
        ):
            low, high = 1, ticks
            while low < high:
                middle = (low + high) // 2
                if cohort.padded + cohort.growth(middle) > line.until_tokens:
                    high = middle
                else:
                    low = middle + 1
            ticks = low
        return ticks

    # --- reports ----------------------------------------------------------------------------

    def _record(self, now: int) -> None:
        draft = self.draft
        if self.recorder is not None:
            self.recorder(
                CallRecord(
                    now,
                    self._front_ns,
                    self._exec_end_ns,
                    tuple(draft.chunks),
                    draft.decoding,
                    tuple(self.running_set),
                    self.line.count,
                    self.ledger.free,
                    tuple(draft.preempted),
                )
            )

    def facts(self, pool: str) -> ReplicaFacts:
        """Return this replica's part in the results."""
        draft = self.draft
        return ReplicaFacts(
            pool,
            self.index,
            self.meter.finish(),
            self.meter.steps,
            self.events,
            draft.preemptions,
            self.meter.peak_kv_blocks,
            draft.lookup_tokens,
            draft.hit_tokens,
            self.ledger.evicted,
        )


def _seat_of(request: Request) -> int:
    return request.seat


def _identity(request: Request) -> tuple[tuple[tuple[int, int], ...], int] | None:
    """Prompt identity and the key of the output, which no prompt key can equal."""
    view = request.view
    if view.segments is None:
        return None
    return view.segments, -1 - view.index


_PROBE = RequestView(0, 0, 1, -1, -1, 0, None)
