"""Load over time in a fixed number of bins, with exact integrals, for runs of any length."""

from __future__ import annotations

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
    """

    __slots__ = ("_bins", "_rows", "bin_ns")

    def __init__(self, bin_ns: int = FIRST_BIN_NS) -> None:
        self.bin_ns = bin_ns
        self._rows = np.zeros((_COLUMNS, MAX_BINS))
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
        while (end_ns - 1) // self.bin_ns >= MAX_BINS:
            self._halve()
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
        kept = end_ns > start_ns
        for i in np.flatnonzero(~kept).tolist():
            tokens = int(prefill_tokens[i]), int(output_tokens[i])
            self.span(int(start_ns[i]), int(end_ns[i]), 0, 0, 0, 0, *tokens, busy)
        if not kept.any():
            return
        columns = [start_ns, end_ns, running, waiting, kv_start, kv_end]
        columns += [prefill_tokens, output_tokens]
        start, end, runs, waits, kv0, kv1, prefill, output = (c[kept] for c in columns)
        last_ns = int(end.max()) - 1
        while last_ns // self.bin_ns >= MAX_BINS:
            self._halve()
        bin_ns = self.bin_ns
        first, last = start // bin_ns, (end - 1) // bin_ns
        width = (end - start).astype(np.float64)
        slope = (kv1 - kv0) / width
        powers = np.zeros(len(start)) if active_uj is None else active_uj[kept] / width
        shares = prefill / width, output / width, np.full(len(start), float(busy)), powers
        origin = int(first.min())  # of the bins that are summed up here
        sums = np.zeros((_COLUMNS, int(last.max()) - origin + 2))
        # the bins that a span begins and ends in, each in part
        split = last > first
        every = np.ones(len(start), dtype=np.bool_)
        ends = (
            (first, start, np.minimum(end, (first + 1) * bin_ns), every),
            (last[split], (last * bin_ns)[split], end[split], split),
        )
        for bins, low, high, which in ends:
            part = (high - low).astype(np.float64)
            middle = 0.5 * (low + high) - start[which]
            weights = [rate[which] * part for rate in (runs, waits, *shares)]
            weights.insert(2, (kv0[which] + slope[which] * middle) * part)
            for row, weight in zip(sums, weights, strict=True):
                row[:] += np.bincount(bins - origin, weights=weight, minlength=len(row))
        inside = last > first + 1
        if inside.any():
            sums += _in_full(
                first[inside] + 1,
                last[inside],
                origin,
                [rate[inside] * float(bin_ns) for rate in (runs, waits, *shares)],
                kv0[inside] + slope[inside] * (0.5 * bin_ns - start[inside]),
                slope[inside] * bin_ns,
                bin_ns,
                sums.shape[1],
            )
        self._add(origin, sums[:, :-1])

    def _add(self, origin: int, sums: npt.NDArray[np.float64]) -> None:
        """Add rows of bins, from the bin `origin` on."""
        after = origin + sums.shape[1]
        self._rows[:, origin:after] += sums
        self._bins = max(self._bins, after)

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
                "kv_claimed": table[_RECORDED.index("kv_blocks")],
            },
            {name: table[3 + i] for i, name in enumerate(TOTALS)},
        )


def _in_full(
    enter: Ints,
    leave: Ints,
    origin: int,
    rates: list[npt.NDArray[Any]],
    kv_at_zero: npt.NDArray[Any],
    kv_per_bin: npt.NDArray[Any],
    bin_ns: int,
    size: int,
) -> npt.NDArray[np.float64]:
    """Return what spans add to the `size` bins from `origin` on that they cover in full.

    Each covers ``[enter, leave)``. What a span adds is noted where it enters and taken back where
    it leaves, and summed up along time: two numbers per span, however many bins it covers.
    """

    def along(level: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        change = np.bincount(enter - origin, weights=level, minlength=size)
        change -= np.bincount(leave - origin, weights=level, minlength=size)
        return np.cumsum(change)

    full = [along(rate) for rate in rates]
    bins = np.arange(origin, origin + size)
    full.insert(2, (along(kv_at_zero) + along(kv_per_bin) * bins) * bin_ns)
    # differences leave rounding errors behind where nothing is going on any more
    return np.array(full) * (along(np.ones(len(enter))) > 0.5)
