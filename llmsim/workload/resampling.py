"""A trace drawn anew: blocks of it in another order, some of them several times, some not at all.

The circular block bootstrap (Politis and Romano, "A circular block-resampling procedure for
stationary data", 1992): every moment of the trace is as likely in a block as any other, bursts
shorter than a block stay whole, and the rate is right on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.rng import stream
from llmsim.core.units import seconds_to_ns
from llmsim.workload.chunk import RequestChunk, Workload
from llmsim.workload.wrapped import WrappedWorkload

CHUNK_ROWS = 65_536
"""Rows in a chunk; the requests do not depend on it."""

_WHERE_ABSENT: Final = {"model": 0, "slo_class": -1}
"""Columns that a chunk may lack, and what its rows have then."""


class Resampled(WrappedWorkload):
    """A workload whose blocks are drawn with replacement.

    Parameters
    ----------
    inner : Workload
        Is read whole.
    block_s : float [s]
    seed : int

    Notes
    -----
    A request that is drawn twice is the same client's, session's and prompt's twice.
    """

    def __init__(self, inner: Workload, block_s: float, seed: int) -> None:
        super().__init__(inner)
        self._block_ns = seconds_to_ns(block_s)
        self._seed = seed
        self.total = None

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        chunks = list(self._inner.chunks())
        self._read_through()
        whole = _joined(chunks)
        rows, arrival_ns = self._drawn(whole.arrival_ns)
        if not len(rows):
            yield whole
            return
        arrival_ns = arrival_ns - arrival_ns[0]
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            yield _taken(whole, rows[part], arrival_ns[part])

    def _drawn(
        self, arrival_ns: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return which rows come, and when [ns]."""
        # one gap more than between the rows: the trace goes in a circle
        span = int(arrival_ns[-1]) + max(int(arrival_ns[-1]) // max(len(arrival_ns) - 1, 1), 1)
        count = max(math.ceil(span / self._block_ns), 1)
        starts = stream(self._seed, "resample").integers(0, span, count)
        twice = np.concatenate((arrival_ns, arrival_ns + span))
        rows: list[npt.NDArray[np.int64]] = []
        times: list[npt.NDArray[np.int64]] = []
        for block, start in enumerate(starts.tolist()):
            length = min(self._block_ns, span - block * self._block_ns)
            low, high = np.searchsorted(twice, (start, start + length))
            rows.append(np.arange(low, high) % len(arrival_ns))
            times.append(twice[low:high] - start + block * self._block_ns)
        return np.concatenate(rows), np.concatenate(times)


def _joined(chunks: list[RequestChunk]) -> RequestChunk:
    """Return all rows as one chunk."""
    if len(chunks) == 1:
        return chunks[0]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in RequestChunk.__dataclass_fields__
        if name not in ("segments", *_WHERE_ABSENT)
    }
    for name, absent in _WHERE_ABSENT.items():
        parts = [getattr(chunk, name) for chunk in chunks]
        if any(part is not None for part in parts):
            columns[name] = np.concatenate(
                [
                    np.full(len(chunk), absent, np.int16) if part is None else part
                    for part, chunk in zip(parts, chunks, strict=True)
                ]
            )
    if any(chunk.segments is not None for chunk in chunks):
        columns["segments"] = [
            prompt for chunk in chunks for prompt in (chunk.segments or [None] * len(chunk))
        ]
    return RequestChunk(**columns)


def _taken(
    whole: RequestChunk, rows: npt.NDArray[np.int64], arrival_ns: npt.NDArray[np.int64]
) -> RequestChunk:
    columns: dict[str, Any] = {
        name: None if (column := getattr(whole, name)) is None else column[rows]
        for name in RequestChunk.__dataclass_fields__
        if name not in ("segments", "arrival_ns")
    }
    prompts = whole.segments
    columns["segments"] = None if prompts is None else [prompts[row] for row in rows.tolist()]
    return RequestChunk(arrival_ns=arrival_ns, **columns)
