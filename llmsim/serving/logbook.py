"""What replicas ran, written down together as rows of integers, and read many rows at a time.

All replicas of a fleet write into one book, so that what NumPy costs per call is divided by the
same number of rows in a fleet of any size, and the rows that wait fit the CPU's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.integers import row_packer
from llmsim.results.histogram import LogHistogram
from llmsim.results.timeline import TimelineData, Timelines

if TYPE_CHECKING:
    from llmsim.serving.meter import Meter

_WORD: Final = 8  # bytes
_ROWS: Final = 4_096  # that wait to be read
_COLUMNS: Final = 13
ROW_BYTES: Final = _COLUMNS * _WORD
pack_row: Final = row_packer(_COLUMNS)
"""Writes a meter's number and the twelve integers of `Meter.log` into a buffer, at an offset."""

_WAIT_COLUMNS: Final = 3
_pack_wait: Final = row_packer(_WAIT_COLUMNS)

Ints = npt.NDArray[np.int64]


class Logbook:
    """Rows of several meters, and the timelines and gaps that they are turned into.

    Parameters
    ----------
    meters : int
        How many will write here.

    Attributes
    ----------
    rows : bytearray
        What `pack_row` has written, and room for more.
    at, end : int [bytes]
        Where in it the next row goes; where there is no room any more, so that it must be turned.
    itl : LogHistogram
        Gaps between tokens, of all meters that have none of their own.
    """

    __slots__ = (
        "_meters", "_size", "_timelines", "_waits", "_waits_at", "_waits_end", "at", "end", "itl",
        "rows"
    )  # fmt: skip

    def __init__(self, meters: int = 1) -> None:
        # there are buffers once somebody writes: most meters' own books stay empty
        self.rows = bytearray()
        self.at = self.end = 0
        self._waits = bytearray()
        self._waits_at = self._waits_end = 0
        self._size = meters
        self._meters: list[Meter] = []
        self._timelines: Timelines | None = None
        self.itl = LogHistogram()

    def enter(self, meter: Meter) -> int:
        """Let a meter write here; return its number."""
        self._meters.append(meter)
        return len(self._meters) - 1

    def waited(self, number: int, start_ns: int, end_ns: int) -> None:
        """Write down that a request waited at a meter's replica from `start_ns` to `end_ns`."""
        if self._waits_at == self._waits_end:
            self.turn()
        at = self._waits_at
        _pack_wait(self._waits, at, number, start_ns, end_ns)
        self._waits_at = at + _WAIT_COLUMNS * _WORD

    def turn(self) -> None:
        """Make room: for the first rows, or by reading those that are there."""
        if self.end:
            self._absorb()
            return
        self.end = _ROWS * ROW_BYTES
        self.rows = bytearray(self.end)
        self._waits_end = _ROWS * _WAIT_COLUMNS * _WORD
        self._waits = bytearray(self._waits_end)

    def timeline(self, number: int) -> TimelineData:
        """Read what has been written so far; return the timeline of a meter."""
        return self._absorb().parts[number].finish()

    def _absorb(self) -> Timelines:
        timelines = self._timelines
        if timelines is None:
            timelines = self._timelines = Timelines(self._size)
        if self._waits_at:
            waits = _columns(self._waits, self._waits_at, _WAIT_COLUMNS)
            self._waits_at = 0
            timelines.waited(self._whose(waits), waits[1], waits[2])
        if self.at:
            columns = _columns(self.rows, self.at, _COLUMNS)
            self.at = 0
            self._read(timelines, self._whose(columns), columns[1:])
        return timelines

    def _whose(self, columns: Ints) -> Ints | None:
        """Return the meters' numbers, which stand in front; None if there is one meter."""
        return columns[0] if self._size > 1 else None

    def _read(self, timelines: Timelines, which: Ints | None, columns: Ints) -> None:
        start, end, ticks, members, running, kv0, kv1, prefill, logits, first, last, active = (
            columns
        )
        gaps = ticks * members
        timelines.busy(which, start, end, running, (kv0, kv1), prefill, gaps + logits, active)
        steps = np.where(end > start, np.maximum(ticks, 1), 0)
        counted = gaps > 0
        if which is None:
            only = self._meters[0]
            only.count(int(steps.sum()), int(kv1.max()), columns)
        else:
            size = self._size
            peaks = np.zeros(size, dtype=np.int64)
            np.maximum.at(peaks, which, kv1)
            run = np.bincount(which, weights=steps, minlength=size)
            for number, meter in enumerate(self._meters):
                kept = columns if meter.kept is None else columns[:, which == number]
                meter.count(int(run[number]), int(peaks[number]), kept)
            apart = np.array([meter.together >= 0 for meter in self._meters])
            if apart.any():
                counted &= ~apart[which]
        if not counted.all():
            first, last, ticks, members = (c[counted] for c in (first, last, ticks, members))
        self.itl.add_runs(first, last, ticks, members)


def share(meters: list[Meter]) -> None:
    """Let meters write into one book from now on; called before anything runs."""
    if len(meters) > 1:
        book = Logbook(len(meters))
        for meter in meters:
            meter.write_in(book)


def _columns(rows: bytearray, size: int, columns: int) -> Ints:
    """Return rows of `size` bytes in all as columns (columns, n), each contiguous, copied."""
    table = np.frombuffer(rows, np.int64, size // _WORD).reshape(-1, columns)
    return np.ascontiguousarray(table.T)
