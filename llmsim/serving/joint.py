"""What ranks that step together share: a price, the clock of a stretch, and who leads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmsim.core.errors import InvariantError
from llmsim.costmodel.contract import Chunk, JointCost, PriceLine, StagedJointCost
from llmsim.serving.cohort import Cohort
from llmsim.serving.stretch import Stretch

_FAR: Final = 2**40
"""More tiles than any context has."""


class JointPrice:
    """What a joint step costs, as each rank's own scheduler is told; implements `StepCost`.

    Attributes
    ----------
    duration_ns : int [ns]
        Of the step that is being launched.
    """

    def __init__(self, cost: JointCost) -> None:
        self.context_tile: int = cost.context_tile
        self.window_tokens: int = cost.window_tokens
        self.duration_ns = 1

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return nothing of use: the group prices stretches."""
        del batch, padded_tokens
        return PriceLine(float(self.duration_ns), 0.0)

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Return what the step costs that all ranks take together [ns]."""
        del chunks, decode, padded_tokens, windowed_tokens, logits
        return self.duration_ns


class StagedJointPrice(JointPrice):
    """What a pipeline's rank is told of prices; implements `StagedCost`.

    Attributes
    ----------
    stages : int
    names : tuple of str (stations,)
    """

    def __init__(self, cost: StagedJointCost) -> None:
        super().__init__(cost)
        self.stages: int = cost.stages
        self.names: tuple[str, ...] = cost.names

    def station_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> list[int]:
        """Say that no rank has a price of its own."""
        raise InvariantError("the share of one rank has no price")

    def station_lines(self, batch: int, padded_tokens: int) -> list[PriceLine]:
        """Say that no rank has a price of its own."""
        raise InvariantError("the share of one rank has no price")


class RankStretch(Stretch):
    """A rank's view of the stretch that all ranks run: the clock is theirs, the sums its own.

    Parameters
    ----------
    joint : Stretch
    cohort : Cohort
        Any; `follow` gives it the rank's own.
    windowed : bool
    """

    def __init__(self, joint: Stretch, cohort: Cohort, windowed: bool) -> None:
        super().__init__(cohort, windowed)
        self._joint = joint
        self.last_gap_ns = 0

    def gap_at(self, step: int) -> int:
        """Return the duration of the `step`-th tick from here, counted from 0 [ns]."""
        return self._joint.gap_at(step)

    def ticks_before(self, time_ns: int, most: int, lookahead: int) -> int:
        """Return how many ticks a call at or after `time_ns` has behind it, from 1 to `most`."""
        return self._joint.ticks_before(time_ns, most, lookahead)

    def run(self, ticks: int) -> int:
        """Add up the rank's own sums; return the duration of the last joint tick [ns]."""
        self.ran_padded = self._cohort.padded_sum(ticks)
        if self._windowed:
            self.ran_windowed = self._cohort.windowed_sum(ticks)
        return self.last_gap_ns


def ticks_ahead(own: PriceLine, lead: Cohort, line: PriceLine, other: Cohort) -> int:
    """Return for how many ticks bounds alone say that `other` stays the faster.

    Over n ticks of a tile of t the padded sum of B contexts grows by at least ``t B floor(n / t)``
    and at most ``t B ceil(n / t)``; the clipped sum by none to as much. The gap between two
    lines at these bounds is least at the first tile or at the last.
    """
    tile = max(1, lead.tile)
    ahead = own.at_ns(lead.padded, lead.windowed) - line.at_ns(other.padded, other.windowed)
    slack = 1e-6 * (1.0 + abs(own.base_ns) + own.per_token_ns * lead.padded)
    gain = own.per_token_ns * tile * lead.count
    loss = (line.per_token_ns + line.per_windowed_ns) * tile * other.count
    spare = ahead - loss - slack
    if spare <= 0:
        return 0
    if spare >= (loss - gain) * _FAR:
        return _FAR * tile
    return (int(spare / (loss - gain)) + 1) * tile
