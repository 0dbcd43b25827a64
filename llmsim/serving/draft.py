"""The next step of a replica: the mechanisms a batching policy decides with.

Rules of admission, preemption and block registration are vLLM v1's; where releases differ, the
difference is a field of `EngineRules`. The plain case, decodes plus at most one prompt in
progress, never visits the decoding requests; `_scan` does, and runs only when order matters:
when KV runs out or the budget does not reach everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llmsim.core.errors import InvariantError
from llmsim.kvcache import NO_MATCH, CountLedger, Match, PrefixLedger
from llmsim.policies.batching import BatchingPolicy
from llmsim.serving.cohort import Cohort
from llmsim.serving.config import EngineConfig
from llmsim.serving.meter import Meter
from llmsim.serving.queue import FcfsQueue, UrgencyQueue
from llmsim.serving.request import DECODE, FINISHING, PARKED, PREFILL, WAITING, Request

ADMIT: Final = 1
RESUME: Final = 2
PREEMPT: Final = 3
FINISH: Final = 4
DROP: Final = 5
"""The last five: kinds of decision in the digest."""


class Step:
    """What a batching policy gets: the verbs of a draft, and no way to the requests behind it.

    Implements `llmsim.policies.batching.StepDraft`.

    Parameters
    ----------
    draft : Draft
    """

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def budget_tokens(self) -> int:
        """Tokens that still fit into this step."""
        return self._draft.budget_tokens

    @budget_tokens.setter
    def budget_tokens(self, tokens: int) -> None:
        self._draft.budget_tokens = tokens

    @property
    def admitted(self) -> int:
        """Requests admitted into this step so far."""
        return self._draft.admitted

    @property
    def running(self) -> int:
        """Requests that hold KV."""
        return len(self._draft.running_set)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._draft.line.count

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget."""
        return self._draft.advance_running()

    def admit_waiting(self, whole_prompts: bool = False) -> None:
        """Admit from the head of the queue until one does not fit."""
        self._draft.admit_waiting(whole_prompts)


def _nobody_hands_over(request: Request, hit_tokens: int, blocks: int) -> None:
    raise InvariantError(f"request {request.view.index} comes from nowhere")


class Draft:
    """The step under construction, and the mechanisms that build it.

    Attributes
    ----------
    chunks : list of (Request, int, int)
        Prefill slices of this step: request, new tokens, tokens before them.
    logits : int [rows]
        Prefills that produce a token in this step.
    decoding : bool
        Whether the cohort ticks in this step. Its first tick's KV blocks are taken.
    preempted : list of Request
        Who lost its KV in this step.
    late : list of Request
        Members of the cohort whose next gap differs from everybody else's.
    tick_end_ns : int [ns]
        When the latest scheduled tick of the cohort has run.
    pull : callable
        Called with (request, tokens that are here, blocks to move) when room was made for KV that
        is on another replica.
    blocked_on_writer : bool
        The head of the queue may fit once a running request has published more blocks.
    """

    __slots__ = (
        "_block_ring",
        "_budget",
        "_chunk_limit",
        "_chunked",
        "_config",
        "_max_seqs",
        "_policy",
        "_reserve",
        "_scheduled",
        "_size",
        "_watermark",
        "admitted",
        "blocked_on_writer",
        "budget_tokens",
        "chunks",
        "cohort",
        "decisions",
        "decoding",
        "first_need",
        "hit_tokens",
        "late",
        "ledger",
        "limit_now",
        "line",
        "logits",
        "lookup_tokens",
        "meter",
        "now",
        "parked",
        "preempted",
        "preemptions",
        "prefilling",
        "pull",
        "running_set",
        "seats",
        "tick_end_ns",
    )

    def __init__(
        self,
        config: EngineConfig,
        policy: BatchingPolicy,
        ledger: CountLedger | PrefixLedger,
        cohort: Cohort,
        line: FcfsQueue | UrgencyQueue,
        meter: Meter,
        decisions: list[int],
    ) -> None:
        self._config = config
        self._policy = policy
        self._size = config.block_tokens
        self._max_seqs = config.max_num_seqs
        self._watermark = config.watermark_blocks
        self._reserve = config.reserve_prompt
        self._chunked = config.chunked_prefill
        self._chunk_limit = config.chunk_limit_tokens
        self._scheduled: set[Request] = set()
        self.ledger = ledger
        self.cohort = cohort
        self.line = line
        self.meter = meter
        self.decisions = decisions
        self.running_set: dict[Request, None] = {}
        self.prefilling: dict[Request, None] = {}
        self.parked: dict[Request, None] = {}
        self.seats = 0
        self.preemptions = 0
        self.lookup_tokens = 0
        self.hit_tokens = 0
        self.tick_end_ns = 0
        self.late: list[Request] = []
        self.chunks: list[tuple[Request, int, int]] = []
        self.preempted: list[Request] = []
        self._budget = config.max_num_batched_tokens
        self._block_ring = cohort.block_ring
        self.pull: Callable[[Request, int, int], None] = _nobody_hands_over
        self.begin(0)

    def begin(self, now: int) -> None:
        """Start a new step at time `now` [ns]."""
        self.now = now
        self.budget_tokens = self._budget
        if self.chunks:
            self.chunks = []
        if self.preempted:
            self.preempted = []
        self.logits = self.admitted = self.first_need = 0
        self.decoding = self.blocked_on_writer = False
        limit = self._chunk_limit
        if limit and self._config.rules.lone_request_unchunked:
            limit = 0 if len(self.running_set) + self.line.count == 1 else limit
        self.limit_now = limit

    # --- who is running ---------------------------------------------------------------------

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget."""
        cohort = self.cohort
        if self.parked:
            return self._scan()
        count = cohort.count
        if self.prefilling:
            return self._advance_prefills(count) or self._scan()
        if not count:
            return True
        if count <= self.budget_tokens:
            need = self._block_ring[cohort.tick % self._size]
            ledger = self.ledger
            if need <= ledger.free:
                if need:
                    ledger.take(need)
                self.first_need = need
                self.decoding = True
                self.budget_tokens -= count
                return True
        return self._scan()

    def _advance_prefills(self, count: int) -> bool:
        """Advance decodes and prefills together where running order makes no difference."""
        prefilling = self.prefilling
        left = self.budget_tokens - count
        if left < 0 or next(iter(prefilling)).seat < self.cohort.top_seat:
            return False
        size = self._size
        limit = self.limit_now
        need = first = self.cohort.blocks_needed(1)
        slices = []
        for request in prefilling:
            tokens = request.prompt + request.generated - request.computed
            if limit and tokens > limit:
                tokens = limit
            if tokens > left:
                tokens = left
            if not tokens:
                break
            past = request.computed
            need += -(-(past + tokens) // size) + (-past // size)
            slices.append((request, tokens))
            left -= tokens
        if need > self.ledger.free:
            return False
        self.ledger.take(need)
        self.first_need = first
        self.decoding = count > 0
        self.budget_tokens -= count
        for request, tokens in slices:
            self._compute(request, request.computed, tokens)
        return True

    def _scan(self) -> bool:
        """Walk the running list in order, preempting where KV runs out: the exact slow path."""
        cohort = self.cohort
        ledger = self.ledger
        size = self._size
        scheduled = self._scheduled
        scheduled.clear()
        fcfs = self._policy_is_fcfs()
        self.decoding = cohort.count > 0
        tick = cohort.tick
        for request in list(self.running_set):
            if self.budget_tokens <= 0:
                break
            state = request.state
            if state in (WAITING, FINISHING):
                continue
            if state == PREFILL:
                past = request.computed
                tokens = request.prompt + request.generated - past
                if self.limit_now:
                    tokens = min(tokens, self.limit_now)
                tokens = min(tokens, self.budget_tokens)
            else:
                past = request.base + tick if state == DECODE else request.computed
                tokens = 1
            need = -(-(past + tokens) // size) + (-past // size)
            kept = True
            while need > ledger.free:
                victim = self._victim()
                self._preempt(victim)
                if victim is request:
                    kept = False
                    break
            if not kept:
                if fcfs or self._config.rules.scan_ends_on_self_preemption:
                    break
                continue
            if need:
                ledger.take(need)
            scheduled.add(request)
            if state == PREFILL:
                self._compute(request, past, tokens)
            else:
                if state == PARKED:
                    del self.parked[request]
                    request.state = DECODE
                    cohort.join(request)
                    self.late.append(request)
                self.budget_tokens -= 1
        for request in self.running_set:  # decodes that the budget did not reach sit this one out
            if request.state == DECODE and request not in scheduled:
                cohort.leave(request)
                self.meter.left(request, cohort.tick, self.tick_end_ns)
                if self.late and request in self.late:
                    self.late.remove(request)
                request.state = PARKED
                self.parked[request] = None
        self.decoding = cohort.count > 0
        self.first_need = -1  # already taken, request by request
        scheduled.clear()
        return not self.preempted

    def _policy_is_fcfs(self) -> bool:
        return isinstance(self.line, FcfsQueue)

    def _victim(self) -> Request:
        if self._policy_is_fcfs():
            return next(reversed(self.running_set))
        urgency = self._policy.urgency
        return max(self.running_set, key=lambda request: urgency(request.view) or ())

    def _preempt(self, victim: Request) -> None:
        """Take a request's KV away and put it back in line; its generated tokens stay."""
        size = self._size
        scheduled = victim in self._scheduled
        lookahead = self._config.lookahead
        state = victim.state
        del self.running_set[victim]
        if state == DECODE:
            self.cohort.leave(victim)
            self.meter.left(victim, self.cohort.tick, self.tick_end_ns)
            allocated = cached = victim.computed
            if scheduled:
                self._scheduled.discard(victim)
                self.budget_tokens += 1
                allocated = cached = victim.computed + 1
            cached -= lookahead
        elif state == PARKED:
            del self.parked[victim]
            allocated = cached = victim.computed
        else:
            allocated = cached = victim.computed
            if state == FINISHING:
                cached -= lookahead
            else:
                del self.prefilling[victim]
                if scheduled:
                    self._scheduled.discard(victim)
                    self._unschedule(victim)
        if self.late and victim in self.late:
            self.late.remove(victim)
        self.ledger.release(victim, -(-allocated // size), cached)
        victim.recomputed += victim.computed
        victim.preemptions += 1
        victim.held_blocks = 0
        self.preempted.append(victim)
        self.preemptions += 1
        self.decisions.extend((PREEMPT, victim.view.index, self.now))
        if state == FINISHING:
            return  # its last token is on the way; it ends without its KV
        victim.computed = 0
        victim.state = WAITING
        victim.queued_ns = self.now
        self.line.push_back(victim)

    def _unschedule(self, victim: Request) -> None:
        for at, (request, tokens, past) in enumerate(self.chunks):
            if request is victim:
                self.budget_tokens += tokens
                if past + tokens == victim.prompt + victim.generated:
                    self.logits -= 1
                victim.computed = past
                del self.chunks[at]
                return

    # --- who is waiting ---------------------------------------------------------------------

    def admit_waiting(self, whole_prompts: bool = False) -> None:
        """Admit from the head of the queue until one does not fit."""
        running = self.running_set
        line = self.line
        ledger = self.ledger
        size = self._size
        chunked = self._chunked and not whole_prompts
        caches = ledger.caches
        while self.budget_tokens > 0 and len(running) < self._max_seqs:
            request = line.head()
            if request is None:
                return
            if request.lease is not None:
                if self._make_room(request):
                    continue
                return
            known = request.prompt + request.generated
            view = request.view
            match = NO_MATCH
            if caches and (view.segments is not None or request.preemptions):
                match = ledger.match(request, known)
            hit = match.blocks * size
            tokens = known - hit
            if self.limit_now and tokens > self.limit_now:
                tokens = self.limit_now
            if tokens > self.budget_tokens:
                if not chunked:
                    self._blocked(request, match)
                    return
                tokens = self.budget_tokens
            spared = match.unreferenced - match.blocks
            room = ledger.free - (self._watermark if running else 0)
            blocks = -(-(hit + tokens) // size)
            if blocks + spared > room or (self._reserve and -(-known // size) + spared > room):
                self._blocked(request, match)
                return
            line.pop()
            if hit:
                ledger.hold(request, match)
            ledger.take(blocks - match.blocks)
            self._seat(request, hit)
            self._compute(request, hit, tokens)

    def _make_room(self, request: Request) -> bool:
        """Take blocks for KV that another replica has computed, and have it pulled, if it fits."""
        ledger = self.ledger
        size = self._size
        tokens = request.prompt
        match = NO_MATCH
        if ledger.caches and request.view.segments is not None:
            match = ledger.match(request, tokens + 1)
        blocks = -(-tokens // size)
        room = ledger.free - (self._watermark if self.running_set else 0)
        if blocks + match.unreferenced - match.blocks > room:
            self._blocked(request, match)
            return False
        self.line.pop()
        if match.blocks:
            ledger.hold(request, match)
        ledger.take(blocks - match.blocks)
        request.computed = tokens
        if request.queued_ns < self.now:
            self.meter.waited(request.queued_ns, self.now)
        self.decisions.extend((ADMIT, request.view.index, self.now))
        self.pull(request, match.blocks * size, blocks - match.blocks)
        return True

    def _blocked(self, request: Request, match: Match) -> None:
        ledger = self.ledger
        if isinstance(ledger, PrefixLedger) and ledger.may_grow(request, match):
            self.blocked_on_writer = True

    def has_seat(self) -> bool:
        """Whether one more request may run."""
        return len(self.running_set) < self._max_seqs

    def take_seat(self, request: Request) -> None:
        """Let a request run whose prompt's KV is here; its blocks are taken."""
        request.seat = self.seats
        self.seats += 1
        self.running_set[request] = None
        if self.ledger.caches and request.view.segments is not None:
            self.ledger.register(request, request.computed)

    def _seat(self, request: Request, hit: int) -> None:
        now = self.now
        self.admitted += 1
        request.seat = self.seats
        self.seats += 1
        request.state = PREFILL
        self.running_set[request] = None
        self.prefilling[request] = None
        if request.queued_ns < now:
            self.meter.waited(request.queued_ns, now)
        if request.scheduled_ns < 0:
            request.scheduled_ns = now
            request.cached_tokens = hit
            self.lookup_tokens += request.prompt
            self.hit_tokens += hit
            self.decisions.extend((ADMIT, request.view.index, now))
        else:
            self.decisions.extend((RESUME, request.view.index, now))

    def _compute(self, request: Request, past: int, tokens: int) -> None:
        computed = past + tokens
        request.computed = computed
        self.budget_tokens -= tokens
        self.chunks.append((request, tokens, past))
        if computed == request.prompt + request.generated:
            self.logits += 1
        # a prompt unlike all others is found by nobody but itself, and registered on release
        if self.ledger.caches and request.view.segments is not None:
            self.ledger.register(request, computed)
