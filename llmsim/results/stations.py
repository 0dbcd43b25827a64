"""How busy the stations of pipelines were: what is left of the time is bubbles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StationFacts:
    """One station of one pipeline: a stage, a link, or the scheduler's host.

    Parameters
    ----------
    pool : str
    replica : int
        Index within the fleet.
    name : str
        Such as ``stage 0``.
    busy_ns : int [ns]
        How long it has worked.
    in_flight_ns : int [ns]
        How long the pipeline has had at least one micro-batch in flight.
    """

    pool: str
    replica: int
    name: str
    busy_ns: int
    in_flight_ns: int

    @property
    def is_stage(self) -> bool:
        """Whether these are GPUs."""
        return self.name.startswith("stage")


def station_metrics(stations: Sequence[StationFacts]) -> dict[str, float]:
    """Return the metrics of `metrics.STATION_METRICS`; NaN where nothing has run."""
    stages = [each for each in stations if each.is_stage]
    there = sum(each.in_flight_ns for each in stages)
    if not there:
        return {"bubble_frac": math.nan, "station_busy_max_frac": math.nan}
    busy = sum(each.busy_ns for each in stages)
    fullest = max(each.busy_ns / each.in_flight_ns for each in stations if each.in_flight_ns)
    return {"bubble_frac": 1 - busy / there, "station_busy_max_frac": fullest}
