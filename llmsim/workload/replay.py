"""From rows of a trace to a workload: check, order, cut, scale, and chunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt

from llmsim.core.errors import Fault, InputError, TraceError
from llmsim.core.units import NS_PER_S, seconds_to_ns
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Workload
from llmsim.workload.programs import Programs
from llmsim.workload.rows import Rows, join

MOST_FAULTS = 20
"""Damaged rows listed in one error; the rest are as easily found once these are mended."""

Damage = list[tuple[int, Fault]]
"""Damaged rows: line and what is wrong."""


RowMap = Callable[[Rows], Rows]
"""Changes some rows; called in file order over one pass."""

Transform = Callable[[Callable[[], Iterator[Rows]]], Callable[[], RowMap]]
"""Learns what it needs from a pass over the sound rows (the argument starts one), once; returns
what makes a fresh `RowMap` for each later pass."""


@dataclass(frozen=True, kw_only=True)
class TraceFile(ABC):
    """What every trace format lets you choose.

    Parameters
    ----------
    path : str
        The file, plain or gzipped; relative to the scenario file, or the name of a shipped one.
    rate_scale : float
        How many times faster the trace is replayed; times are divided by it. Think times inside
        sessions shrink as well.
    start_s, end_s : float [s]
        Keep rows from `start_s` up to, not including, `end_s` after the first row of the file,
        on the file's own clock (before `rate_scale`).
    limit : int, optional
        Keep this many requests at most.
    max_prompt_tokens : int, optional [tokens]
        Leave longer prompts out, such as those beyond the model's context.
    on_bad_row : {"fail", "skip"}
        Raise on damaged rows, or leave them out and count them in `skipped_rows`.
    max_disorder_s : float [s]
        A row may lie this much before the latest one above it and is then sorted in; one that
        lies further back is damaged.
    chunk_rows : int
        Rows in a chunk; the requests do not depend on it.
    slo_class_column : str, optional
        Column (CSV) or key (JSON lines) that names each request's SLO class; one without a name
        has none. The scenario says under ``slo.classes`` what each is promised.
    """

    path: str
    rate_scale: Annotated[float, Gt(0)] = 1.0
    start_s: Annotated[float, Ge(0)] = 0.0
    end_s: Annotated[float, Gt(0)] | None = None
    limit: Annotated[int, Ge(1)] | None = None
    max_prompt_tokens: Annotated[int, Ge(1)] | None = None
    on_bad_row: Literal["fail", "skip"] = "fail"
    max_disorder_s: Annotated[float, Ge(0)] = 60.0
    chunk_rows: Annotated[int, Ge(1)] = 65_536
    slo_class_column: str | None = None

    @abstractmethod
    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file; each format does so in its own way."""


class ReplayWorkload:
    """The requests of a trace file; every pass over `chunks` reads it anew.

    Parameters
    ----------
    path : Path
        For error messages.
    options : TraceFile
    read : callable
        Starts a pass over the file: yields rows in file order with the damage found in them.
    clients : callable
        Gives the client names met so far.
    transform : Transform, optional
        Changes the sound rows in file order, such as imputing lengths.
    retime : callable, optional
        Applied to the whole stream of rows in arrival order, such as spreading ticks.
    drop_failed : bool
        Leave failed rows out. They still set the start of the window.

    Notes
    -----
    Arrivals are re-based: the first request that is kept arrives at 0. A trace does not say how
    many requests it will give before it is read, so `total` is None; `clients` grows while the
    file is read and keeps its order between passes.
    """

    def __init__(
        self,
        path: Path,
        options: TraceFile,
        read: Callable[[], Iterator[tuple[Rows, Damage]]],
        clients: Callable[[], tuple[str, ...]] = tuple,
        classes: Callable[[], tuple[str, ...]] = tuple,
        transform: Transform = lambda rows: lambda: _unchanged,
        retime: Callable[[Iterator[Rows]], Iterator[Rows]] | None = None,
        drop_failed: bool = False,
    ) -> None:
        if options.end_s is not None and options.end_s <= options.start_s:
            message = f"must be greater than start_s = {options.start_s:g} (got {options.end_s:g})"
            raise InputError(f"trace {path}", [Fault("", "end_s", message)])
        self.path, self.options = path, options
        self._read, self._client_names, self._class_names = read, clients, classes
        self._make_transform = transform
        self._transform: Callable[[], RowMap] | None = None
        self._retime, self._drop_failed = retime, drop_failed
        self.total: int | None = None
        self.clients: tuple[str, ...] = clients()
        self.slo_classes: tuple[str, ...] = classes()
        self.closed_loop: ClosedLoop | None = None
        self.programs: Programs | None = None
        self.skipped_rows = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows.

        Raises
        ------
        TraceError
            On damaged rows (`on_bad_row: fail`), listing up to 20 of the whole file with their
            lines, or when no request is left.
        """
        if self._transform is None:
            self._transform = self._make_transform(self._sound_rows)
        rows = in_order(map(self._transform(), self._sound_rows()), self.options.max_disorder_s)
        if self._retime is not None:
            rows = self._retime(rows)
        kept = self._selected(rows)
        origin_ns: int | None = None
        for part in rechunked(kept, self.options.chunk_rows):
            origin_ns = int(part.time_ns[0]) if origin_ns is None else origin_ns
            yield to_chunk(part, origin_ns, self.options.rate_scale)
        if origin_ns is None:
            raise TraceError(str(self.path), [self._nothing_left()])

    def _sound_rows(self) -> Iterator[Rows]:
        """Yield the undamaged rows in file order."""
        self.skipped_rows = 0
        tolerance_ns = seconds_to_ns(self.options.max_disorder_s)
        latest_ns = -1
        faults: list[Fault] = []
        for rows, damage in self._read():
            sound, late, latest_ns = self._without_late(rows, latest_ns, tolerance_ns)
            found = sorted(damage + late, key=lambda entry: entry[0])
            if self.options.on_bad_row == "skip":
                self.skipped_rows += len(found)
            else:
                faults += [fault for _, fault in found]
            self.clients, self.slo_classes = self._client_names(), self._class_names()
            if len(faults) > MOST_FAULTS:
                break
            if len(sound) and not faults:
                yield sound
        if faults:
            raise TraceError(str(self.path), _listed(faults, str(self.path)))

    def _without_late(
        self, rows: Rows, latest_ns: int, tolerance_ns: int
    ) -> tuple[Rows, Damage, int]:
        """Take out the rows that lie too far before an earlier one."""
        if not len(rows):
            return rows, [], latest_ns
        latest = np.maximum.accumulate(np.maximum(rows.time_ns, latest_ns))
        late = rows.time_ns < latest - tolerance_ns
        if not late.any():
            return rows, [], int(latest[-1])
        damage: Damage = []
        for index in np.flatnonzero(late).tolist():
            line, back_s = int(rows.line[index]), (latest[index] - rows.time_ns[index]) / NS_PER_S
            message = f"goes {back_s:g} s back in time, more than max_disorder_s = "
            message += f"{self.options.max_disorder_s:g}"
            hint = "" if damage else "; a larger max_disorder_s sorts such rows into their place"
            damage.append((line, Fault(f"{self.path}:{line}", "", message + hint)))
        return rows.take(~late), damage, int(latest[-1])

    def _selected(self, rows: Iterator[Rows]) -> Iterator[Rows]:
        """Yield what window, longest prompt and limit leave."""
        options = self.options
        left = options.limit
        first_ns: int | None = None
        for part in rows:
            first_ns = int(part.time_ns[0]) if first_ns is None else first_ns
            begin = np.searchsorted(part.time_ns, first_ns + seconds_to_ns(options.start_s))
            end: int | np.intp = len(part)
            if options.end_s is not None:
                end = np.searchsorted(part.time_ns, first_ns + seconds_to_ns(options.end_s))
            whole, part = len(part), part.take(slice(begin, end))
            if self._drop_failed and part.failed.any():
                part = part.take(~part.failed)
            if options.max_prompt_tokens is not None:
                part = part.take(part.prompt_tokens <= options.max_prompt_tokens)
            if left is not None:
                part = part.take(slice(0, left))
                left -= len(part)
            if len(part):
                yield part
            if end < whole or left == 0:
                return

    def _nothing_left(self) -> Fault:
        options = self.options
        chosen = [
            f"{name} = {value}"
            for name, value in (
                ("start_s", options.start_s or None),
                ("end_s", options.end_s),
                ("max_prompt_tokens", options.max_prompt_tokens),
            )
            if value is not None
        ]
        why = f" with {', '.join(chosen)}" if chosen else ""
        skipped = f"; {self.skipped_rows} damaged rows were skipped" if self.skipped_rows else ""
        return Fault(str(self.path), "", f"no request is left{why}{skipped}")


def to_chunk(rows: Rows, origin_ns: int = 0, rate_scale: float = 1.0) -> RequestChunk:
    """Return rows as a chunk of a workload.

    Parameters
    ----------
    rows : Rows
    origin_ns : int [ns]
        What the rows call time 0.
    rate_scale : float
        Divides the times.
    """
    n = len(rows)
    arrival_ns = rows.time_ns - origin_ns
    if rate_scale != 1.0:
        arrival_ns = np.rint(arrival_ns / rate_scale).astype(np.int64)
    return RequestChunk(
        arrival_ns=arrival_ns,
        # A failed row may have no lengths at all; the contract wants at least one token.
        prompt_tokens=np.maximum(rows.prompt_tokens, 1).astype(np.int32),
        output_tokens=np.maximum(rows.output_tokens, 1).astype(np.int32),
        session=rows.session,
        client=rows.client,
        priority=np.zeros(n, dtype=np.int32),
        failed=rows.failed,
        abort_ns=np.full(n, -1, dtype=np.int64),
        segments=None if rows.segments is None else rows.segments.tolist(),
        slo_class=rows.slo_class,
    )


def in_order(rows: Iterator[Rows], max_disorder_s: float) -> Iterator[Rows]:
    """Sort a stream of rows that is out of order by no more than a tolerance.

    Parameters
    ----------
    rows : iterator of Rows
        No row lies more than `max_disorder_s` before an earlier one.
    max_disorder_s : float [s]

    Yields
    ------
    Rows
        Not empty, in order of time; equal times keep the order of the file.
    """
    tolerance_ns = seconds_to_ns(max_disorder_s)
    pending: Rows | None = None
    for part in rows:
        if not len(part):
            continue
        held = part if pending is None else join((pending, part))
        if np.any(held.time_ns[1:] < held.time_ns[:-1]):
            held = held.take(np.argsort(held.time_ns, kind="stable"))
        # A row still to come lies at most the tolerance before the latest one so far.
        ready = int(np.searchsorted(held.time_ns, held.time_ns[-1] - tolerance_ns, side="right"))
        if ready:
            yield held.take(slice(0, ready))
        pending = held.take(slice(ready, None))
    if pending is not None and len(pending):
        yield pending


def spread_ticks(rows: Iterator[Rows]) -> Iterator[Rows]:
    """Spread rows that share a time evenly over the gap to the next time.

    Parameters
    ----------
    rows : iterator of Rows
        In order of time.

    Yields
    ------
    Rows
        The i-th of n rows at tick t lies at t + i (t' - t) / n, t' the next tick. The last tick
        has none after it and takes the gap before it.
    """
    pending: Rows | None = None
    gap_ns = 0
    for part in rows:
        held = part if pending is None else join((pending, part))
        last = int(np.searchsorted(held.time_ns, held.time_ns[-1], side="left"))
        pending = held.take(slice(last, None))
        if last:
            ready = held.take(slice(0, last))
            gap_ns = int(pending.time_ns[0] - ready.time_ns[-1])
            yield ready.at(_spread(ready.time_ns, int(pending.time_ns[0])))
    if pending is not None:
        yield pending.at(_spread(pending.time_ns, int(pending.time_ns[0]) + gap_ns))


def _spread(time_ns: npt.NDArray[np.int64], next_ns: int) -> npt.NDArray[np.int64]:
    ticks, first, count = np.unique(time_ns, return_index=True, return_counts=True)
    gap = np.diff(ticks, append=next_ns)
    place = np.arange(len(time_ns)) - np.repeat(first, count)
    spread: npt.NDArray[np.int64] = time_ns + place * np.repeat(gap, count) // np.repeat(
        count, count
    )
    return spread


def rechunked(rows: Iterator[Rows], chunk_rows: int) -> Iterator[Rows]:
    """Cut a stream of rows into chunks of `chunk_rows`, the last one shorter."""
    held: list[Rows] = []
    have = 0
    for part in rows:
        held.append(part)
        have += len(part)
        if have < chunk_rows:
            continue
        whole = join(held)
        cut = have - have % chunk_rows
        for start in range(0, cut, chunk_rows):
            yield whole.take(slice(start, start + chunk_rows))
        held, have = [whole.take(slice(cut, None))], have - cut
    if have:
        yield join(held)


def _unchanged(rows: Rows) -> Rows:
    return rows


def _listed(faults: list[Fault], path: str) -> list[Fault]:
    """Return some of them, with what else can be done than to mend the file."""
    if len(faults) <= MOST_FAULTS:
        last = faults[-1]
        if "max_disorder_s" in last.message:  # says by itself what else can be done
            return faults
        told = f"{last.message}; `on_bad_row: skip` leaves such rows out and counts them"
        return [*faults[:-1], replace(last, message=told)]
    more = "and more; `on_bad_row: skip` leaves damaged rows out and counts them"
    return [*faults[:MOST_FAULTS], Fault(path, "", more)]
