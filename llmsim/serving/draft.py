"""The next step of a replica: its state, and the advance of who is running.

Rules of admission, preemption and block registration are vLLM v1's; where releases differ, the
difference is a field of `EngineRules`. The plain case, decodes plus at most one prompt in
progress, never visits the decoding requests; `preemption.scan` does, and runs only when order
matters: when KV runs out or the budget does not reach everybody. `admission` lets new ones in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.kvcache import CountLedger, PrefixLedger
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.ordering import ChoosesVictims, GuardsAdmission, Running
from llmsim.serving.cohort import FOREVER, Cohort
from llmsim.serving.config import EngineConfig
from llmsim.serving.meter import Meter
from llmsim.serving.preemption import scan
from llmsim.serving.queue import FcfsQueue, OrderedQueue, UrgencyQueue
from llmsim.serving.request import DECODE, Request

if TYPE_CHECKING:
    from llmsim.kvcache.segments import SegmentReuse
    from llmsim.serving.claims import ClaimLedger
    from llmsim.serving.gate import Gate
    from llmsim.serving.keeper import Keeper
    from llmsim.serving.leases import Retainer
    from llmsim.serving.shelf import Shelf
    from llmsim.serving.swap import Swapper
    from llmsim.serving.together import Together


def _nobody_hands_over(request: Request, hit_tokens: int, blocks: int) -> None:
    raise InvariantError(f"request {request.view.index} comes from nowhere")


class Draft:
    """The step under construction, and the mechanisms that build it.

    Attributes
    ----------
    fcfs : bool
        The queue is first come, first served, and the victim is who was admitted last.
    scheduled : set of Request
        Who `preemption.scan` has given tokens so far.
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
    gates : list of Gate
        Transfers that this step waits for, in whole or layer by layer.
    keeper : Keeper or None
        Loads what tiers below the GPU know of a request; None where there are none.
    retainer : Retainer or None
        Pins KV for programs between two of their calls; None where nothing is pinned.
    swapper : Swapper or None
        Takes the KV of victims to the host; None where it is computed again.
    pull : callable
        Called with (request, tokens that are here, blocks to move) when room was made for KV that
        is on another replica.
    displaces : bool
        Whether the policy may give a running request's seat to one that arrives.
    claims : ClaimLedger or None
        The ledger, where requests are promised memory; None where they are not.
    guarded : bool
        Blocks and a seat are not enough for admission.
    guard : GuardsAdmission or None
        The policy, if it has a condition of its own for admission.
    chooser : ChoosesVictims or None
        The policy, if it says who loses its KV.
    reuse : SegmentReuse or None
        Finds KV that does not stand in front; None where only prefixes are reused.
    shelf : Shelf or None
        Keeps prefixes that are being computed out of the cache until their results are in, where
        the policy's engine works like that.
    together : Together or None
        Keeps results until nobody runs, where the policy wants that.
    most_ticks : int
        Ticks after which the policy must be asked again, whatever else happens.
    beside : int [requests]
        Who runs in other micro-batches of the same replica, beyond `running_set`.
    owed_blocks : int [blocks]
        What prompts in progress on other lanes have yet to take of the same KV blocks.
    blocked_on_writer : bool
        The head of the queue may fit once a running request has published more blocks.
    """

    __slots__ = (
        "_block_ring",
        "_budget",
        "_chunk_limit",
        "admitted",
        "beside",
        "block_tokens",
        "blocked_on_writer",
        "budget_tokens",
        "chooser",
        "chunked",
        "chunks",
        "claims",
        "cohort",
        "config",
        "decisions",
        "decoding",
        "displaces",
        "fcfs",
        "first_need",
        "gates",
        "guard",
        "guarded",
        "hit_tokens",
        "keeper",
        "late",
        "ledger",
        "limit_now",
        "line",
        "logits",
        "lookup_tokens",
        "max_seqs",
        "meter",
        "most_ticks",
        "now",
        "owed_blocks",
        "parked",
        "policy",
        "preempted",
        "preemptions",
        "prefilling",
        "pull",
        "reserve_prompt",
        "retainer",
        "reuse",
        "running_set",
        "scheduled",
        "seats",
        "shelf",
        "swapper",
        "tick_end_ns",
        "together",
        "watermark_blocks",
    )

    def __init__(
        self,
        config: EngineConfig,
        policy: BatchingPolicy,
        ledger: CountLedger | PrefixLedger,
        cohort: Cohort,
        line: FcfsQueue | OrderedQueue | UrgencyQueue,
        meter: Meter,
        decisions: list[int],
    ) -> None:
        self.config = config
        self.policy = policy
        self.guard: GuardsAdmission | None = policy if isinstance(policy, GuardsAdmission) else None
        self.chooser: ChoosesVictims | None = policy if isinstance(policy, ChoosesVictims) else None
        self.fcfs = isinstance(line, FcfsQueue) and self.chooser is None
        self.displaces = bool(getattr(policy, "displaces", False))
        self.claims: ClaimLedger | None = None
        self.guarded = False
        self.reuse: SegmentReuse | None = None
        self.shelf: Shelf | None = None
        self.together: Together | None = None
        self.block_tokens = config.block_tokens
        self.max_seqs = config.max_num_seqs
        self.watermark_blocks = config.watermark_blocks
        self.reserve_prompt = config.reserve_prompt
        self.chunked = config.chunked_prefill
        self._chunk_limit = config.chunk_limit_tokens
        self.scheduled: set[Request] = set()
        self.ledger = ledger
        self.cohort = cohort
        self.line = line
        self.meter = meter
        self.decisions = decisions
        self.running_set: dict[Request, None] = {}
        self.prefilling: dict[Request, None] = {}
        self.parked: dict[Request, None] = {}
        self.seats = 0
        self.preemptions = self.beside = self.owed_blocks = 0
        self.lookup_tokens = 0
        self.hit_tokens = 0
        self.tick_end_ns = 0
        self.late: list[Request] = []
        self.chunks: list[tuple[Request, int, int]] = []
        self.preempted: list[Request] = []
        self._budget = config.max_num_batched_tokens
        self._block_ring = cohort.block_ring
        self.gates: list[Gate] = []
        self.swapper: Swapper | None = None
        self.keeper: Keeper | None = None
        self.retainer: Retainer | None = None
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
        self.most_ticks = FOREVER
        if self.shelf is not None:
            self.shelf.publish(self)
        limit = self._chunk_limit
        if limit and self.config.rules.lone_request_unchunked:
            limit = 0 if len(self.running_set) + self.line.count == 1 else limit
        self.limit_now = limit

    def owing_blocks(self) -> int:
        """Return how many KV blocks the prompts in progress have yet to take [blocks]."""
        size = self.block_tokens
        owing = 0
        for request in self.prefilling:
            known = request.prompt + request.generated
            owing += -(-known // size) - -(-request.computed // size)
        return owing

    def holds_step(self) -> bool:
        """Whether something has yet to come that this step waits for."""
        return any(gate.ended_ns < 0 for gate in self.gates)

    def gated_end_ns(self, start_ns: int, duration_ns: int) -> int:
        """Return when a step ends that had to wait for what has come by now.

        Parameters
        ----------
        start_ns, duration_ns : int [ns]
            Of the step if it had nothing to wait for.
        """
        end = max(gate.end_ns(start_ns, duration_ns) for gate in self.gates)
        self.gates = []
        return max(end, start_ns + duration_ns)

    # --- who is running ---------------------------------------------------------------------

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget."""
        cohort = self.cohort
        if self.parked:
            return scan(self)
        count = cohort.count
        if self.prefilling:
            return self._advance_prefills(count) or scan(self)
        if not count:
            return True
        if count <= self.budget_tokens:
            need = self._block_ring[cohort.tick % self.block_tokens]
            ledger = self.ledger
            if need <= ledger.free:
                if need:
                    ledger.take(need)
                self.first_need = need
                self.decoding = True
                self.budget_tokens -= count
                return True
        return scan(self)

    def advance_prefills(self) -> bool:
        """Give prompts in progress their next tokens, and nobody else, within the budget.

        Returns
        -------
        bool
            Whether there were blocks for them; nothing is planned if not.
        """
        return not self.prefilling or self._advance_prefills(0)

    def running_now(self) -> list[Running]:
        """Return who holds KV, with the output tokens so far."""
        tick = self.cohort.tick
        return [
            Running(
                request.view,
                request.base + tick - request.prompt + 1
                if request.state == DECODE
                else request.generated,
                request in self.prefilling,
            )
            for request in self.running_set
        ]

    def _advance_prefills(self, count: int) -> bool:
        """Advance decodes and prefills together where running order makes no difference."""
        prefilling = self.prefilling
        left = self.budget_tokens - count
        if left < 0 or (count and next(iter(prefilling)).seat < self.cohort.top_seat):
            return False
        size = self.block_tokens
        limit = self.limit_now
        need = first = self.cohort.blocks_needed(1) if count else 0
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
            self.compute(request, request.computed, tokens)
        return True

    def has_seat(self) -> bool:
        """Whether one more request may run."""
        return len(self.running_set) < self.max_seqs

    def take_seat(self, request: Request) -> None:
        """Let a request run whose prompt's KV is here; its blocks are taken."""
        request.seat = self.seats
        self.seats += 1
        self.running_set[request] = None
        if self.ledger.caches and request.view.segments is not None:
            self.ledger.register(request, request.computed)

    def compute(self, request: Request, past: int, tokens: int) -> None:
        """Give a prefill `tokens` more tokens in this step, after `past`."""
        computed = past + tokens
        request.computed = computed
        self.budget_tokens -= tokens
        self.chunks.append((request, tokens, past))
        if computed == request.prompt + request.generated:
            self.logits += 1
        # a prompt unlike all others is found by nobody but itself, and registered on release
        if self.ledger.caches and request.view.segments is not None:
            if self.shelf is None:
                self.ledger.register(request, computed)
            else:
                self.shelf.keep(request, computed)
