"""Traffic as a planner sees it: ranges of prompt lengths, each with buckets of output lengths.

A router knows a prompt's length and not the output's, so that traffic can be split by ranges of
prompt lengths alone; outputs count in what a range costs a replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError
from llmsim.core.units import NS_PER_S
from llmsim.planner.demand import PROMPT_EDGES, Demand, demand_of
from llmsim.scenario import Scenario, build_workload


@dataclass(frozen=True, slots=True)
class Sample:
    """The requests that a plan is made for.

    Parameters
    ----------
    arrival_s : ndarray of float64 (n,) [s]
    prompt_tokens, output_tokens : ndarray of int64 (n,) [tokens]
    duration_s : float [s]
        In which they arrived.
    shares_prefixes : bool
        Whether some prompts begin like others.
    """

    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    duration_s: float
    shares_prefixes: bool = False

    @property
    def rate_rps(self) -> float:
        """All requests per second."""
        return len(self.arrival_s) / self.duration_s

    def dispersion(self, window_s: float) -> float:
        """Return variance over mean of the arrivals in windows: 1 for Poisson, more for bursts.

        Parameters
        ----------
        window_s : float [s]
            Shortened until there are ten windows.

        Notes
        -----
        The index of dispersion for counts; its limit for long windows is the squared coefficient
        of variation that a renewal process of the same effect on queues has (Whitt, "The queueing
        network analyzer", Bell System Technical Journal 62 (1983)).
        """
        windows = max(int(self.duration_s / window_s), 10)
        counts, _ = np.histogram(self.arrival_s, windows, (0.0, self.duration_s))
        mean = float(counts.mean())
        return float(counts.var()) / mean if mean else 1.0

    @property
    def output_scv(self) -> float:
        """Squared coefficient of variation of output lengths."""
        mean = float(self.output_tokens.mean())
        return float(self.output_tokens.var()) / mean**2

    @property
    def prompt_scv(self) -> float:
        """Squared coefficient of variation of prompt lengths."""
        mean = float(self.prompt_tokens.mean())
        return float(self.prompt_tokens.var()) / mean**2

    @property
    def output_mean_tokens(self) -> float:
        """Mean output length [tokens]."""
        return float(self.output_tokens.mean())


@dataclass(frozen=True, slots=True)
class Range:
    """Requests whose prompts are of similar length.

    Parameters
    ----------
    name : str
    low_tokens : int [tokens]
        Shortest prompt; the next range's is beyond the longest.
    rate_rps : float [requests/s]
    buckets : tuple of str
        Of the demand, by output length.
    """

    name: str
    low_tokens: int
    rate_rps: float
    buckets: tuple[str, ...]


def sample_of(scenario: Scenario) -> Sample:
    """Read the requests of a scenario.

    Parameters
    ----------
    scenario : Scenario

    Raises
    ------
    InputError
        If there are none, they all arrive at once, or the trace cannot be read.
    """
    chunks = list(build_workload(scenario).chunks())
    kept = [~chunk.failed for chunk in chunks]
    pairs = list(zip(chunks, kept, strict=True))
    arrival_s = np.concatenate([each.arrival_ns[mask] for each, mask in pairs]) / NS_PER_S
    prompts = np.concatenate([each.prompt_tokens[mask] for each, mask in pairs]).astype(np.int64)
    outputs = np.concatenate([each.output_tokens[mask] for each, mask in pairs]).astype(np.int64)
    count = len(arrival_s)
    if not count:
        raise InputError("plan", [Fault("", "traffic", "there are no requests to plan for")])
    duration_s = scenario.traffic.duration_s
    if duration_s is None:
        # n arrivals have n - 1 gaps between them
        duration_s = float(arrival_s[-1]) * (count / (count - 1) if count > 1 else 1)
    if not duration_s > 0:
        message = f"{count} requests arrive at one moment: that is no rate"
        raise InputError("plan", [Fault("", "traffic", message)])
    shared = any(chunk.segments is not None for chunk in chunks)
    return Sample(arrival_s, prompts, outputs, duration_s, shared)


LEAST_FRAC: Final = 0.01
"""A range with less of the requests is no range of its own: what few prompts need must not decide
which cards may serve all that are about as long."""


def ranges_of(sample: Sample) -> tuple[tuple[Range, ...], Demand]:
    """Return the prompt ranges that occur, and the buckets that they are made of.

    Parameters
    ----------
    sample : Sample

    Notes
    -----
    A range with too few requests is part of the one below it, or of the one above if it is the
    lowest.
    """
    demand = demand_of(sample.prompt_tokens, sample.output_tokens, sample.duration_s)
    rates = {bucket.name: bucket.rate_rps for bucket in demand.buckets}
    found: list[Range] = []
    small = LEAST_FRAC * demand.rate_rps
    for low in PROMPT_EDGES:
        names = tuple(name for name in rates if name.startswith(f"in{low}."))
        if not names:
            continue
        here = Range(f"in{low}", low, sum(rates[name] for name in names), names)
        if found and min(here.rate_rps, found[-1].rate_rps) < small:
            below = found.pop()
            rate_rps = below.rate_rps + here.rate_rps
            here = Range(below.name, below.low_tokens, rate_rps, below.buckets + here.buckets)
        found.append(here)
    return tuple(found), demand


def prompt_edges(ranges: tuple[Range, ...]) -> tuple[int, ...]:
    """Return where one range ends and the next begins [tokens].

    Parameters
    ----------
    ranges : tuple of Range
        By length.
    """
    return tuple(after.low_tokens for _, after in pairwise(ranges))
