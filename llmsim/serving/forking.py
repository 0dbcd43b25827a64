"""Which kind of fork stands for whom, and who has none."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.policies.ordering import ChoosesVictims, GuardsAdmission, HearsOfEnds, OrdersWaiting
from llmsim.serving.fork import Fork, ReplicaFork
from llmsim.serving.fork_ranks import RankFork
from llmsim.serving.ranks import Rank
from llmsim.serving.replica import Replica


def behind(door: Replica) -> list[Replica]:
    """Return who is called behind a door of the fleet: a replica, or all of its ranks."""
    if door.ranks is not None:
        return list(door.ranks.members)
    return [door]


def fork_of(there: Sequence[Replica], beyond_tokens: int) -> Fork:
    """Return a fork of those who are behind a door.

    Parameters
    ----------
    there : sequence of Replica
        As `behind` returns them.
    beyond_tokens : int [tokens]
        See `Fork`.
    """
    ranks = there[0].ranks
    if ranks is not None:
        return RankFork(ranks, beyond_tokens)
    return ReplicaFork(there[0], beyond_tokens)


def unforkable(replica: Replica) -> str:
    """Return what of a replica cannot be copied; empty if everything can."""
    draft = replica.draft
    if isinstance(draft.policy, OrdersWaiting | ChoosesVictims | GuardsAdmission | HearsOfEnds):
        return "batching policies that keep more than the next step"
    if type(replica) not in (Replica, Rank):
        return "lanes, pipeline stages and steps that can be stopped"
    if draft.claims is not None:
        return "promises of KV"
    if draft.together is not None:
        return "results that leave together"
    if draft.keeper is not None or draft.swapper is not None:
        return "KV below the GPU"
    if draft.retainer is not None:
        return "pinned KV"
    return ""
