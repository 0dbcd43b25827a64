"""Arrival processes: when requests come.

Every class here is a registered `kind` of the seam ``arrivals``; its fields are its YAML
parameters. `burst` lives in `modulated`, the rest below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt

from llmsim.core.registry import Registry
from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S, seconds_to_ns
from llmsim.workload.chunk import ClosedLoop

ArrivalSampler = Callable[[int], npt.NDArray[np.int64]]
"""Gives the next n arrival times [ns], not decreasing from call to call."""


class Arrivals(Protocol):
    """An arrival process; a fresh `sampler` starts it anew."""

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """The slots of a closed loop, or None for an open process."""
        ...

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return a function that gives the next n arrival times.

        Notes
        -----
        The times must not depend on how the calls are cut: twice n rows are the same numbers as
        once 2n. Draw from ``stream(seed, "arrivals", ...)`` only.
        """
        ...


ARRIVALS: Registry[Arrivals] = Registry("arrivals")


def renewal(gaps_s: Callable[[int], npt.NDArray[np.float64]]) -> ArrivalSampler:
    """Return the sampler of a renewal process from its inter-arrival times.

    Parameters
    ----------
    gaps_s : callable
        Gives the next n inter-arrival times [s].

    Returns
    -------
    ArrivalSampler
        The first arrival comes one gap after time 0.

    Notes
    -----
    Gaps are rounded to the nanosecond before they are summed: integer sums do not depend on
    where a chunk ends, and 213 days of them do not drift.
    """
    clock_ns = 0

    def sample(rows: int) -> npt.NDArray[np.int64]:
        nonlocal clock_ns
        times = np.rint(gaps_s(rows) * NS_PER_S).astype(np.int64)
        if rows:
            times[0] += clock_ns
            np.cumsum(times, out=times)
            clock_ns = int(times[-1])
        return times

    return sample


@ARRIVALS.register("poisson")
@dataclass(frozen=True)
class Poisson:
    """Independent arrivals at a constant mean rate.

    Parameters
    ----------
    rate_rps : float [requests/s]
    """

    rate_rps: Annotated[float, Gt(0)]

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """None: an open process."""
        return None

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return a function that gives the next n arrival times."""
        rng, mean_s = stream(seed, "arrivals", "poisson"), 1.0 / self.rate_rps
        return renewal(lambda rows: rng.exponential(mean_s, rows))


@ARRIVALS.register("gamma")
@dataclass(frozen=True)
class Gamma:
    """Renewal process with Gamma inter-arrival times: burstiness by one number.

    Parameters
    ----------
    rate_rps : float [requests/s]
    cv : float
        Coefficient of variation of the inter-arrival times; 1 is Poisson, more is bursty. The
        Gamma shape, which BurstGPT's own generator asks for, is 1/cv².
    """

    rate_rps: Annotated[float, Gt(0)]
    cv: Annotated[float, Gt(0)] = 1.0

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """None: an open process."""
        return None

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return a function that gives the next n arrival times."""
        rng, shape = stream(seed, "arrivals", "gamma"), self.cv**-2
        scale_s = 1.0 / (shape * self.rate_rps)
        return renewal(lambda rows: rng.gamma(shape, scale_s, rows))


@ARRIVALS.register("deterministic")
@dataclass(frozen=True)
class Deterministic:
    """One arrival every 1/rate, the first at time 0.

    Parameters
    ----------
    rate_rps : float [requests/s]
    """

    rate_rps: Annotated[float, Gt(0)]

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """None: an open process."""
        return None

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return a function that gives the next n arrival times; the seed is not used."""
        sent = 0

        def sample(rows: int) -> npt.NDArray[np.int64]:
            nonlocal sent
            index = np.arange(sent, sent + rows, dtype=np.float64)
            sent += rows
            return np.rint(index * (NS_PER_S / self.rate_rps)).astype(np.int64)

        return sample


@ARRIVALS.register("closed-loop")
@dataclass(frozen=True)
class ClosedLoopArrivals:
    """A fixed number of clients that each wait for their answer before they ask again.

    Parameters
    ----------
    in_flight : int
        Clients, hence the most requests in flight.
    requests_per_slot : int
        Requests that each client sends.
    think_s : float [s]
        Pause between an answer and the next request.
    ingest_s : float [s]
        Time of the one front end that takes requests in turn (HTTP, tokeniser): two reach the
        engine at least so far apart. It breaks up clients that would march in step.
    round_s : float [s]
        Time of that front end for a request before its turn, in rounds: all that have come are
        ready together, once it is through with all of them. An event loop works so.
    """

    in_flight: Annotated[int, Ge(1)]
    requests_per_slot: Annotated[int, Ge(1)]
    think_s: Annotated[float, Ge(0)] = 0.0
    ingest_s: Annotated[float, Ge(0)] = 0.0
    round_s: Annotated[float, Ge(0)] = 0.0

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """The slots that the engine refills."""
        return ClosedLoop(
            self.in_flight,
            self.requests_per_slot,
            seconds_to_ns(self.think_s),
            seconds_to_ns(self.ingest_s),
            seconds_to_ns(self.round_s),
        )

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return zeros: in a closed loop the engine sets the times."""
        return lambda rows: np.zeros(rows, dtype=np.int64)
