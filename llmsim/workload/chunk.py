"""A workload at rest: columns, in chunks, in arrival order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from llmsim.workload.programs import Programs

Segments = tuple[tuple[int, int], ...]
"""Identity of a prompt: (key, length) pieces in order; token j of a piece is the pair (key, j).

Equal pairs are equal tokens, so two prompts share a prefix exactly as far as their pieces agree.
Keys are non-negative and global to the workload. The pieces' lengths add up to the prompt.
"""


@dataclass(frozen=True, slots=True)
class RequestChunk:
    """Consecutive requests of a workload, as columns of equal length n.

    Parameters
    ----------
    arrival_ns : ndarray of int64 (n,) [ns]
        Arrival times since the start of the workload, not decreasing, across chunks too.
    prompt_tokens, output_tokens : ndarray of int32 (n,) [tokens]
        Lengths; both at least 1. The output length is latent: no policy ever sees it.
    session : ndarray of int64 (n,)
        Session id, or -1 for a request outside any session.
    client : ndarray of int32 (n,)
        Index into the workload's client names, or -1.
    priority : ndarray of int32 (n,)
        Smaller is more urgent; 0 unless the workload says otherwise.
    failed : ndarray of bool (n,)
        The row failed in the recorded service and is replayed as a failure: it counts as an
        arrival with outcome ``provider_failed`` and puts no load on the fleet.
    abort_ns : ndarray of int64 (n,) [ns]
        Time after arrival at which the client goes away, or -1.
    segments : list of Segments or None
        Prompt identity per request; None when every prompt is unlike all others.
    model : ndarray of int16 (n,) or None
        Which of the fleet's models a request is for; None where there is one.
    slo_class : ndarray of int16 (n,) or None
        Index of its SLO class, or -1; None where there are none. Of a trace, into the workload's
        own names; of a scenario's workload, into the scenario's classes.
    images : ndarray of int32 (n,) or None
        Images in front of the prompt's text, whose tokens it counts; None where nobody has any.
    """

    arrival_ns: npt.NDArray[np.int64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    session: npt.NDArray[np.int64]
    client: npt.NDArray[np.int32]
    priority: npt.NDArray[np.int32]
    failed: npt.NDArray[np.bool_]
    abort_ns: npt.NDArray[np.int64]
    segments: list[Segments | None] | None = None
    model: npt.NDArray[np.int16] | None = None
    slo_class: npt.NDArray[np.int16] | None = None
    images: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.arrival_ns)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """N clients that each send their next request when the previous one has ended.

    Parameters
    ----------
    in_flight : int
        Number of slots.
    requests_per_slot : int
        How many requests each slot sends before it stops.
    think_ns : int [ns]
        Pause between the end of one request and the next.
    ingest_ns : int [ns]
        One front end takes requests in turn, this long each: two reach the engine at least so
        far apart, in the order they were sent.
    round_ns : int [ns]
        Before that it takes all that have come as one round, this long for each of them: they
        are ready together.
    """

    in_flight: int
    requests_per_slot: int
    think_ns: int = 0
    ingest_ns: int = 0
    round_ns: int = 0

    @property
    def has_front_end(self) -> bool:
        """Whether requests pass something that others may hold."""
        return self.ingest_ns > 0 or self.round_ns > 0


class Workload(Protocol):
    """Where requests come from.

    Attributes
    ----------
    total : int or None
        Number of requests if it is known before reading, for the progress bar.
    clients : tuple of str
        Client names that the `client` column points into.
    slo_classes : tuple of str
        Names that the `slo_class` column points into.
    closed_loop : ClosedLoop or None
        When set, the arrival column is ignored: request i belongs to slot ``i % in_flight``.
    skipped_rows : int
        Damaged rows skipped so far (``on_bad_row: skip``).
    programs : Programs or None
        When set, the chunks hold the first calls of programs, each with its program as session;
        in a closed loop a slot begins its next program when one is over.
    """

    total: int | None
    clients: tuple[str, ...]
    slo_classes: tuple[str, ...]
    closed_loop: ClosedLoop | None
    skipped_rows: int
    programs: Programs | None

    def chunks(self) -> Iterator[RequestChunk]:
        """Yield the requests in arrival order; every call starts anew and gives the same rows."""
        ...
