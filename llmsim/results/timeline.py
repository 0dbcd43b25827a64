"""Load over time in a fixed number of bins, with exact integrals, for runs of any length.

Spans of many replicas are recorded together: what NumPy costs per call is then shared by all of
them, and columns of a few thousand rows stay in the CPU's cache however many replicas there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import InvariantError

MAX_BINS = 2_000
"""Bins kept per replica; when time outgrows them, neighbours are merged."""

FIRST_BIN_NS = 10_000_000
"""Width of a bin at first [ns]: a run of 20 s or more ends with 1,000 to 2,000 bins."""

Ints = npt.NDArray[np.int64]

_RECORDED = ("running", "waiting", "kv_blocks")

LEVELS = (*_RECORDED, "kv_claimed")
"""Levels that are integrated over time; what is claimed is what is used where nobody claims."""

TOTALS = ("prefill_tokens", "output_tokens", "busy_ns", "active_uj")
"""Amounts that are added up; active energy is that above idle."""

_COLUMNS = len(_RECORDED) + len(TOTALS)
_KV = _RECORDED.index("kv_blocks")
_BIN = np.dtype((np.void, 8 * _COLUMNS))  # its columns


@dataclass(frozen=True, slots=True)
class TimelineData:
    """A finished timeline.

    Parameters
    ----------
    bin_ns : int [ns]
        Width of a bin; bin i covers ``[i, i + 1) * bin_ns``.
    levels : dict of str to ndarray of float64 (n,)
        Time integral of each of `LEVELS` per bin [level * ns].
    totals : dict of str to ndarray of float64 (n,)
        Sum of each of `TOTALS` per bin.
    """

    bin_ns: int
    levels: dict[str, npt.NDArray[np.float64]]
    totals: dict[str, npt.NDArray[np.float64]]

    def claiming(self, claims: TimelineData) -> TimelineData:
        """Return this timeline with what was claimed of the KV, recorded apart.

        Parameters
        ----------
        claims : TimelineData
            Its level ``kv_blocks`` is what was claimed.

        Notes
        -----
        Widths of bins are doubled from the same first width. Wider bins of claims are spread
        evenly; claims after the last bin, when nothing runs any more, are left out.
        """
        found = claims.levels["kv_blocks"]
        if claims.bin_ns > self.bin_ns:
            parts = claims.bin_ns // self.bin_ns
            found = np.repeat(found / parts, parts)
        elif claims.bin_ns < self.bin_ns:
            parts = self.bin_ns // claims.bin_ns
            found = np.pad(found, (0, -len(found) % parts)).reshape(-1, parts).sum(axis=1)
        size = len(self.levels["kv_blocks"])
        level = np.zeros(size)
        level[: len(found)] = found[:size]
        return TimelineData(self.bin_ns, {**self.levels, "kv_claimed": level}, self.totals)


class Timeline:
    """Accumulates one replica's levels and totals.

    A level that changes inside a span is taken as linear between its ends, so integrals are exact
    for levels that are constant or grow evenly between decision points.

    Parameters
    ----------
    bin_ns : int [ns]
        Width of a bin at first.
    rows : ndarray of float64 (7, MAX_BINS), optional
        Where it accumulates, zeros; none for an array of its own.
    """

    __slots__ = ("_bins", "_rows", "bin_ns")

    def __init__(
        self, bin_ns: int = FIRST_BIN_NS, rows: npt.NDArray[np.float64] | None = None
    ) -> None:
        self.bin_ns = bin_ns
        self._rows = np.zeros((_COLUMNS, MAX_BINS)) if rows is None else rows
        self._bins = 0  # that time has reached

    def span(
        self,
        start_ns: int,
        end_ns: int,
        running: int,
        waiting: int,
        kv_start: int,
        kv_end: int,
        prefill_tokens: int,
        output_tokens: int,
        busy: bool,
        active_uj: int = 0,
    ) -> None:
        """Record a span in which nothing was decided.

        Parameters
        ----------
        start_ns, end_ns : int [ns]
        running, waiting : int [requests]
        kv_start, kv_end : int [blocks]
            KV blocks in use at both ends.
        prefill_tokens, output_tokens : int [tokens]
            Computed and delivered in the span; spread evenly over it.
        busy : bool
            Whether a step was running.
        active_uj : int [uJ]
            Energy above idle, spread evenly.
        """
        width = end_ns - start_ns
        if width <= 0:
            if width < 0:
                raise InvariantError(f"a span of a timeline ends {-width} ns before its start")
            if prefill_tokens or output_tokens:
                # a step rounded to no time at all still delivered its tokens
                self.span(start_ns, start_ns + 1, 0, 0, 0, 0, prefill_tokens, output_tokens, False)
            return
        self.reach(end_ns - 1)
        rows = self._rows
        bin_ns = self.bin_ns
        first = start_ns // bin_ns
        last = (end_ns - 1) // bin_ns
        self._bins = max(self._bins, last + 1)
        if first == last:
            row = rows[:, first]
            row[0] += running * width
            row[1] += waiting * width
            row[2] += 0.5 * (kv_start + kv_end) * width
            row[3] += prefill_tokens
            row[4] += output_tokens
            if busy:
                row[5] += width
            row[6] += active_uj
            return
        slope = (kv_end - kv_start) / width
        for index in range(first, last + 1):
            low = max(start_ns, index * bin_ns)
            high = min(end_ns, (index + 1) * bin_ns)
            part = high - low
            share = part / width
            row = rows[:, index]
            row[0] += running * part
            row[1] += waiting * part
            row[2] += (kv_start + slope * (0.5 * (low + high) - start_ns)) * part
            row[3] += prefill_tokens * share
            row[4] += output_tokens * share
            if busy:
                row[5] += part
            row[6] += active_uj * share

    def spans(
        self,
        start_ns: Ints,
        end_ns: Ints,
        running: Ints,
        waiting: Ints,
        kv_start: Ints,
        kv_end: Ints,
        prefill_tokens: Ints,
        output_tokens: Ints,
        busy: bool,
        active_uj: Ints | None = None,
    ) -> None:
        """Record many spans at once; each argument as in `span`.

        Parameters
        ----------
        start_ns, end_ns, running, waiting, kv_start, kv_end : ndarray of int64 (n,)
        prefill_tokens, output_tokens : ndarray of int64 (n,) [tokens]
        busy : bool
            Whether a step was running, in all of them.
        active_uj : ndarray of int64 (n,) [uJ], optional
        """
        totals = [prefill_tokens, output_tokens, None, active_uj]
        record([self], None, start_ns, end_ns, [running, waiting], (kv_start, kv_end), totals, busy)

    def reach(self, last_ns: int) -> None:
        """Merge bins until there is one that a time is in [ns]."""
        while last_ns // self.bin_ns >= MAX_BINS:
            self._halve()

    def add(self, origin: int, sums: npt.NDArray[np.float64]) -> None:
        """Add rows of bins, from the bin `origin` on."""
        after = origin + sums.shape[1]
        self._rows[:, origin:after] += sums
        self.touch(after)

    def touch(self, bins: int) -> None:
        """Note that time has reached so many bins."""
        self._bins = max(self._bins, bins)

    def _halve(self) -> None:
        rows = self._rows
        half = MAX_BINS // 2
        rows[:, :half] = rows[:, 0::2] + rows[:, 1::2]
        rows[:, half:] = 0.0
        self._bins = (self._bins + 1) // 2
        self.bin_ns *= 2

    def finish(self) -> TimelineData:
        """Return what was recorded."""
        table = self._rows[:, : self._bins].copy()
        return TimelineData(
            self.bin_ns,
            {
                **{name: table[i] for i, name in enumerate(_RECORDED)},
                "kv_claimed": table[_KV],
            },
            {name: table[3 + i] for i, name in enumerate(TOTALS)},
        )


class Timelines:
    """The timelines of several replicas, recorded together.

    Parameters
    ----------
    count : int

    Attributes
    ----------
    parts : list of Timeline
    """

    def __init__(self, count: int) -> None:
        # a bin's columns stand together: few bins are in use at a time; the last one is nobody's
        self._table = np.zeros((count * MAX_BINS + 1, _COLUMNS))
        rows = self._table[:-1].reshape(count, MAX_BINS, _COLUMNS)
        self.parts = [Timeline(rows=each.T) for each in rows]

    def busy(
        self,
        which: Ints | None,
        start_ns: Ints,
        end_ns: Ints,
        running: Ints,
        kv: tuple[Ints, Ints],
        prefill_tokens: Ints,
        output_tokens: Ints,
        active_uj: Ints,
    ) -> None:
        """Record spans in which steps ran; arguments as in `record`, others as in `spans`."""
        totals = [prefill_tokens, output_tokens, None, active_uj]
        table = None if which is None else self._table
        record(self.parts, which, start_ns, end_ns, [running, None], kv, totals, True, table)

    def waited(self, which: Ints | None, start_ns: Ints, end_ns: Ints) -> None:
        """Record spans in which one request waited; arguments as in `busy`."""
        levels, none = [None, np.ones(len(start_ns), dtype=np.int64)], [None] * len(TOTALS)
        table = None if which is None else self._table
        record(self.parts, which, start_ns, end_ns, levels, None, none, False, table)


def record(
    parts: Sequence[Timeline],
    which: Ints | None,
    start: Ints,
    end: Ints,
    levels: Sequence[Ints | None],
    kv: tuple[Ints, Ints] | None,
    totals: Sequence[Ints | None],
    busy: bool,
    table: npt.NDArray[np.float64] | None = None,
) -> None:
    """Record spans of several timelines at once.

    Parameters
    ----------
    parts : sequence of Timeline
    which : ndarray of int64 (n,), or None
        To which of them a span belongs; None if there is one.
    start, end : ndarray of int64 (n,) [ns]
    levels : sequence of ndarray of int64 (n,), or None
        Running and waiting requests; None for zeros, here and below.
    kv : tuple of ndarray of int64 (n,), or None [blocks]
        KV blocks at both ends.
    totals : sequence of ndarray of int64 (n,), or None
        In the order of `TOTALS`; how long a step ran is known by `busy`.
    busy : bool
        Whether a step was running, in all of them.
    table : ndarray of float64 (parts * MAX_BINS + 1, 7), optional
        Where all of them accumulate, and behind them a bin of nobody; needed if there are several.
    """
    kept = end > start
    if not kept.all():
        _record_moments(parts, which, start, end, totals)
        chosen = [None if c is None else c[kept] for c in (*levels, *totals)]
        levels, totals = chosen[: len(levels)], chosen[len(levels) :]
        kv = None if kv is None else (kv[0][kept], kv[1][kept])
        which = None if which is None else which[kept]
        start, end = start[kept], end[kept]
    if not len(start):
        return
    place = _Place(parts, which, start, end)
    width = (end - start).astype(np.float64)
    rates: list[npt.NDArray[Any] | None] = [*levels, None]
    rates += [None if total is None else total / width for total in totals]
    if busy:
        rates[len(_RECORDED) + TOTALS.index("busy_ns")] = np.ones(len(start))
    rise = None if kv is None else (kv[0], (kv[1] - kv[0]) / width)
    sums = _in_part(place, start, end, rates, rise)
    if place.inside.any():
        sums += _in_full(place, start, rates, rise)
    place.add(sums, table)


def _record_moments(
    parts: Sequence[Timeline],
    which: Ints | None,
    start: Ints,
    end: Ints,
    totals: Sequence[Ints | None],
) -> None:
    """Record what was delivered in spans that are too short to have a width."""
    none = np.zeros(len(start), dtype=np.int64)
    prefill, output = (none if total is None else total for total in totals[:2])
    odd = (end < start) | ((end == start) & ((prefill != 0) | (output != 0)))
    for i in np.flatnonzero(odd).tolist():
        part = parts[0 if which is None else int(which[i])]
        tokens = int(prefill[i]), int(output[i])
        part.span(int(start[i]), int(end[i]), 0, 0, 0, 0, *tokens, False)


class _Place:
    """The bins that spans of several timelines fall in, those of one behind those of another.

    Behind the last bin of each there is one more, where what covers bins in full is taken back.

    Attributes
    ----------
    bin_ns : int or ndarray of int64 (n,) [ns]
        Width of the bins of a span's timeline.
    first, last : ndarray of int64 (n,)
        Bins of its timeline that a span begins and ends in.
    shift : int or ndarray of int64 (n,)
        From a bin of its timeline to a bin here.
    inside : ndarray of bool (n,)
        Whether a span covers bins in full.
    size : int
        Bins here.
    bins, widths_ns : ndarray of int64 (size,)
        Bins of the timelines, and their widths.
    """

    bin_ns: int | Ints
    shift: int | Ints
    widths_ns: int | Ints

    def __init__(
        self, parts: Sequence[Timeline], which: Ints | None, start: Ints, end: Ints
    ) -> None:
        self._parts = parts
        if which is None:
            latest_ns = int(end.max()) - 1
            parts[0].reach(latest_ns)
            self.bin_ns = self.widths_ns = bin_ns = parts[0].bin_ns
            self.first = start // bin_ns
            origin = int(self.first.min())
            self.size = latest_ns // bin_ns - origin + 2
            self.shift = -origin
            self.bins = np.arange(origin, origin + self.size)
            self._origin = origin
        else:
            latest = np.full(len(parts), -1)
            np.maximum.at(latest, which, end - 1)
            widths = np.array([part.bin_ns for part in parts])
            for number in np.flatnonzero(latest // widths >= MAX_BINS).tolist():
                parts[number].reach(int(latest[number]))
                widths[number] = parts[number].bin_ns
            same = bool((widths == widths[0]).all())  # as a rule; to divide by one number is fast
            self.bin_ns = int(widths[0]) if same else widths[which]
            self.first = start // self.bin_ns
            origins = np.full(len(parts), MAX_BINS)
            np.minimum.at(origins, which, self.first)
            sizes = np.where(latest < 0, 0, latest // widths - origins + 2)
            after = np.cumsum(sizes)
            shifts = after - sizes - origins
            self.shift = shifts[which]
            self.size = int(after[-1])
            self.bins = np.arange(self.size) - np.repeat(shifts, sizes)
            self.widths_ns = self.bin_ns if same else np.repeat(widths, sizes)
            self._used = np.flatnonzero(sizes)
            self._reached = (origins + sizes)[self._used] - 1
            self._rows = self.bins + np.repeat(np.arange(len(parts)) * MAX_BINS, sizes)
            self._rows[after[self._used] - 1] = len(parts) * MAX_BINS  # behind the last bins
        self.last = (end - 1) // self.bin_ns
        self.inside = self.last > self.first + 1

    def add(
        self, sums: npt.NDArray[np.float64], table: npt.NDArray[np.float64] | None = None
    ) -> None:
        """Add what came into the bins to the timelines they are of; `table` as in `record`."""
        if table is None:
            self._parts[0].add(self._origin, sums[:, :-1])
            return
        bins = table.take(self._rows, axis=0)
        bins += sums.T
        table.view(_BIN)[self._rows, 0] = bins.view(_BIN)[:, 0]  # items are put there fast
        for number, reached in zip(self._used.tolist(), self._reached.tolist(), strict=True):
            self._parts[number].touch(reached)


def _of(values: int | Ints, chosen: Any) -> int | Ints:
    """Return the chosen ones of values that may be the same for all."""
    return values if isinstance(values, int) else values[chosen]


def _in_part(
    place: _Place,
    start: Ints,
    end: Ints,
    rates: Sequence[npt.NDArray[Any] | None],
    rise: tuple[Ints, npt.NDArray[np.float64]] | None,
) -> npt.NDArray[np.float64]:
    """Return what spans add to the bins that they begin and end in.

    Parameters
    ----------
    place : _Place
    start, end : ndarray of int64 (n,) [ns]
    rates : sequence of ndarray (n,), or None
        What a span adds per nanosecond to each column of a timeline, but to KV blocks.
    rise : tuple of ndarray (n,), or None
        KV blocks at the start, and their growth per nanosecond.
    """
    split = np.flatnonzero(place.last > place.first)
    last, bin_ns, shift = place.last[split], _of(place.bin_ns, split), _of(place.shift, split)
    low = np.concatenate((start, last * bin_ns))
    high = np.concatenate((np.minimum(end, (place.first + 1) * place.bin_ns), end[split]))
    at = np.concatenate((place.first + place.shift, last + shift))
    part = (high - low).astype(np.float64)

    def both(of_span: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate((of_span, of_span[split]))

    sums = np.empty((_COLUMNS, place.size))
    for row, rate in zip(sums, rates, strict=True):
        row[:] = 0 if rate is None else np.bincount(at, both(rate) * part, place.size)
    if rise is not None:
        middle = 0.5 * (low + high) - both(start)
        weights = (both(rise[0]) + both(rise[1]) * middle) * part
        sums[_KV] = np.bincount(at, weights, place.size)
    return sums


def _in_full(
    place: _Place,
    start: Ints,
    rates: Sequence[npt.NDArray[Any] | None],
    rise: tuple[Ints, npt.NDArray[np.float64]] | None,
) -> npt.NDArray[np.float64]:
    """Return what spans add to the bins that they cover in full; arguments as in `_in_part`.

    What a span adds is noted where it enters and taken back where it leaves, and summed up along
    time: two numbers per span, however many bins it covers.
    """
    inside = place.inside
    shift, bin_ns = _of(place.shift, inside), _of(place.bin_ns, inside)
    enter, leave = place.first[inside] + 1 + shift, place.last[inside] + shift

    def along(level: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        change = np.bincount(enter, weights=level, minlength=place.size)
        change -= np.bincount(leave, weights=level, minlength=place.size)
        return np.cumsum(change)

    full = np.zeros((_COLUMNS, place.size))
    for row, rate in zip(full, rates, strict=True):
        if rate is not None:
            row += along(rate[inside] * (1.0 * bin_ns))
    if rise is not None:
        slope = rise[1][inside]
        at_zero = along(rise[0][inside] + slope * (0.5 * bin_ns - start[inside]))
        full[_KV] = (at_zero + along(slope * bin_ns) * place.bins) * place.widths_ns
    # differences leave rounding errors behind where nothing is going on any more
    full *= along(np.ones(len(enter))) > 0.5
    return full
