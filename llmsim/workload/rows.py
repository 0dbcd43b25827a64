"""Rows of a trace between the file and the workload, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_TOKENS = 2**31 - 1
"""Longest prompt or output that the columns of a workload can hold [tokens]."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a trace, in file order, as columns of equal length n.

    Parameters
    ----------
    time_ns : ndarray of int64 (n,) [ns]
        Recorded arrival on the file's own clock.
    prompt_tokens, output_tokens : ndarray of int64 (n,) [tokens]
    line : ndarray of int64 (n,)
        Line numbers in the file, counted from 1.
    session : ndarray of int64 (n,)
        Session id, or -1.
    client : ndarray of int32 (n,)
        Index into the format's client names, or -1.
    failed : ndarray of bool (n,)
        The recorded service did not answer.
    segments : ndarray of object (n,) or None
        Prompt identity of each row.
    slo_class : ndarray of int16 (n,) or None
        Index into the names of SLO classes that the trace has, or -1.
    """

    time_ns: npt.NDArray[np.int64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    line: npt.NDArray[np.int64]
    session: npt.NDArray[np.int64]
    client: npt.NDArray[np.int32]
    failed: npt.NDArray[np.bool_]
    segments: npt.NDArray[np.object_] | None = None
    slo_class: npt.NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, index: Any) -> Rows:
        """Return the rows that a slice, a mask or an index array selects."""
        return Rows(
            time_ns=self.time_ns[index],
            prompt_tokens=self.prompt_tokens[index],
            output_tokens=self.output_tokens[index],
            line=self.line[index],
            session=self.session[index],
            client=self.client[index],
            failed=self.failed[index],
            segments=None if self.segments is None else self.segments[index],
            slo_class=None if self.slo_class is None else self.slo_class[index],
        )

    def at(self, time_ns: npt.NDArray[np.int64]) -> Rows:
        """Return the same rows at other times."""
        return replace(self, time_ns=time_ns)

    def all_answered(self) -> Rows:
        """Return the same rows, none of them failed."""
        return replace(self, failed=np.zeros(len(self), dtype=np.bool_))


def plain_rows(
    time_ns: npt.NDArray[np.int64],
    prompt_tokens: npt.NDArray[np.int64],
    output_tokens: npt.NDArray[np.int64],
    line: npt.NDArray[np.int64],
) -> Rows:
    """Return rows without session, client, failure or prompt identity."""
    n = len(time_ns)
    return Rows(
        time_ns=time_ns,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        line=line,
        session=np.full(n, -1, dtype=np.int64),
        client=np.full(n, -1, dtype=np.int32),
        failed=np.zeros(n, dtype=np.bool_),
    )


def join(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several parts, one after another; at least one part."""
    if len(parts) == 1:
        return parts[0]
    # a part in which nobody names them is one of rows without
    pieces = [
        np.full(len(part), None, dtype=np.object_) if part.segments is None else part.segments
        for part in parts
    ]
    classes = [
        np.full(len(part), -1, dtype=np.int16) if part.slo_class is None else part.slo_class
        for part in parts
    ]
    named = any(part.segments is not None for part in parts)
    classed = any(part.slo_class is not None for part in parts)
    return Rows(
        time_ns=np.concatenate([part.time_ns for part in parts]),
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        line=np.concatenate([part.line for part in parts]),
        session=np.concatenate([part.session for part in parts]),
        client=np.concatenate([part.client for part in parts]),
        failed=np.concatenate([part.failed for part in parts]),
        segments=np.concatenate(pieces) if named else None,
        slo_class=np.concatenate(classes) if classed else None,
    )
