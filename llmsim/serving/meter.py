"""What a replica measures while it runs, in O(1) per stretch: gaps between tokens, load, KV."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.results.bins import bin_of
from llmsim.results.histogram import LogHistogram
from llmsim.results.timeline import TimelineData
from llmsim.serving.logbook import ROW_BYTES, Logbook, pack_row
from llmsim.serving.request import Request

NEVER: Final = 2**62 - 1
"""A gap that is never exceeded [ns]; the largest integer that compiled code keeps in a register."""


class Meter:
    """Gaps between tokens of everybody on a replica, without visiting anybody.

    All members of a cohort get a token at the end of each tick, so one number per tick serves
    them all. The longest gap since a request joined is a suffix maximum over ticks, kept as a
    stack of falling maxima; the count of gaps above the objective is a running total. What was
    run is logged as rows of integers and turned into histogram and timeline many rows at a time.

    Parameters
    ----------
    itl_slo_ns : int [ns]
        Objective for the gap between tokens; `NEVER` when there is none.

    Attributes
    ----------
    over : int [ticks]
        Cohort ticks so far whose gap exceeded the objective.
    itl : LogHistogram
        Gaps, one count per token, with those of all who write into the same book; complete after
        `finish`, as are the next two.
    steps : int
        Steps run.
    peak_kv_blocks : int [blocks]
        Most KV blocks in use.
    kept : list of ndarray of int64 (12, n), or None
        Columns of everything that was logged, for who asked for it.
    together : int [gaps]
        Where results leave whole: gaps of zero between tokens that have left; else -1.
    """

    __slots__ = (
        "_book",
        "_maxima",
        "_number",
        "_ticks",
        "_top_gap",
        "_top_tick",
        "itl",
        "kept",
        "over",
        "peak_kv_blocks",
        "slo",
        "steps",
        "together",
    )

    def __init__(self, itl_slo_ns: int) -> None:
        self.slo = min(itl_slo_ns, NEVER)
        self._ticks: list[int] = []
        self._maxima: list[int] = []
        self._top_gap = -1  # the smallest and latest maximum, beside the lists: gaps mostly grow
        self._top_tick = -1
        self.over = 0
        self.steps = 0
        self.peak_kv_blocks = 0
        self.together = -1
        self._book = Logbook()
        self._number = self._book.enter(self)
        self.itl = self._book.itl
        self.kept: list[npt.NDArray[np.int64]] | None = None

    # --- what was run -----------------------------------------------------------------------

    def log(
        self,
        start_ns: int,
        end_ns: int,
        ticks: int,
        members: int,
        running: int,
        kv_start: int,
        kv_end: int,
        prefill_tokens: int,
        logits: int,
        first_gap_ns: int,
        last_gap_ns: int,
        active_uj: int,
    ) -> None:
        """Note work that has been run.

        Parameters
        ----------
        start_ns, end_ns : int [ns]
        ticks, members : int
            Of the cohort.
        running : int [requests]
        kv_start, kv_end : int [blocks]
            In use at both ends.
        prefill_tokens : int [tokens]
        logits : int
            Prefills that gave a token.
        first_gap_ns, last_gap_ns : int [ns]
            Gaps of the first and of the last tick.
        active_uj : int [uJ]
            Energy above idle.
        """
        book = self._book
        if book.at == book.end:
            book.turn()
        at = book.at
        book.at = at + ROW_BYTES
        pack_row(
            book.rows, at, self._number, start_ns, end_ns, ticks, members, running, kv_start,
            kv_end, prefill_tokens, logits, first_gap_ns, last_gap_ns, active_uj,
        )  # fmt: skip

    def write_in(self, book: Logbook) -> None:
        """Write into another book from now on; called before anything runs."""
        self._book = book
        self._number = book.enter(self)
        if self.together < 0:
            self.itl = book.itl

    def keep(self) -> None:
        """Keep what is logged from now on; called before anything runs."""
        self.kept = []

    def waited(self, start_ns: int, end_ns: int) -> None:
        """Note that one request waited from `start_ns` to `end_ns` [ns]."""
        self._book.waited(self._number, start_ns, end_ns)

    def count(self, steps: int, peak_kv_blocks: int, columns: npt.NDArray[np.int64]) -> None:
        """Take what the book has read in rows of this meter.

        Parameters
        ----------
        steps : int
        peak_kv_blocks : int [blocks]
        columns : ndarray of int64 (12, n)
            Those rows, for who keeps them.
        """
        self.steps += steps
        if peak_kv_blocks > self.peak_kv_blocks:
            self.peak_kv_blocks = peak_kv_blocks
        if self.kept is not None:
            self.kept.append(columns)

    def finish(self) -> TimelineData:
        """Return the timeline; the histogram is complete then."""
        timeline = self._book.timeline(self._number)
        if self.together >= 0:
            self.itl = LogHistogram()
            if self.together:
                self.itl.add(0, self.together)
        return timeline

    # --- gaps between tokens ----------------------------------------------------------------

    def ticked(self, last_tick: int, last_gap: int) -> None:
        """Note the largest gap of the ticks up to `last_tick` since the last call [ns]."""
        stack = self._maxima
        if self._top_gap > last_gap:
            stack.append(self._top_gap)
            self._ticks.append(self._top_tick)
        else:
            while stack and stack[-1] <= last_gap:
                stack.pop()
                self._ticks.pop()
        self._top_gap = last_gap
        self._top_tick = last_tick

    def exceeded(self, ticks: int, first_gap: int, gap_at: Callable[[int], int]) -> None:
        """Count the gaps above the objective among ticks whose last gap exceeds it.

        Parameters
        ----------
        ticks : int
        first_gap : int [ns]
        gap_at : callable
            Returns the gap of the i-th tick, from 0; never falls.
        """
        low, high = 0, ticks - 1
        if first_gap > self.slo:
            high = 0
        while low < high:
            middle = (low + high) // 2
            if gap_at(middle) > self.slo:
                high = middle
            else:
                low = middle + 1
        self.over += ticks - low

    def clear(self) -> None:
        """Forget the maxima; called when nobody is in the cohort."""
        self._top_gap = -1
        if self._ticks:
            self._ticks.clear()
            self._maxima.clear()

    def left(self, request: Request, tick: int, tick_end_ns: int) -> None:
        """Bring a request's own figures up to date when it leaves the cohort.

        Parameters
        ----------
        request : Request
        tick : int
            Ticks of the cohort scheduled so far.
        tick_end_ns : int [ns]
            When the latest of them has run.
        """
        if request.join_tick >= tick:
            return  # no tick since it joined: it knows its latest token itself
        request.last_token_ns = tick_end_ns
        over = self.over
        if over:
            request.itl_over += over - request.itl_over_at_join
        ticks = self._ticks
        longest = self._top_gap if self._top_tick >= request.join_tick else -1
        if ticks and ticks[-1] >= request.join_tick:
            longest = self._maxima[bisect_left(ticks, request.join_tick)]
        if longest > request.itl_max_ns:
            request.itl_max_ns = longest

    def lone_gap(self, request: Request, gap_ns: int) -> None:
        """Record a gap that belongs to one request, such as the one a preemption tore."""
        index, counts = bin_of(gap_ns), self.itl.counts  # as `LogHistogram.add`, but compiled
        counts[index] = counts.get(index, 0) + 1
        if gap_ns > request.itl_max_ns:
            request.itl_max_ns = gap_ns
        if gap_ns > self.slo:
            request.itl_over += 1
