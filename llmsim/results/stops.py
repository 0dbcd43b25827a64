"""Steps that were stopped inside, and how long those that they were stopped for waited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmsim.core.units import NS_PER_S


@dataclass(frozen=True, slots=True)
class StopFacts:
    """What was stopped on one replica.

    Parameters
    ----------
    pool : str
    replica : int
        Index within the fleet.
    stops : int
        Steps stopped inside, each as often as that happened.
    wait_ns, longest_ns : int [ns]
        From the arrival that stopped a step until the stop: of all together, and the longest.
    """

    pool: str
    replica: int
    stops: int
    wait_ns: int
    longest_ns: int


def stop_metrics(stops: Sequence[StopFacts]) -> dict[str, float]:
    """Return the metrics of `metrics.STOP_METRICS`; NaN where nothing was stopped."""
    count = sum(each.stops for each in stops)
    mean = sum(each.wait_ns for each in stops) / count / NS_PER_S if count else math.nan
    longest = max(each.longest_ns for each in stops) / NS_PER_S if count else math.nan
    return {"stops": count, "stop_wait_mean_s": mean, "stop_wait_max_s": longest}
