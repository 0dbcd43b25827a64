"""How busy the stations of pipelines were."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.results.stations import StationFacts
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.replica import Replica


def station_facts(names: Sequence[str], replicas: Sequence[Replica]) -> tuple[StationFacts, ...]:
    """Return how busy the stations of all pipelines were.

    Parameters
    ----------
    names : sequence of str
        Of each replica's pool.
    replicas : sequence of Replica
    """
    return tuple(
        StationFacts(pool, each.index, name, busy, each.in_flight_ns)
        for pool, each in zip(names, replicas, strict=True)
        if isinstance(each, Pipeline)
        for name, busy in zip(each.station_names, each.busy_ns, strict=True)
    )
