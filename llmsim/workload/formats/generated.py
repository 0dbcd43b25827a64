"""Traffic made from statistics that somebody published or measured, stretch by stretch of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt

from llmsim.core.errors import Fault, InputError, TraceError
from llmsim.core.units import seconds_to_ns
from llmsim.workload.chunk import ClosedLoop, RequestChunk
from llmsim.workload.programs import Programs
from llmsim.workload.replay import rechunked, to_chunk
from llmsim.workload.rows import MOST_TOKENS, Rows, plain_rows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What all traffic that is made from statistics lets you choose.

    Parameters
    ----------
    path : str
        The statistics; relative to the scenario file.
    rate_scale : float
        Every rate is multiplied by it; the rhythm of the day keeps its pace.
    start_s, end_s : float [s]
        Use the statistics from `start_s` up to, not including, `end_s`, on their own clock.
    limit : int, optional
        Make this many requests at most.
    max_prompt_tokens : int, optional [tokens]
        Leave longer prompts out.
    chunk_rows : int
        Rows in a chunk; the requests do not depend on it.
    """

    path: str
    rate_scale: Annotated[float, Gt(0)] = 1.0
    start_s: Annotated[float, Ge(0)] = 0.0
    end_s: Annotated[float, Gt(0)] | None = None
    limit: Annotated[int, Ge(1)] | None = None
    max_prompt_tokens: Annotated[int, Ge(1)] | None = None
    chunk_rows: Annotated[int, Ge(1)] = 65_536


class GeneratedWorkload:
    """Requests made stretch by stretch; every pass makes the same ones.

    Parameters
    ----------
    path : Path
        For messages.
    options : Generated
    make : callable
        Starts a pass: yields rows in order of time, times from the start of the statistics.
    clients : tuple of str
    expected : float, optional
        How many requests a whole pass makes in the mean; None where that is not known beforehand.

    Raises
    ------
    InputError
        If the window is empty.
    """

    def __init__(
        self,
        path: Path,
        options: Generated,
        make: Callable[[], Iterator[Rows]],
        clients: tuple[str, ...] = (),
        expected: float | None = None,
    ) -> None:
        if options.end_s is not None and options.end_s <= options.start_s:
            message = f"must be greater than start_s = {options.start_s:g} (got {options.end_s:g})"
            raise InputError(f"trace {path}", [Fault("", "end_s", message)])
        self._path, self._options, self._make = path, options, make
        self.total: int | None = None
        self.expected = expected if options.limit is None else None
        self.clients: tuple[str, ...] = clients
        self.slo_classes: tuple[str, ...] = ()
        self.closed_loop: ClosedLoop | None = None
        self.programs: Programs | None = None
        self.skipped_rows = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows.

        Raises
        ------
        TraceError
            If no request is made.
        """
        origin_ns: int | None = None
        for part in rechunked(self._kept(), self._options.chunk_rows):
            origin_ns = int(part.time_ns[0]) if origin_ns is None else origin_ns
            yield to_chunk(part, origin_ns)
        if origin_ns is None:
            fault = Fault(str(self._path), "", "these statistics make no request")
            raise TraceError(str(self._path), [fault])

    def _kept(self) -> Iterator[Rows]:
        options, left = self._options, self._options.limit
        begin_ns = seconds_to_ns(options.start_s)
        end_ns = None if options.end_s is None else seconds_to_ns(options.end_s)
        for part in self._make():
            last = end_ns is not None and len(part) > 0 and int(part.time_ns[-1]) >= end_ns
            keep = part.time_ns >= begin_ns
            if end_ns is not None:
                keep &= part.time_ns < end_ns
            if options.max_prompt_tokens is not None:
                keep &= part.prompt_tokens <= options.max_prompt_tokens
            kept = part.take(keep)
            if left is not None:
                kept = kept.take(slice(0, left))
                left -= len(kept)
            if len(kept):
                yield kept
            if last or left == 0:
                return


def made_rows(
    at_s: Floats, prompt: Floats, output: Floats, client: npt.NDArray[np.int32] | None = None
) -> Rows:
    """Return requests as rows, sorted by time.

    Parameters
    ----------
    at_s : ndarray of float (n,) [s]
    prompt, output : ndarray of float (n,) [tokens]
        Rounded to whole tokens, at least 1.
    client : ndarray of int32 (n,), optional
    """
    order = np.argsort(at_s, kind="stable")
    asked, made = (
        np.clip(np.rint(values[order]), 1, MOST_TOKENS).astype(np.int64)
        for values in (prompt, output)
    )
    time_ns = np.rint(at_s[order] * 1e9).astype(np.int64)
    rows = plain_rows(time_ns, asked, made, np.zeros(len(order), dtype=np.int64))
    if client is None:
        return rows
    return Rows(
        rows.time_ns,
        rows.prompt_tokens,
        rows.output_tokens,
        rows.line,
        rows.session,
        client[order],
        rows.failed,
    )
