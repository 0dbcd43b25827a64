"""What a replica measures while it runs, in O(1) per stretch: gaps between tokens, load, KV."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from llmsim.results.histogram import LogHistogram, bin_of, upper_edge_ns
from llmsim.results.timeline import Timeline
from llmsim.serving.request import Request

NEVER = 2**62


class Meter:
    """Gaps between tokens of everybody on a replica, without visiting anybody.

    All members of a cohort get a token at the end of each tick, so one number per tick serves
    them all. The longest gap since a request joined is a suffix maximum over ticks, kept as a
    stack of falling maxima; the count of gaps above the objective is a running total.

    Parameters
    ----------
    itl_slo_ns : int [ns]
        Objective for the gap between tokens; `NEVER` when there is none.

    Attributes
    ----------
    over : int [ticks]
        Cohort ticks so far whose gap exceeded the objective.
    itl : LogHistogram
        Gaps, one count per token.
    timeline : Timeline
    """

    __slots__ = (
        "_bin",
        "_bin_high",
        "_bin_low",
        "_maxima",
        "_slo",
        "_ticks",
        "itl",
        "over",
        "timeline",
    )

    def __init__(self, itl_slo_ns: int) -> None:
        self._slo = itl_slo_ns
        self._ticks: list[int] = []
        self._maxima: list[int] = []
        self._bin = -1
        self._bin_low = 0.0
        self._bin_high = 0.0
        self.over = 0
        self.itl = LogHistogram()
        self.timeline = Timeline()

    def ticks(
        self,
        last_tick: int,
        ticks: int,
        members: int,
        first_gap: int,
        last_gap: int,
        gap_at: Callable[[int], int],
    ) -> None:
        """Record consecutive cohort ticks whose gaps do not fall.

        Parameters
        ----------
        last_tick : int
            Number of the last of them.
        ticks : int
            How many.
        members : int [requests]
        first_gap, last_gap : int [ns]
        gap_at : callable
            Returns the gap of the i-th of them, from 0.
        """
        if self._bin_low < first_gap and last_gap <= self._bin_high:
            self.itl.counts[self._bin] += ticks * members
        else:
            self._spread(ticks, members, first_gap, last_gap, gap_at)
        if last_gap > self._slo:
            if first_gap > self._slo:
                self.over += ticks
            else:
                self.over += ticks - _first_above(gap_at, 0, ticks - 1, self._slo)
        stack = self._maxima
        while stack and stack[-1] <= last_gap:
            stack.pop()
            self._ticks.pop()
        stack.append(last_gap)
        self._ticks.append(last_tick)

    def clear(self) -> None:
        """Forget the maxima; called when nobody is in the cohort."""
        self._ticks.clear()
        self._maxima.clear()

    def joined(self, request: Request) -> None:
        """Note that a request joins the cohort before the next tick."""
        request.itl_over_at_join = self.over

    def left(self, request: Request, last_token_ns: int) -> None:
        """Bring a request's own figures up to date when it leaves the cohort."""
        request.last_token_ns = last_token_ns
        request.itl_over += self.over - request.itl_over_at_join
        at = bisect_left(self._ticks, request.join_tick)
        if at < len(self._ticks) and self._maxima[at] > request.itl_max_ns:
            request.itl_max_ns = self._maxima[at]

    def lone_gap(self, request: Request, gap_ns: int) -> None:
        """Record a gap that belongs to one request, such as the one a preemption tore."""
        self.itl.add(gap_ns)
        if gap_ns > request.itl_max_ns:
            request.itl_max_ns = gap_ns
        if gap_ns > self._slo:
            request.itl_over += 1

    def _spread(
        self,
        ticks: int,
        members: int,
        first_gap: int,
        last_gap: int,
        gap_at: Callable[[int], int],
    ) -> None:
        counts = self.itl.counts
        at = 0
        gap = first_gap
        while at < ticks:
            index = bin_of(gap)
            high = upper_edge_ns(index)
            if last_gap <= high:
                upto = ticks
            else:
                upto = _first_above(gap_at, at, ticks - 1, high)
                if upto == at:  # the bin edge and its logarithm disagree in the last digit
                    upto = at + 1
            counts[index] = counts.get(index, 0) + (upto - at) * members
            at = upto
            if at < ticks:
                gap = gap_at(at)
        self._bin = index
        self._bin_low = upper_edge_ns(index - 1) if index else 0.0
        self._bin_high = high


def _first_above(gap_at: Callable[[int], int], low: int, high: int, bound: float) -> int:
    """Return the first index in [low, high] whose gap exceeds `bound`; gap(high) does."""
    while low < high:
        middle = (low + high) // 2
        if gap_at(middle) > bound:
            high = middle
        else:
            low = middle + 1
    return low
