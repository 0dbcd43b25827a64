"""Shortest first: who is believed to have the fewest output tokens left is next.

Lengths come from the scenario's estimator alone. Shortest first halves what the mean request waits
and lets the longest ones wait for those that keep coming: `ageing` bounds that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Annotated, ClassVar

from annotated_types import Ge

from llmsim.core.units import NS_PER_S
from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.views import RequestView


@BATCHING.register("shortest-first")
@dataclass
class ShortestFirst:
    """vLLM's steps, shortest believed remaining output first; with `preempts`, at any time (SRPT).

    Who loses its seat loses its KV too, unless the engine swaps, and waits with what it has left;
    swapped out, it comes back when it is shorter than all who wait.
    Where memory runs out, who has most left loses its KV.

    References
    ----------
    Schrage, A Proof of the Optimality of the Shortest Remaining Processing Time Discipline,
    Operations Research 16 (1968). Ageing in proportion to the time waited is a rank that never
    changes: everybody ages alike.
    """

    preempts: bool = False
    """Where all seats are taken, a request that is shorter takes that of who has most left."""
    lead_tokens: Annotated[int, Ge(0)] = 64
    """[tokens] By how much it must be shorter. Assumed: what computing the KV again is worth."""
    ageing_tokens_per_s: Annotated[float, Ge(0)] = 0.0
    """[tokens/s] For every second that it waits a request counts as so much shorter, so that none
    starves: one of n tokens more than another is passed by those that come in n / this [s]."""

    every_step: ClassVar[bool] = False
    asks_lengths: ClassVar[bool] = True

    _engine: EngineView = field(init=False, repr=False)
    _heap: list[tuple[float, int, RequestView]] = field(
        init=False, repr=False, default_factory=list
    )
    _waiting: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Keep no rank: the line has an order of its own."""
        return None

    @property
    def displaces(self) -> bool:
        """Whether an arrival may take somebody's seat."""
        return self.preempts

    def left(self, request: RequestView, generated: int) -> int:
        """Return how many tokens a request is believed to get still [tokens]: one at least."""
        return max(1, request.believed_tokens - generated)

    def rank(self, request: RequestView, left_tokens: int) -> float:
        """Return the rank of a request [tokens]; the least is next."""
        return left_tokens + self.ageing_tokens_per_s * (request.arrival_ns / NS_PER_S)

    def waiting_order(self, engine: EngineView) -> ShortestFirst:
        """Keep the line of one replica."""
        self._engine = engine
        return self

    def add(self, request: RequestView, returned: bool) -> None:
        """Take a request in at its place."""
        left = self.left(request, self._engine.generated(request) if returned else 0)
        self._waiting[request.index] = left
        heappush(self._heap, (self.rank(request, left), request.index, request))

    def head(self) -> RequestView | None:
        """Return who is next."""
        heap = self._heap
        while heap:
            if heap[0][1] in self._waiting:
                return heap[0][2]
            heappop(heap)
        return None

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go; its place is skipped when it comes up."""
        del self._waiting[request.index]
        if self._heap[0][1] == request.index:
            heappop(self._heap)
        else:
            self._heap = [entry for entry in self._heap if entry[1] != request.index]
            self._heap.sort()

    def victim(self, running: Sequence[Running]) -> int:
        """Choose who ranks last of those who hold KV."""
        ranks = [self._rank_of(one) for one in running]
        return max(range(len(running)), key=lambda at: (ranks[at], at))

    def _rank_of(self, one: Running) -> float:
        return self.rank(one.view, self.left(one.view, one.generated))

    def _rank_outside(self, request: RequestView) -> float:
        """Rank a request that waits or is swapped out."""
        waits = self._waiting.get(request.index)
        return self.rank(
            request, self.left(request, self._engine.generated(request)) if waits is None else waits
        )

    def plan(self, step: StepDraft) -> None:
        """Make way for who is shorter, advance who is running, admit if nobody ran out of KV."""
        if self.preempts:
            step.come_back(self._rank_outside)
            if step.waiting and not step.free_seats:
                self._make_way(step)
        before = step.running
        step.advance_running()
        if step.waiting and step.running == before:
            step.admit_waiting()

    def _make_way(self, step: StepDraft) -> None:
        """Let the head of the line have the seat of who ranks last, if it is so much shorter."""
        first = self.head()
        running = self._engine.running()
        if first is None or not running:  # with pipeline stages others may have all seats
            return
        last = self.victim(running)
        mine = self.rank(first, self._waiting[first.index])
        if self._rank_of(running[last]) > mine + self.lead_tokens:
            step.displace(last)
            step.ask_again(1)  # there may be another pair, or who has just come back gets on
