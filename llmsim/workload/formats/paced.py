"""Times for rows that have none: all at once, or at a rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt

from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S
from llmsim.workload.replay import RowMap, TraceFile, Transform
from llmsim.workload.rows import Rows


@dataclass(frozen=True, kw_only=True)
class PacedFile(TraceFile):
    """A file of requests that need not have times.

    Parameters
    ----------
    rate_rps : float, optional [requests/s]
        Requests of a file without times arrive as a Poisson process of this rate, drawn by the
        seed; absent: all at once, as ``vllm bench serve`` and ``sglang.bench_serving`` send them
        by default.
    """

    rate_rps: Annotated[float, Gt(0)] | None = None


def pace(seed: int, rate_rps: float | None) -> Transform:
    """Return what gives rows their times.

    Parameters
    ----------
    seed : int
    rate_rps : float or None [requests/s]
        None: all at time 0.
    """

    def learn(sound: Callable[[], Iterator[Rows]]) -> Callable[[], RowMap]:
        return lambda: _pacer(stream(seed, "trace", "paced"), rate_rps)

    return learn


def _pacer(rng: np.random.Generator, rate_rps: float | None) -> RowMap:
    clock_s = 0.0

    def give(rows: Rows) -> Rows:
        nonlocal clock_s
        if rate_rps is None or not len(rows):
            return rows.at(np.zeros(len(rows), dtype=np.int64))
        at_s = clock_s + np.cumsum(rng.exponential(1.0 / rate_rps, len(rows)))
        clock_s = float(at_s[-1])
        return rows.at(np.rint(at_s * NS_PER_S).astype(np.int64))

    return give
