"""What replicas ran, written down together as rows of integers, and read many rows at a time.

All replicas of a fleet write into one book, so that what NumPy costs per call is divided by the
same number of rows in a fleet of any size, and the rows that wait fit the CPU's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.integers import packed, packer
from llmsim.results.histogram import LogHistogram
from llmsim.results.timeline import TimelineData, Timelines

if TYPE_CHECKING:
    from llmsim.serving.meter import Meter

_COLUMNS: Final = 12
_FLUSH: Final = 4_096  # rows
_STAGE: Final = 16  # rows
pack_row: Final = packer(_COLUMNS)
"""Packs the twelve integers of a row of `Meter.log`."""

Ints = npt.NDArray[np.int64]


class Logbook:
    """Rows of several meters, and the timelines and gaps that they are turned into.

    Parameters
    ----------
    meters : int
        How many will write here.

    Attributes
    ----------
    stage : list of bytes
        Packed rows, each behind its meter's tag if there are several meters.
    full : int
        Entries of the stage at which it must be filed.
    itl : LogHistogram
        Gaps between tokens, of all meters that have none of their own.
    """

    __slots__ = (
        "_log", "_meters", "_size", "_timelines", "_waits", "_waits_log", "full", "itl", "stage"
    )  # fmt: skip

    def __init__(self, meters: int = 1) -> None:
        self._size = meters
        self._meters: list[Meter] = []
        self.stage: list[bytes] = []
        self.full = _STAGE if meters == 1 else 2 * _STAGE
        self._log: list[bytes] = []  # rows, `_STAGE` together
        self._waits: list[int] = []  # meters, starts and ends one behind the other
        self._waits_log: list[bytes] = []  # the same, `_STAGE` together
        self._timelines: Timelines | None = None
        self.itl = LogHistogram()

    def enter(self, meter: Meter) -> int:
        """Let a meter write here; return its number."""
        self._meters.append(meter)
        return len(self._meters) - 1

    def tag(self, number: int) -> bytes:
        """Return what a meter's rows begin with."""
        return packed([number]) if self._size > 1 else b""

    def file(self) -> None:
        """Put rows away that have been staged, as many as `full`."""
        self._log.append(b"".join(self.stage))
        self.stage.clear()
        if len(self._log) >= _FLUSH // _STAGE:
            self._absorb()

    def waited(self, number: int, start_ns: int, end_ns: int) -> None:
        """Write down that a request waited at a meter's replica from `start_ns` to `end_ns`."""
        waits = self._waits
        waits.append(number)
        waits.append(start_ns)
        waits.append(end_ns)
        if len(waits) >= 3 * _STAGE:
            self._waits_log.append(packed(waits))
            waits.clear()
            if len(self._waits_log) >= _FLUSH // _STAGE:
                self._absorb()

    def timeline(self, number: int) -> TimelineData:
        """Read what has been written so far; return the timeline of a meter."""
        return self._absorb().parts[number].finish()

    def _absorb(self) -> Timelines:
        timelines = self._timelines
        if timelines is None:
            timelines = self._timelines = Timelines(self._size)
        if self._waits or self._waits_log:
            waits = _columns([*self._waits_log, packed(self._waits)], 3)
            self._waits.clear()
            self._waits_log.clear()
            timelines.waited(self._whose(waits), waits[1], waits[2])
        if self.stage or self._log:
            columns = _columns(self._log + self.stage, _COLUMNS + (self._size > 1))
            self.stage.clear()
            self._log.clear()
            self._read(timelines, self._whose(columns), columns[self._size > 1 :])
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


def _columns(rows: list[bytes], columns: int) -> Ints:
    """Return packed rows as columns (columns, n), each contiguous."""
    table = np.frombuffer(b"".join(rows), np.int64).reshape(-1, columns)
    return np.ascontiguousarray(table.T)
