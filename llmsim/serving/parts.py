"""What a replica is made of, pipeline or not: its drafts, and whose prompts they hold."""

from __future__ import annotations

from llmsim.serving.draft import Draft
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.replica import Replica
from llmsim.serving.request import PREFILL, Request


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


def spread_connection(replica: Replica) -> None:
    """Let all micro-batches of a pipeline hand requests over, or take them in."""
    if isinstance(replica, Pipeline):
        replica.connect()
