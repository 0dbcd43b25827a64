"""Stages that take longer while transfers read or write their memory, too."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.core.integers import rounded
from llmsim.costmodel.contract import Chunk, PriceLine, StagedCost


class SlowedStages:
    """Stages that each take longer, while transfers use their memory too; a `StagedCost`.

    Parameters
    ----------
    cost : StagedCost
        Of the stages by themselves.
    drag_frac : float
        By how much each of them is slowed down; hosts and links are not.
    """

    def __init__(self, cost: StagedCost, drag_frac: float) -> None:
        self.stages: int = cost.stages
        self.names: tuple[str, ...] = cost.names
        self.context_tile: int = cost.context_tile
        self.window_tokens: int = cost.window_tokens
        self._cost = cost
        self._drag = drag_frac
        self._slowed = [name.startswith("stage") for name in cost.names]

    def station_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> list[int]:
        """Price a micro-batch at each station; see `StagedCost`."""
        times = self._cost.station_ns(chunks, decode, padded_tokens, windowed_tokens, logits)
        return slowed_ns(times, self._slowed, self._drag)

    def station_lines(self, batch: int, padded_tokens: int) -> list[PriceLine]:
        """Price decodes alone at each station; see `StagedCost`."""
        lines = self._cost.station_lines(batch, padded_tokens)
        return [
            line.slower(self._drag) if slowed else line
            for line, slowed in zip(lines, self._slowed, strict=True)
        ]

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price a micro-batch alone; see `StepCost`."""
        return sum(self.station_ns(chunks, decode, padded_tokens, windowed_tokens, logits))

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Price decodes alone; see `StepCost`."""
        return self._cost.decode_line(batch, padded_tokens).slower(self._drag)


def slowed_ns(times: list[int], slowed: list[bool], drag_frac: float) -> list[int]:
    """Return what stations take of which some are slowed down [ns]."""
    return [
        rounded(time * (1 + drag_frac)) if slow else time
        for time, slow in zip(times, slowed, strict=True)
    ]
