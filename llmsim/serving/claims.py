"""KV memory that is promised to running requests: a ledger of claims beside the count of blocks.

Admission asks what is not promised yet. A request takes the blocks of its claim one by one as its
KV grows, so that what is used stays below what is claimed; who reaches the end of its claim has it
renewed before its next token, or loses its KV. Requests that decode are looked at only then.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from llmsim.core.errors import InvariantError
from llmsim.core.units import seconds_to_ns
from llmsim.kvcache import CountLedger, Holder
from llmsim.policies.allocation import Allocator
from llmsim.results.timeline import Timeline, TimelineData
from llmsim.serving.clock import Clock
from llmsim.serving.cohort import FOREVER
from llmsim.serving.preemption import preempt
from llmsim.serving.request import DECODE, PARKED, Request

if TYPE_CHECKING:
    from llmsim.serving.draft import Draft

_FLUSH = 3 * 4_096


class ClaimLedger(CountLedger):
    """Blocks as a count, and who has been promised how many of them.

    Parameters
    ----------
    blocks : int [blocks]
        Usable blocks.
    block_tokens : int [tokens]
    allocator : Allocator
    most_tokens : int [tokens]
        Longest prompt plus output.
    clock : Clock

    Attributes
    ----------
    claimed : int [blocks]
        Promised to everybody who runs; at most the capacity.
    renewals : int
        Claims that were outgrown.
    wait_ns : int [ns]
        For which the next step waits, while memory is made ready that nobody has used before.
    """

    __slots__ = (
        "_allocator",
        "_claims",
        "_clock",
        "_held_ns",
        "_log",
        "_most_claimed",
        "_most_tokens",
        "_next",
        "_outgrown",
        "_ready_ns",
        "_since_ns",
        "_starting",
        "_timeline",
        "claimed",
        "renewals",
        "wait_ns",
    )

    def __init__(
        self, blocks: int, block_tokens: int, allocator: Allocator, most_tokens: int, clock: Clock
    ) -> None:
        super().__init__(blocks, block_tokens)
        self._allocator = allocator
        self._most_tokens = most_tokens
        self._clock = clock
        self._claims: dict[Holder, int] = {}  # tokens, of everybody who runs
        self._next: dict[Holder, int] = {}  # tokens, of who was evicted for having too few
        self._starting: list[Request] = []  # runs, but its place in the heap is not known
        self._outgrown: list[tuple[int, int, Request]] = []  # (tick, seat, request)
        self._timeline = Timeline()
        self._log: list[int] = []
        self._since_ns = 0
        self.claimed = self._most_claimed = 0
        self.renewals = 0
        self.wait_ns = 0
        self._ready_ns, self._held_ns = -1, 0  # of the last step that waited

    # --- claims -----------------------------------------------------------------------------

    def _wanted(self, request: Request, known: int) -> int:
        """Return what a request claims at its admission [tokens]."""
        asked = self._allocator.claim_tokens(request.view, known, self._most_tokens)
        return self._within(max(known, asked, self._next.get(request, 0)))

    def _within(self, tokens: int) -> int:
        """Return a claim that the whole pool can meet [tokens]."""
        return min(tokens, self.capacity * self.block_tokens)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def fits(self, request: Request, known: int) -> bool:
        """Whether a waiting request of `known` tokens can be promised what it claims."""
        return self._blocks(self._wanted(request, known)) <= self.capacity - self.claimed

    def open(self, request: Request, known: int) -> None:
        """Promise a request that is admitted what it claims."""
        tokens = self._wanted(request, known)
        self._claims[request] = tokens
        self._starting.append(request)
        self._move(self._blocks(tokens))

    def release(self, request: Holder, allocated: int, tokens: int) -> None:
        """Give back a request's blocks and its claim."""
        self.free += allocated
        self._move(-self._blocks(self._claims.pop(request)))

    def retire(self, request: Holder, allocated: int, tokens: int) -> None:
        """Give back the blocks and the claim of a request that has ended."""
        self.release(request, allocated, tokens)
        self.forget(request)

    def forget(self, request: Holder) -> None:
        """Drop what is kept about a request that has ended."""
        self._next.pop(request, 0)

    # --- claims that are outgrown -----------------------------------------------------------

    def renew(self, draft: Draft) -> None:
        """Renew the claims that are too small for the next token, in running order.

        Who gets no new one loses its KV. The draft's step is bounded by the next claim that will
        be outgrown.
        """
        tick = draft.cohort.tick
        heap = self._outgrown
        self._place()
        while heap and heap[0][0] <= tick:
            at, _, request = heappop(heap)
            claim = self._claims.get(request, -1)
            if claim < 0 or request.state != DECODE or claim - request.base != at:
                continue  # it has left, or `_place` has entered it anew
            self._extend(draft, request, claim)
        for request in [each for each in self._starting if each.state == PARKED]:
            if request.computed >= self._claims[request]:
                self._extend(draft, request, self._claims[request])
        self._place()
        draft.most_ticks = heap[0][0] - tick if heap else FOREVER

    def _place(self) -> None:
        """Enter those who have begun to decode, by the tick at which their claim is full."""
        if not self._starting:
            return
        still = []
        for request in self._starting:
            claim = self._claims.get(request, -1)
            if claim < 0:
                continue
            if request.state == DECODE:
                heappush(self._outgrown, (claim - request.base, request.seat, request))
            else:
                still.append(request)
        self._starting = still

    def parked(self, request: Request) -> None:
        """Note that a member sits out: the tick at which its claim is full is not known now."""
        self._starting.append(request)

    def _extend(self, draft: Draft, request: Request, claim: int) -> None:
        wanted = max(claim + 1, self._allocator.renewed_tokens(claim))
        wanted = self._within(min(wanted, max(self._most_tokens, claim + 1)))
        if wanted <= claim:
            raise InvariantError(f"request {request.view.index} outgrows the whole KV pool")
        self.renewals += 1
        more = self._blocks(wanted) - self._blocks(claim)
        if self._allocator.grows and more <= self.capacity - self.claimed:
            self._claims[request] = wanted
            if request.state == DECODE:
                self._starting.append(request)
            self._move(more)
            return
        self._next[request] = wanted
        preempt(draft, request)

    # --- over time --------------------------------------------------------------------------

    def _move(self, blocks: int) -> None:
        now = self._clock.now
        if now > self._since_ns:
            self._log.extend((self._since_ns, now, self.claimed))
            self._since_ns = now
            if len(self._log) >= _FLUSH:
                self._absorb()
        self.claimed += blocks
        more = self.claimed - self._most_claimed
        if more > 0:
            self._most_claimed = self.claimed
            self.wait_ns += seconds_to_ns(self._allocator.wait_s(more * self.block_tokens))

    def ready_ns(self, front_ns: int) -> int:
        """Return when a step starts [ns] that would at `front_ns`, after the wait of `wait_ns`."""
        self._held_ns = self.wait_ns
        self._ready_ns = front_ns + self.wait_ns
        self.wait_ns = 0
        return self._ready_ns

    def began_ns(self, front_ns: int) -> int:
        """Return when the work began [ns] of which steps run from `front_ns`: with their wait."""
        return front_ns - self._held_ns if front_ns == self._ready_ns else front_ns

    def _absorb(self) -> None:
        rows = np.array(self._log, dtype=np.int64).reshape(-1, 3)
        self._log.clear()
        none = np.zeros(len(rows), dtype=np.int64)
        claimed = rows[:, 2]
        self._timeline.spans(
            rows[:, 0], rows[:, 1], none, none, claimed, claimed, none, none, busy=False
        )

    def over_time(self) -> TimelineData:
        """Return the timeline whose level ``kv_blocks`` is what was claimed [blocks]."""
        self._move(0)
        self._absorb()
        return self._timeline.finish()

    def check(self) -> None:
        """Prove that claims and blocks add up; raises InvariantError."""
        super().check()
        claims = sum(map(self._blocks, self._claims.values()))
        if claims != self.claimed or not 0 <= claims <= self.capacity:
            raise InvariantError(f"{self.claimed} of {self.capacity} blocks claimed, not {claims}")
        if self.claimed < self.capacity - self.free:
            raise InvariantError("more KV blocks are in use than are claimed")


class SeveralClaims(ClaimLedger):
    """Claims of requests that decode in several cohorts, as in the micro-batches of a pipeline.

    The ticks of one cohort say nothing about those of another, so everybody in the micro-batch that
    is planned is looked at; how long that stays unnecessary bounds the next ticks.
    """

    __slots__ = ()

    def renew(self, draft: Draft) -> None:
        """Renew the claims that are too small for the next token, in running order."""
        self._starting.clear()
        cohort = draft.cohort
        least = FOREVER
        for request in list(draft.running_set):
            decodes = request.state == DECODE
            claim = self._claims.get(request, -1)
            if claim < 0 or not (decodes or request.state == PARKED):
                continue
            computed = cohort.computed(request) if decodes else request.computed
            if computed >= claim:
                self._extend(draft, request, claim)
                claim = self._claims.get(request, -1)
            if decodes and claim >= 0:
                least = min(least, claim - computed)
        draft.most_ticks = least
