"""A trace made anonymous, or thinner: what `llmsim trace anonymise` and `scale` do to its rows."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llmsim.core.rng import stream
from llmsim.workload.chunk import RequestChunk, Segments, Workload
from llmsim.workload.wrapped import WrappedWorkload

Ints = npt.NDArray[np.int64]


class Anonymised(WrappedWorkload):
    """A workload that no longer says who asked, or when in the calendar.

    Parameters
    ----------
    inner : Workload
        Whose first request is at 0, as those of all traces are.
    round_tokens : int [tokens]
        Lengths become the nearest multiple of it, at least 1.

    Notes
    -----
    Sessions become a keyed hash whose key is thrown away, clients ``client-1``, ``client-2`` ...
    in order of appearance, keys of prompts numbers in order of appearance. Times, lengths and
    what shares a prefix stay, as they are what a trace is for: who knows the traffic of a service
    may recognise it. Names of SLO classes stay.
    """

    def __init__(self, inner: Workload, round_tokens: int = 1) -> None:
        super().__init__(inner)
        self._key = secrets.token_bytes(32)
        self._step = round_tokens
        self._rank: dict[int, int] = {}

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        blocks: dict[int, int] = {}
        for chunk in self._inner.chunks():
            self._read_through()
            prompt, output = (self._rounded(t) for t in (chunk.prompt_tokens, chunk.output_tokens))
            segments = chunk.segments
            if segments is not None and self._step == 1:
                segments = [_renumbered(pieces, blocks) for pieces in segments]
            client = chunk.client.copy()
            for code in np.unique(client[client >= 0]).tolist():
                client[chunk.client == code] = self._rank.setdefault(code, len(self._rank))
            self.clients = tuple(f"client-{n + 1}" for n in range(len(self._rank)))
            yield replace(
                chunk,
                prompt_tokens=prompt,
                output_tokens=output,
                session=self._sessions(chunk.session),
                client=client,
                # rounded prompts no longer fit the pieces they are made of
                segments=segments if self._step == 1 else None,
            )

    def _rounded(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        step = self._step
        most = np.iinfo(np.int32).max // step * step
        near = (tokens.astype(np.int64) + step // 2) // step * step
        rounded: npt.NDArray[np.int32] = np.clip(near, 1, most).astype(np.int32)
        return tokens if step == 1 else rounded

    def _sessions(self, session: Ints) -> Ints:
        known, inverse = np.unique(session, return_inverse=True)
        hashed = [-1 if each < 0 else self._hashed(each) for each in known.tolist()]
        return np.array(hashed, dtype=np.int64)[inverse]

    def _hashed(self, session: int) -> int:
        digest = hashlib.blake2b(str(session).encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") >> 1


def _renumbered(pieces: Segments | None, known: dict[int, int]) -> Segments | None:
    if pieces is None:
        return None
    return tuple((known.setdefault(key, len(known)), length) for key, length in pieces)


class Thinned(WrappedWorkload):
    """A workload of which a share is kept: whole sessions, and requests outside any by chance.

    Parameters
    ----------
    inner : Workload
    keep_frac : float
    seed : int
    """

    def __init__(self, inner: Workload, keep_frac: float, seed: int) -> None:
        super().__init__(inner)
        self._keep, self._seed = keep_frac, seed

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        rng = stream(self._seed, "thin")
        key = str(self._seed).encode()
        for chunk in self._inner.chunks():
            self._read_through()
            share = rng.random(len(chunk))
            known, inverse = np.unique(chunk.session, return_inverse=True)
            by_session = np.array([_share(each, key) for each in known.tolist()])[inverse]
            kept = np.where(chunk.session >= 0, by_session, share) < self._keep
            if kept.any():
                yield _taken(chunk, kept)


def _share(session: int, key: bytes) -> float:
    digest = hashlib.blake2b(str(session).encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "big") / 2**64


def _taken(chunk: RequestChunk, kept: npt.NDArray[np.bool_]) -> RequestChunk:
    at = np.flatnonzero(kept)
    segments = chunk.segments
    return RequestChunk(
        arrival_ns=chunk.arrival_ns[at],
        prompt_tokens=chunk.prompt_tokens[at],
        output_tokens=chunk.output_tokens[at],
        session=chunk.session[at],
        client=chunk.client[at],
        priority=chunk.priority[at],
        failed=chunk.failed[at],
        abort_ns=chunk.abort_ns[at],
        segments=None if segments is None else [segments[i] for i in at.tolist()],
        model=None if chunk.model is None else chunk.model[at],
        slo_class=None if chunk.slo_class is None else chunk.slo_class[at],
    )
