"""What a trace is like, in one pass and constant memory: rate, bursts, lengths, prefixes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.core.units import NS_PER_S
from llmsim.workload.chunk import RequestChunk, Segments, Workload

Ints = npt.NDArray[np.int64]

MINUTE_NS: Final = 60 * NS_PER_S
MOST_MINUTES: Final = 10 * 366 * 24 * 60
"""Minutes counted one by one: ten years. A trace that goes on has a wrong time somewhere."""

EXACT_TOKENS: Final = 1 << 20
"""Lengths up to this are counted one by one; longer ones count as this long in quantiles."""

QUANTILES: Final = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class LengthProfile:
    """Lengths of prompts or outputs.

    Parameters
    ----------
    mean : float [tokens]
    quantiles : mapping of float to int [tokens]
        By share: the smallest length that so many do not exceed.
    longest : int [tokens]
    counts : ndarray of int64 (n,)
        Requests by length, up to the longest or `EXACT_TOKENS`.
    """

    mean: float
    quantiles: Mapping[float, int]
    longest: int
    counts: Ints


@dataclass(frozen=True, slots=True)
class TraceProfile:
    """What `llmsim trace inspect` says of a trace.

    Parameters
    ----------
    requests, failed, skipped_rows : int
        Failed ones are among the requests; skipped rows are not.
    span_s : float [s]
        From the first arrival to the last.
    rate_rps : float [requests/s]
        Requests but the first, over the span; NaN where there is no span.
    gap_cv : float
        Coefficient of variation of the time between two arrivals: 1 of a Poisson process.
    minute_cv : float
        Of the requests of each whole minute: what an autoscaler sees.
    busiest_minute : int [requests]
    same_time_frac : float
        Requests with the time stamp of the one before.
    repeated : int
        Requests with time and both lengths of the one before.
    prompt, output : LengthProfile
    in_session_frac : float
    clients : mapping of str to int
        Requests by client, most first.
    reused_frac : float or None
        Share of prompt tokens that an unbounded prefix cache would have; None where the trace
        does not say which prompts agree.
    per_minute : ndarray of int64 (m,)
        Requests by minute since the first.
    """

    requests: int
    failed: int
    skipped_rows: int
    span_s: float
    rate_rps: float
    gap_cv: float
    minute_cv: float
    busiest_minute: int
    same_time_frac: float
    repeated: int
    prompt: LengthProfile
    output: LengthProfile
    in_session_frac: float
    clients: Mapping[str, int]
    reused_frac: float | None
    per_minute: Ints


def profile_trace(workload: Workload) -> TraceProfile:
    """Read a trace through and say what it is like.

    Parameters
    ----------
    workload : Workload
        One with arrivals of its own; in a closed loop or a program they mean nothing.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    prompt, output, gaps, minutes, prefixes = _Lengths(), _Lengths(), _Gaps(), _Minutes(), None
    requests = failed = in_session = repeated = 0
    by_client = np.zeros(0, dtype=np.int64)
    last: tuple[int, ...] | None = None
    for chunk in workload.chunks():
        requests += len(chunk)
        failed += int(chunk.failed.sum())
        in_session += int((chunk.session >= 0).sum())
        repeated += _repeated(chunk, last)
        last = _row(chunk, -1)
        prompt.add(chunk.prompt_tokens)
        output.add(chunk.output_tokens)
        gaps.add(chunk.arrival_ns)
        minutes.add(chunk.arrival_ns)
        by_client = _added(by_client, chunk.client[chunk.client >= 0])
        if chunk.segments is not None:
            prefixes = _Prefixes() if prefixes is None else prefixes
            prefixes.add(chunk.segments, chunk.prompt_tokens)
    named = {workload.clients[at]: int(n) for at, n in enumerate(by_client) if n}
    return TraceProfile(
        requests=requests,
        failed=failed,
        skipped_rows=workload.skipped_rows,
        span_s=gaps.last_ns / NS_PER_S,
        rate_rps=gaps.count / (gaps.last_ns / NS_PER_S) if gaps.last_ns else math.nan,
        gap_cv=gaps.cv(),
        minute_cv=minutes.cv(gaps.last_ns),
        busiest_minute=int(minutes.counts.max(initial=0)),
        same_time_frac=gaps.zero / requests if requests else 0.0,
        repeated=repeated,
        prompt=prompt.profile(),
        output=output.profile(),
        in_session_frac=in_session / requests if requests else 0.0,
        clients=dict(sorted(named.items(), key=lambda pair: -pair[1])),
        reused_frac=None if prefixes is None else prefixes.frac(),
        per_minute=minutes.counts,
    )


def _triple(chunk: RequestChunk) -> tuple[npt.NDArray[np.integer], ...]:
    return chunk.arrival_ns, chunk.prompt_tokens, chunk.output_tokens


def _row(chunk: RequestChunk, at: int) -> tuple[int, ...]:
    return tuple(int(column[at]) for column in _triple(chunk))


def _repeated(chunk: RequestChunk, last: tuple[int, ...] | None) -> int:
    same = np.ones(len(chunk) - 1, dtype=np.bool_)
    for column in _triple(chunk):
        same &= column[1:] == column[:-1]
    across = last is not None and last == _row(chunk, 0)
    return int(same.sum()) + across


def _added(counts: Ints, values: npt.NDArray[np.integer]) -> Ints:
    """Return counts with those of more values; grows to twice what is needed at most."""
    if not len(values):
        return counts
    found = np.bincount(values)
    if len(found) > len(counts):
        counts = np.concatenate((counts, np.zeros(len(found) - len(counts), dtype=np.int64)))
    counts[: len(found)] += found
    return counts


@dataclass(slots=True)
class _Lengths:
    counts: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    total: int = 0
    longest: int = 0

    def add(self, tokens: npt.NDArray[np.int32]) -> None:
        self.total += int(tokens.sum(dtype=np.int64))
        self.longest = max(self.longest, int(tokens.max()))
        self.counts = _added(self.counts, np.minimum(tokens, EXACT_TOKENS))

    def profile(self) -> LengthProfile:
        upto = np.cumsum(self.counts)
        n = int(upto[-1]) if len(upto) else 0
        found = {q: int(np.searchsorted(upto, math.ceil(q * n))) if n else 0 for q in QUANTILES}
        return LengthProfile(self.total / n if n else 0.0, found, self.longest, self.counts)


@dataclass(slots=True)
class _Gaps:
    """Mean and spread of the time between arrivals."""

    count: int = 0
    last_ns: int = 0
    squares_s2: float = 0.0
    zero: int = 0
    begun: bool = False

    def add(self, arrival_ns: Ints) -> None:
        before = np.diff(arrival_ns, prepend=self.last_ns if self.begun else arrival_ns[0])
        gaps = before if self.begun else before[1:]
        self.count += len(gaps)
        self.zero += int((gaps == 0).sum())
        self.squares_s2 += float(np.square(gaps / NS_PER_S).sum())
        self.last_ns, self.begun = int(arrival_ns[-1]), True

    def cv(self) -> float:
        if not self.count or not self.last_ns:
            return math.nan
        mean = self.last_ns / NS_PER_S / self.count
        return math.sqrt(max(self.squares_s2 / self.count - mean * mean, 0.0)) / mean


@dataclass(slots=True)
class _Minutes:
    counts: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def add(self, arrival_ns: Ints) -> None:
        minute = arrival_ns // MINUTE_NS
        self.counts = _added(self.counts, minute[minute < MOST_MINUTES])

    def cv(self, last_ns: int) -> float:
        whole = self.counts[: last_ns // MINUTE_NS]
        if len(whole) < 2 or not whole.sum():
            return math.nan
        return float(whole.std() / whole.mean())


class _Prefixes:
    """How much of each prompt an earlier one began with."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._found = self._asked = 0

    def add(self, segments: list[Segments | None], prompt: npt.NDArray[np.int32]) -> None:
        """Look prompts up, and keep them."""
        seen = self._seen
        self._asked += int(prompt.sum(dtype=np.int64))
        for pieces in segments:
            matching = True
            for key, length in pieces or ():
                known = seen.get(key, 0)
                if matching:
                    self._found += min(known, length)
                    matching = known >= length
                if length > known:
                    seen[key] = length

    def frac(self) -> float:
        """Return the share of tokens that were there."""
        return self._found / self._asked if self._asked else 0.0
