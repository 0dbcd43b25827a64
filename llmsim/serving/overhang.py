"""The longest context of a replica's decodes, for prices that depend on it.

Members of a cohort advance together, so who has the longest context changes only when somebody
joins or leaves, and by how much it exceeds the mean of the others only then, too: stretches stay
straight lines, slept or stepped through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, cast

from llmsim.costmodel.contract import Chunk, PriceLine, StepCost, UnevenCost
from llmsim.serving.cohort import Cohort
from llmsim.serving.request import DECODE, Request

_SLACK: Final = 64
"""Entries of members that have left, beyond as many as there are members, before they go."""


class OverhangCohort(Cohort):
    """A cohort that knows its longest context."""

    __slots__ = ("_entries", "_longest", "_members")

    def __init__(self, tile: int, block_tokens: int, window: int) -> None:
        super().__init__(tile, block_tokens, window)
        self._longest: list[tuple[int, int, Request]] = []  # base, negated: contexts keep order
        self._members: dict[Request, int] = {}  # the entry of each
        self._entries = 0

    def join(self, request: Request) -> None:
        """Take in a request; see `Cohort.join`."""
        super().join(request)
        self._enter(request)

    def leave(self, request: Request) -> None:
        """Let a member go; see `Cohort.leave`."""
        super().leave(request)
        del self._members[request]

    def adopt(self, other: Cohort, copies: Mapping[Request, Request]) -> None:
        """Have copies of the members of a cohort that was mirrored; see `Cohort.adopt`."""
        super().adopt(other, copies)
        self._longest = []
        self._members = {}
        for copy in copies.values():
            if copy.state == DECODE:
                self._enter(copy)

    def _enter(self, request: Request) -> None:
        self._entries += 1  # makes heap entries unique
        self._members[request] = self._entries
        heap = self._longest
        heappush(heap, (-request.base, self._entries, request))
        if len(heap) > 2 * len(self._members) + _SLACK:
            kept = [entry for entry in heap if self._members.get(entry[2]) == entry[1]]
            heapify(kept)
            self._longest = kept

    def overhang(self) -> int:
        """Return by how much the longest context exceeds the mean of the others [tokens]."""
        count = self.count
        if count < 2:
            return 0
        heap, members = self._longest, self._members
        while members.get(heap[0][2]) != heap[0][1]:
            heappop(heap)
        return (count * (self.tick - heap[0][0]) - self.context) // (count - 1)


class OverhangPrice:
    """A price that looks at a cohort's overhang; implements `StepCost`.

    Parameters
    ----------
    uneven : UnevenCost
    cohort : OverhangCohort
        The decodes of the replica that asks.
    """

    context_tile: int
    window_tokens: int

    def __init__(self, uneven: UnevenCost, cohort: OverhangCohort) -> None:
        self.asked = uneven
        self.context_tile = uneven.context_tile
        self.window_tokens = uneven.window_tokens
        self._cohort = cohort

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Price a decode-only step of the cohort; see `StepCost.decode_line`."""
        return self.asked.decode_line(batch, padded_tokens, self._cohort.overhang())

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price one step; its decodes, if any, are the cohort. See `StepCost.step_ns`."""
        overhang = self._cohort.overhang() if decode else 0
        return self.asked.step_ns(chunks, decode, padded_tokens, windowed_tokens, logits, overhang)


def asks_for_overhang(cost: StepCost) -> UnevenCost | None:
    """Return the price that wants to know overhangs; None for all others."""
    if isinstance(cost, OverhangPrice):
        return cost.asked
    return cast(UnevenCost, cost) if getattr(cost, "uneven", False) else None
