"""Which kind of fork stands for whom, and who has none."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.policies.ordering import ChoosesVictims, GuardsAdmission, HearsOfEnds, OrdersWaiting
from llmsim.serving.fork import Fork, ReplicaFork
from llmsim.serving.fork_lanes import LanesFork
from llmsim.serving.fork_pipeline import PipelineFork
from llmsim.serving.fork_ranked_pipeline import PipelineRankFork
from llmsim.serving.fork_ranks import RankFork
from llmsim.serving.lanes import Lane
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.ranked_pipeline import PipelineGroup, PipelineRank
from llmsim.serving.ranks import Rank, RankGroup
from llmsim.serving.replica import Replica


def behind(door: Replica) -> list[Replica]:
    """Return who is called behind a door of the fleet: it, its ranks, or all lanes beside it."""
    if door.ranks is not None:
        return list(door.ranks.members)
    if isinstance(door, Lane):
        return [door, *[lane for lane in door.device.lanes if lane is not door]]
    return [door]


def fork_of(there: Sequence[Replica], beyond_tokens: int, keeps: bool) -> Fork:
    """Return a fork of those who are behind a door.

    Parameters
    ----------
    there : sequence of Replica
        As `behind` returns them.
    beyond_tokens, keeps
        See `Fork`.
    """
    ranks = there[0].ranks
    if isinstance(ranks, RankGroup):
        return RankFork(ranks, beyond_tokens, keeps)
    if isinstance(ranks, PipelineGroup):
        return PipelineRankFork(ranks, beyond_tokens, keeps)
    if isinstance(there[0], Lane):
        lanes = [lane for lane in there if isinstance(lane, Lane)]
        return LanesFork(lanes, beyond_tokens, keeps)
    if isinstance(there[0], Pipeline):
        return PipelineFork(there[0], beyond_tokens, keeps)
    return ReplicaFork(there[0], beyond_tokens, keeps)


def unforkable(replica: Replica) -> str:
    """Return what of a replica cannot be copied; empty if everything can."""
    draft = replica.draft
    keeps = isinstance(draft.policy, OrdersWaiting | ChoosesVictims | GuardsAdmission | HearsOfEnds)
    if keeps and (type(replica) is not Replica or draft.swapper is not None):
        return "batching policies that keep a line, victims or room, but on replicas of one rank"
    if type(replica) not in (Replica, Rank, Lane, Pipeline, PipelineRank):
        return "steps that can be stopped"
    waits = draft.swapper is not None or (draft.keeper is not None and draft.keeper.by_layer)
    if waits and isinstance(replica, PipelineRank):
        return "KV that pipeline stages of attention ranks wait for"
    if draft.claims is not None:
        return "promises of KV"
    if draft.together is not None:
        return "results that leave together"
    if draft.retainer is not None:
        return "pinned KV"
    return ""
