"""A copy of a pipeline with attention ranks: their shares in flight are in flight there, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmsim.core.errors import InvariantError
from llmsim.serving.clock import Clock
from llmsim.serving.fork_pipeline import StagedFork
from llmsim.serving.likeness import nobody_hears
from llmsim.serving.meter import NEVER
from llmsim.serving.ranked_pipeline import PipelineGroup, PipelineRank
from llmsim.serving.replica import Replica
from llmsim.serving.wake import Wake


class ShadowPipelineGroup(PipelineGroup):
    """Ranks of a pipeline that can be loaded, again and again, with the state of others.

    Parameters
    ----------
    clock : Clock
        Of their own world.
    like : PipelineGroup
        Whose engine, price and policies they have.
    """

    def __init__(self, clock: Clock, like: PipelineGroup) -> None:
        super().__init__(clock, like.index, like._cost, like._round_robin)
        for rank in like.ranks:
            # a prompt counts whole in a fork
            config = replace(rank.config, prefix_caching=False)
            given = rank.index, rank.pool, config, rank.draft.policy
            self.add(PipelineRank(self, *given, NEVER, nobody_hears))

    def mirror(self, other: PipelineGroup) -> None:
        """Be where another group is, whose ranks have been mirrored."""
        self._asleep = other._asleep
        self._call_ns = other._call_ns
        self._end_ns = other._end_ns.copy()
        self._flying = other._flying.copy()
        self._turn = other._turn
        self._counts = list(other._counts)
        self._counted = other._counted
        if not self._asleep:
            self._set_alarm(self._call_ns)

    def wake(self, alarm: Wake) -> None:
        """Call all schedulers once: who asks may know enough then."""
        if self.clock.now == self._call_ns and not self._asleep:
            self._call(self._call_ns)
            if not self._asleep:
                self._set_alarm(self._call_ns)


class PipelineRankFork(StagedFork):
    """A copy of a pipeline with attention ranks.

    Parameters
    ----------
    like : PipelineGroup
    beyond_tokens, keeps
        See `Fork`.
    """

    def __init__(self, like: PipelineGroup, beyond_tokens: int, keeps: bool) -> None:
        clock = Clock()
        self._group = ShadowPipelineGroup(clock, like)
        super().__init__(clock, self._group.ranks, like.ranks, beyond_tokens, keeps)

    def _mirror(self, others: Sequence[Replica], called_now: Sequence[bool]) -> None:
        group = others[0].ranks
        if not isinstance(group, PipelineGroup):
            raise InvariantError(f"replica {others[0].index} has no ranks with stages")
        self._group.mirror(group)

    def _set_alarms(self) -> None:
        """Leave it to the group, which has one alarm."""

    def _taker(self) -> Replica:
        """Return the rank that the front door chooses by what it knows."""
        return self._group.choose()
