"""A copy of a replica with several attention ranks: they step together there, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmsim.core.errors import InvariantError
from llmsim.serving.clock import Clock
from llmsim.serving.fork import Fork
from llmsim.serving.likeness import nobody_hears
from llmsim.serving.meter import NEVER
from llmsim.serving.ranks import Rank, RankGroup
from llmsim.serving.replica import Replica
from llmsim.serving.wake import Wake


class ShadowGroup(RankGroup):
    """Ranks that can be loaded, again and again, with the state of others.

    Parameters
    ----------
    clock : Clock
        Of their own world.
    like : RankGroup
        Whose engine, price and policies they have.
    """

    def __init__(self, clock: Clock, like: RankGroup) -> None:
        first = like.ranks[0]
        # a prompt counts whole in a fork
        config = replace(first.config, prefix_caching=False)
        super().__init__(clock, like.index, like._cost, config, like._round_robin)
        for rank in like.ranks:
            policy = rank.draft.policy
            self.add(Rank(self, rank.index, rank.pool, config, policy, NEVER, nobody_hears))

    def mirror(self, other: RankGroup, called_now: bool) -> None:
        """Be where another group is, whose ranks have been mirrored; commit to one step."""
        self._asleep = other._asleep
        self._merged = other._merged
        self._call_ns = other._call_ns
        self._exec_end_ns = other._exec_end_ns
        self._ticks = other._ticks
        self._gap = other._gap
        self._lead = other._lead
        self._attention = list(other._attention)
        self._turn = other._turn
        self._counts = list(other._counts)
        self._counted = other._counted
        self.price.duration_ns = other.price.duration_ns
        self.stretch.follow(self.ranks[self._lead].cohort)
        self.stretch.mirror(other.stretch)
        if not self._asleep:
            self._set_alarm(self._call_ns)
        self.cut(called_now)

    def _wake(self, alarm: Wake) -> None:
        """Call all schedulers once: who asks may know enough then."""
        if self.clock.now == self._call_ns and not self._asleep:
            self._call(self._call_ns)
            if not self._asleep:
                self._set_alarm(self._call_ns)


class RankFork(Fork):
    """A copy of a replica with attention ranks.

    Parameters
    ----------
    like : RankGroup
    beyond_tokens, keeps
        See `Fork`.
    """

    def __init__(self, like: RankGroup, beyond_tokens: int, keeps: bool) -> None:
        clock = Clock()
        self._group = ShadowGroup(clock, like)
        super().__init__(clock, self._group.members, like.members, beyond_tokens, keeps)

    def _mirror(self, others: Sequence[Replica], called_now: Sequence[bool]) -> None:
        group = others[0].ranks
        if not isinstance(group, RankGroup):
            raise InvariantError(f"replica {others[0].index} has no ranks that step together")
        self._group.mirror(group, called_now[0])

    def _set_alarms(self) -> None:
        """Leave it to the group, which has one alarm."""

    def _taker(self) -> Replica:
        """Return the rank that the front door chooses by what it knows."""
        return self._group.choose()
