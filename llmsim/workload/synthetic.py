"""A generated workload: an arrival process, a length law and a prompt law put together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmsim.core.errors import Fault, InputError
from llmsim.core.units import seconds_to_ns
from llmsim.workload.arrivals import Arrivals
from llmsim.workload.chunk import ClosedLoop, RequestChunk
from llmsim.workload.lengths import Lengths
from llmsim.workload.parameters import check_parameters
from llmsim.workload.programs import Programs
from llmsim.workload.prompts import Distinct, Prompts

CHUNK_ROWS = 65_536
"""Rows in a chunk unless asked otherwise [requests]."""


class SyntheticWorkload:
    """Requests drawn from laws; every pass over `chunks` draws the same ones.

    Parameters
    ----------
    arrivals : Arrivals
    lengths : Lengths
    seed : int
        Arrivals, lengths and prompts each draw from a stream of their own, so that changing one
        law leaves the draws of the others where they were.
    prompts : Prompts, optional
        Default: every prompt distinct.
    requests : int, optional
        How many requests to draw.
    duration_s : float, optional [s]
        Draw the requests that arrive before this time. Exactly one of `requests` and
        `duration_s` must be given for an open process, neither for a closed loop, whose length
        is ``in_flight * requests_per_slot``.
    near : Path, optional
        Folder that relative file names of a length law start from.
    chunk_rows : int
        Rows in a chunk; the requests do not depend on it.

    Raises
    ------
    InputError
        If a parameter is out of its limits or the extent is not given exactly once.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        lengths: Lengths,
        *,
        seed: int,
        prompts: Prompts | None = None,
        requests: int | None = None,
        duration_s: float | None = None,
        near: Path | None = None,
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        prompts = prompts if prompts is not None else Distinct()
        for seam, part in (("arrivals", arrivals), ("lengths", lengths), ("prompts", prompts)):
            check_parameters(part, f"{seam} '{type(part).__name__}'")
        loop = arrivals.closed_loop
        _check_extent(loop, requests, duration_s, chunk_rows)
        self.arrivals, self.lengths, self.prompts = arrivals, lengths, prompts
        self.seed, self.near, self.chunk_rows = seed, near, chunk_rows
        self.end_ns = None if duration_s is None else seconds_to_ns(duration_s)
        self.total: int | None = loop.in_flight * loop.requests_per_slot if loop else requests
        self.clients: tuple[str, ...] = ()
        self.slo_classes: tuple[str, ...] = ()
        self.closed_loop: ClosedLoop | None = loop
        self.programs: Programs | None = None
        self.skipped_rows = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        arrive = self.arrivals.sampler(self.seed)
        measure = self.lengths.sampler(self.seed, self.near, "requests")
        # Made only when asked for: a length law may read a file first.
        name = self.prompts.sampler(
            self.seed, lambda rows: self.lengths.sampler(self.seed, self.near, "pool")(rows)
        )
        made = 0
        while self.total is None or made < self.total:
            wanted = self.chunk_rows if self.total is None else self.total - made
            arrival_ns = arrive(min(self.chunk_rows, wanted))
            drawn = len(arrival_ns)
            if self.end_ns is not None:
                arrival_ns = arrival_ns[: np.searchsorted(arrival_ns, self.end_ns, side="left")]
            rows = len(arrival_ns)
            if rows:
                drawn_tokens, output_tokens = measure(rows)
                prompt_tokens, segments = name(drawn_tokens)
                yield RequestChunk(
                    arrival_ns=arrival_ns,
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                    session=np.full(rows, -1, dtype=np.int64),
                    client=np.full(rows, -1, dtype=np.int32),
                    priority=np.zeros(rows, dtype=np.int32),
                    failed=np.zeros(rows, dtype=np.bool_),
                    abort_ns=np.full(rows, -1, dtype=np.int64),
                    segments=segments,
                )
            made += rows
            if rows < drawn:
                return


def _check_extent(
    loop: ClosedLoop | None, requests: int | None, duration_s: float | None, chunk_rows: int
) -> None:
    faults = []
    given = [n for n, v in (("requests", requests), ("duration_s", duration_s)) if v is not None]
    if loop is not None and given:
        ends = f"in_flight x requests_per_slot = {loop.in_flight * loop.requests_per_slot} requests"
        faults += [Fault("", n, f"a closed loop ends after {ends}; leave this out") for n in given]
    elif loop is None and len(given) != 1:
        got = "both" if given else "neither"
        faults.append(Fault("", "requests", f"give either requests or duration_s, got {got}"))
    values = (("requests", requests), ("duration_s", duration_s), ("chunk_rows", chunk_rows))
    faults += [
        Fault("", n, f"must be greater than 0 (got {v})")
        for n, v in values
        if v is not None and not v > 0
    ]
    if faults:
        raise InputError("synthetic workload", faults)
