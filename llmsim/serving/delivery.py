"""What happens to requests when a step has run: tokens out, decodes seated, the finished gone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmsim.core.errors import InvariantError
from llmsim.kvcache import Holder
from llmsim.serving.decisions import DROP, FINISH, LOSE
from llmsim.serving.draft import Draft
from llmsim.serving.request import (
    DECODE,
    FINISHING,
    HANDED,
    HELD,
    PARKED,
    PREFILL,
    SWAPPED,
    WAITING,
    Request,
)
from llmsim.serving.stretch import Stretch


def _nobody_hands_over(request: Request, outcome: str) -> None:
    raise InvariantError(f"request {request.view.index} was never handed over")


def _nobody_moves(request: Request, ready_ns: int) -> None:
    raise InvariantError(f"request {request.view.index} moves nowhere")


def _nobody_fails(requests: list[Request]) -> None:
    raise InvariantError(f"{len(requests)} requests are lost without a failure")


class Delivery:
    """The end of a step on one replica.

    Parameters
    ----------
    draft : Draft
        Whose running requests, cohort, ledger and meter are served.
    stretch : Stretch
        Loses its anchor when the cohort changes.
    block_tokens : int [tokens]
    lookahead : int
    on_end : callable
        Called with (request, outcome name, time) when a request ends.

    Attributes
    ----------
    completing : list of Request
        Prefills that give a token in the step under way.
    pending : list of Request
        Requests whose last token is on the way (lookahead 1).
    leaving : list of (Request, str)
        Requests whose clients have left, with their outcome.
    unticked : list of Request
        Members of the cohort that have not had a tick yet.
    hand_over : callable or None
        Called with a request whose prompt is computed, where others decode it.
    hands_early : bool
        Whether it is called when the last step of a prompt is launched, not when it has run.
    hands_all : bool
        Whether that happens before anybody can know that a first token will be the only one.
    drop_handed : callable
        Called with such a request and an outcome when its client leaves in the same call.
    arrived : deque of Request
        Requests whose KV has come from another replica and who have no seat yet.
    departing : list of Request
        Requests that go on decoding on another replica from the next call on.
    depart : callable
        Called with such a request and the time when its last token here is out [ns]; with -1 if
        it does not decode any more.
    failing : bool
        The replica has failed: whatever is here is lost at the next call.
    lose : callable
        Called with the requests that this happens to.
    stalled : bool
        The cohort has sat out a step since its latest tick.
    """

    __slots__ = (
        "_block_tokens", "_cohort", "_draft", "_ledger", "_lookahead", "_meter", "_on_end",
        "_stretch", "arrived", "completing", "depart", "departing", "drop_handed", "failing",
        "hand_over", "hands_all", "hands_early", "leaving", "lose", "pending", "stalled",
        "unticked"
    )  # fmt: skip

    def __init__(
        self,
        draft: Draft,
        stretch: Stretch,
        block_tokens: int,
        lookahead: int,
        on_end: Callable[[Request, str, int], None],
    ) -> None:
        self._draft = draft
        self._cohort = draft.cohort
        self._ledger = draft.ledger
        self._meter = draft.meter
        self._stretch = stretch
        self._block_tokens = block_tokens
        self._lookahead = lookahead
        self._on_end = on_end
        self.completing: list[Request] = []
        self.pending: list[Request] = []
        self.leaving: list[tuple[Request, str]] = []
        self.unticked: list[Request] = []
        self.arrived: deque[Request] = deque()
        self.departing: list[Request] = []
        self.depart: Callable[[Request, int], None] = _nobody_moves
        self.failing = False
        self.lose: Callable[[list[Request]], None] = _nobody_fails
        self.stalled = False
        self.hand_over: Callable[[Request], None] | None = None
        self.hands_early = self.hands_all = False
        self.drop_handed: Callable[[Request, str], None] = _nobody_hands_over

    def emit_first(self, request: Request, end_ns: int) -> None:
        """Note that a prefill gives its token at the end of its step [ns]."""
        if request.generated:
            self._meter.lone_gap(request, end_ns - request.last_token_ns)
        else:
            request.first_token_ns = end_ns
        request.generated += 1
        request.last_token_ns = end_ns
        self.completing.append(request)

    def withdraw(self, request: Request, outcome: str, now: int) -> None:
        """End a request that still waits."""
        draft = self._draft
        request.ended = True
        draft.line.withdraw(request)
        if request.queued_ns < now:
            self._meter.waited(request.queued_ns, now)
        draft.decisions.extend((DROP, request.view.index, now))
        if request.fetched_blocks and draft.keeper is not None:
            draft.keeper.leave_line(request)
        if draft.retainer is not None:
            draft.retainer.left(request)
        self._ledger.forget(request)
        self._on_end(request, outcome, now)

    def sit_out(self) -> None:
        """Note that the cohort sits out a step: its members wait unequally long from now on."""
        if not self.stalled:
            self.stalled = True
            # who was preempted and came back stands there twice, who has left still once
            here = dict.fromkeys(self.unticked)
            self._draft.late.extend(r for r in here if r.state == DECODE and not r.ended)

    def miss_token(self, tick: int, tick_end_ns: int, gap_ns: int) -> int:
        """Let the members that are leaving have their tokens up to before the latest tick.

        Whose last token is on the way is as good as finished and misses nothing.

        Parameters
        ----------
        tick : int
            Ticks whose tokens they get.
        tick_end_ns : int [ns]
            When the last of these has run.
        gap_ns : int [ns]
            Gap before the token that they miss.

        Returns
        -------
        int [requests]
            How many miss one.
        """
        missing = 0
        for request, _ in self.leaving:
            if request.missed_gap_ns or request.ended:
                continue
            if request.state == DECODE and request.finish_tick > tick + 1:
                self._meter.left(request, tick, tick_end_ns)
                request.missed_gap_ns = gap_ns
                missing += 1
        return missing

    def tick_without_leaving(self, ticks: int, first: int, last: int, call_ns: int) -> int:
        """Account for all ticks but the last, whose tokens no longer reach who is leaving.

        Parameters
        ----------
        ticks : int
            All but the last.
        first, last : int [ns]
            Gaps of the first and of the very last tick.
        call_ns : int [ns]
            When the last tick starts.

        Returns
        -------
        int [tokens]
            Tokens that do not reach anybody.
        """
        meter = self._meter
        tick = self._cohort.tick
        end = self._draft.tick_end_ns
        if ticks:
            gap = self._stretch.gap_at(ticks - 1)
            if gap > meter.slo:
                meter.exceeded(ticks, first, self._stretch.gap_at)
            meter.ticked(tick + ticks - 1, gap)
            end = call_ns
        return self.miss_token(tick + ticks, end, last)

    def tick_unevenly(self, count: int, start_ns: int, end_ns: int, gap_ns: int) -> int:
        """Account for one tick whose members have waited unequally long for their token.

        Parameters
        ----------
        count : int
            Members.
        start_ns, end_ns : int [ns]
            Of the step.
        gap_ns : int [ns]
            Of those who have had a token in the step before.

        Returns
        -------
        int [tokens]
            Tokens of the members whose gaps are recorded one by one.
        """
        meter = self._meter
        draft = self._draft
        late = draft.late
        gap = end_ns - draft.tick_end_ns if self.stalled else gap_ns
        self.stalled = False
        tick = self._cohort.tick
        missing = 0
        if self.leaving and self._lookahead:
            missing = self.miss_token(tick, draft.tick_end_ns, gap)
        regular = count - len(late)
        if regular:
            if gap > meter.slo:
                meter.over += 1
            meter.ticked(tick, gap)
            meter.log(start_ns, start_ns, 1, regular, 0, 0, 0, 0, 0, gap, gap, 0)  # gaps alone
        for request in late:
            lone = end_ns - request.last_token_ns
            if request.missed_gap_ns:
                request.missed_gap_ns = lone
                meter.itl.add(lone)  # taken back when it has left
                continue
            meter.lone_gap(request, lone)
            request.last_token_ns = end_ns
            request.itl_over_at_join = meter.over
            request.join_tick = tick + 1
        alone = len(late) - missing
        late.clear()
        return alone

    def settle(self, now: int, exec_end_ns: int) -> None:
        """Deliver outputs, seat the prefilled among the decodes, let the finished go."""
        if self.pending:
            for request in self.pending:
                self._finish(request, request.last_token_ns)
            self.pending = []
        cohort = self._cohort
        done: list[Request] = []
        if cohort.due <= cohort.tick:
            while cohort.due <= cohort.tick:
                finished = cohort.pop_finished()
                self._meter.left(finished, cohort.tick, self._draft.tick_end_ns)
                done.append(finished)
            self._stretch.anchored = False
        if self.completing:
            self._seat_completed(done, now)
        if not cohort.count:
            self._meter.clear()
        if done:
            if len(done) > 1:
                done.sort(key=_seat_of)
            if self._lookahead and exec_end_ns > now:
                for request in done:
                    request.state = FINISHING
                self.pending = done
            else:
                for request in done:
                    self._finish(request, request.last_token_ns)
        if self.leaving:
            self._let_go(now)
        if self.departing:
            self._let_depart(now)
        if self.failing:
            self._fail(now)
        if self.arrived:
            self._seat_arrived(now)

    def _seat_completed(self, done: list[Request], now: int) -> None:
        """Prefills whose step ran (or runs) become decodes, or are done with one token."""
        stalled = self.stalled
        keeper = self._draft.keeper
        for request in self.completing:
            if request.state != PREFILL:
                continue  # preempted or gone meanwhile
            del self._draft.prefilling[request]
            if keeper is not None:
                keeper.writer.computed(request)
            last = request.generated >= request.output
            if last and not (self.hands_all and self.hand_over and request.last_token_ns > now):
                done.append(request)
                continue
            if self.hand_over is not None:
                del self._draft.running_set[request]
                self.hand_over(request)
                continue
            self._join(request)
            if stalled:
                self._draft.late.append(request)
            else:
                self.unticked.append(request)
        self.completing = []
        self._stretch.anchored = False

    def hand_early(self) -> None:
        """Hand those over whose prompt's last step has been launched, before it has run."""
        hand_over, draft = self.hand_over, self._draft
        if hand_over is None:
            return
        early, self.completing = self.completing, []
        for request in early:
            if draft.keeper is not None:
                draft.keeper.writer.computed(request)
            del draft.prefilling[request], draft.running_set[request]
            hand_over(request)

    def _join(self, request: Request) -> None:
        request.state = DECODE
        path = request.path
        if path and path[-1][0].slot is not None and self._draft.shelf is None:
            path[-1][0].writer = request  # lookups ask for the blocks it is writing
        request.itl_over_at_join = self._meter.over
        self._cohort.join(request)

    def _seat_arrived(self, now: int) -> None:
        """Let those decode whose KV has come, as far as there are seats."""
        draft = self._draft
        arrived = self.arrived
        while arrived and draft.has_seat():
            request = arrived.popleft()
            if request.ended:
                continue
            if request.owed_token:
                request.owed_token = False
                request.first_token_ns = request.last_token_ns = now
            draft.take_seat(request)
            self._join(request)
            draft.late.append(request)
            self._stretch.anchored = False

    def _finish(self, request: Request, time_ns: int) -> None:
        # a request may lose its KV to a preemption while its last token is on the way
        if request.state != FINISHING or request in self._draft.running_set:
            del self._draft.running_set[request]
            computed = request.computed
            retainer = self._draft.retainer
            if retainer is not None:
                retainer.ended(request)
            keeper = self._draft.keeper
            if keeper is None or not keeper.writer.finished(request):
                self._ledger.retire(request, -(-computed // self._block_tokens), computed)
        else:
            self._ledger.forget(request)
        self.close(request, time_ns)

    def close(self, request: Request, time_ns: int) -> None:
        """Note that a request has finished, and has given back what it held [ns]."""
        request.ended = True
        self._draft.decisions.extend((FINISH, request.view.index, request.first_token_ns, time_ns))
        self._on_end(request, "finished", time_ns)

    def _let_go(self, now: int) -> None:
        for request, outcome in self.leaving:
            if request.ended:
                continue
            state = request.state
            if state == FINISHING:
                continue  # all its tokens are computed; it ends as finished
            if state == WAITING:  # preempted meanwhile
                self.withdraw(request, outcome, now)
                continue
            if state == SWAPPED and self._draft.swapper is not None:
                self._draft.swapper.drop(request, outcome)
                continue
            together = self._draft.together
            if state == HELD and together is not None:  # in this very call
                together.drop(request, outcome, now)
                continue
            if state >= HANDED:  # in this very call
                self.drop_handed(request, outcome)
                continue
            self._remove_running(request, state, now)
            request.ended = True
            self._ledger.forget(request)
            self._draft.decisions.extend((DROP, request.view.index, now))
            self._on_end(request, outcome, now)
        self.leaving = []

    def _let_depart(self, now: int) -> None:
        for request in self.departing:
            if request.ended or request.state not in (DECODE, PARKED):
                self.depart(request, -1)
                continue
            self._take_out(request, True)
            self.depart(request, max(now, request.last_token_ns))
        self.departing = []

    def _take_out(self, request: Request, goes_on: bool) -> None:
        """Take a request that ends, or goes on elsewhere, out of what is planned from."""
        draft = self._draft
        if request.state == DECODE:
            (self._expel if goes_on else self._leave_cohort)(request)
        elif request.state == PARKED:
            del draft.parked[request]
        else:
            del draft.prefilling[request]
        del draft.running_set[request]

    def _expel(self, request: Request) -> None:
        """Take a request out of the cohort that goes on elsewhere."""
        self._cohort.expel(request)
        self._meter.left(request, self._cohort.tick, self._draft.tick_end_ns)
        self._stretch.anchored = False
        for line in (self._draft.late, self.unticked):
            while request in line:
                line.remove(request)

    def _fail(self, now: int) -> None:
        """Lose all KV; who runs goes on elsewhere, from its prompt and the tokens it has had."""
        self.failing = False
        draft = self._draft
        ledger = self._ledger
        lost: list[Request] = []
        for request in list(draft.running_set):
            if request.state == FINISHING:
                continue  # its last token is out with the step under way
            self._take_out(request, True)
            lost.append(request)
        lost += [request for request in self.arrived if not request.ended]
        self.arrived.clear()
        for request in lost:
            ledger.release(request, -(-request.computed // self._block_tokens), 0)
            ledger.forget(request)
            request.held_blocks = 0
            request.recomputed += request.computed
            request.preemptions += 1
            request.computed = 0
            if request.owed_token:
                self.unsay(request, now)
            draft.decisions.extend((LOSE, request.view.index, now))
        if draft.retainer is not None:
            draft.retainer.drop_all()
        blocks = ledger.free  # what is cached is overwritten
        ledger.take(blocks)
        ledger.release(Holder(), blocks, 0)
        self.lose(lost)

    def _remove_running(self, request: Request, state: int, now: int) -> None:
        self._take_out(request, False)
        computed = request.computed
        cached = computed - self._lookahead if state == DECODE else computed
        self._ledger.release(request, -(-computed // self._block_tokens), cached)
        if request.first_token_ns > now:  # it was on the way
            self.unsay(request, now)

    def unsay(self, request: Request, now: int) -> None:
        """Undo the first token of a request, which its client has not been given."""
        request.owed_token = False
        request.first_token_ns = request.last_token_ns = -1
        request.generated = 0
        self._meter.log(now, now, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0)

    def _leave_cohort(self, request: Request) -> None:
        missed = request.missed_gap_ns
        self._cohort.leave(request)
        if missed:
            request.generated -= 1
            self._meter.itl.add(missed, -1)
        else:
            self._meter.left(request, self._cohort.tick, self._draft.tick_end_ns)
        self._stretch.anchored = False
        late = self._draft.late
        if request in late:
            late.remove(request)


def _seat_of(request: Request) -> int:
    return request.seat
