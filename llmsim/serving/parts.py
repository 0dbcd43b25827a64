"""What a replica is made of, pipeline or not: its drafts, whose prompts they hold, its stations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmsim.results.stations import StationFacts
from llmsim.results.steplog import StepLog
from llmsim.serving.draft import Draft
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.replica import Replica
from llmsim.serving.request import PREFILL, Request

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet


def drafts_of(replica: Replica) -> list[Draft]:
    """Return the drafts that make up a replica: of a pipeline, one for each micro-batch."""
    if isinstance(replica, Pipeline):
        return [slot.draft for slot in replica.slots]
    return [replica.draft]


def prompts_begun(replica: Replica) -> list[Request]:
    """Return whose prompts are in progress on a replica, in a micro-batch or between two."""
    begun = [request for draft in drafts_of(replica) for request in draft.prefilling]
    if isinstance(replica, Pipeline):
        begun += [request for request in replica.loose if request.state == PREFILL]
    return begun


def refusals_of(fleet: Fleet) -> tuple[int, int]:
    """Return how often replicas refused, and requests were held; -1 where nobody may refuse."""
    gateway, handoff = fleet.gateway, fleet.handoff
    if gateway is None and (handoff is None or not handoff.refuses):
        return -1, -1
    doors = [each for each in (gateway, handoff) if each is not None]
    return sum(each.refusals for each in doors), sum(each.holds for each in doors)


def kept_steps(replicas: Sequence[Replica] | None) -> Callable[[], StepLog | None]:
    """Let replicas keep their steps, if there are any; return what gives them after the run."""
    if replicas is None:
        return lambda: None
    for replica in replicas:
        replica.meter.keep()
    return lambda: StepLog.of({r.index: r.meter.kept or () for r in replicas})


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
