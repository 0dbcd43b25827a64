"""`RankedPipelineCost`: micro-batches of several attention ranks at each stage of a pipeline.

A stage has `tp dp` GPUs and is priced like a replica with some of the layers (`RankedCost`): its
ranks wait for one another, because its experts do. Every rank sends to its counterpart of the next
stage at once, so that the hand-over is as long as that of the largest share, and so is the work
of the schedulers' hosts, of which each rank has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmsim.costmodel.contract import FOREVER, Chunk, PriceLine, RankLoad
from llmsim.costmodel.explain import OperatorRow, StepBreakdown, explain_rows, table_row
from llmsim.costmodel.pipeline import PipelineCost
from llmsim.costmodel.ranks import RankedCost


class RankedPipelineCost:
    """Prices micro-batches of a pipeline of attention ranks; implements `StagedJointCost`.

    Parameters
    ----------
    pipeline : PipelineCost
        Of one rank; its parts are bound to a plan with all ranks.

    Attributes
    ----------
    stages : int
    names : tuple of str (stations,)
    context_tile, window_tokens : int [tokens]
        As in `StepCost`.
    """

    context_tile: int
    window_tokens: int
    stages: int
    names: tuple[str, ...]

    def __init__(self, pipeline: PipelineCost) -> None:
        self.pipeline = pipeline
        self.parts = tuple(RankedCost(part) for part in pipeline.parts)
        self.ranks = self.parts[0].ranks
        self.stages = pipeline.stages
        self.names = pipeline.names
        self.context_tile = pipeline.context_tile
        self.window_tokens = pipeline.window_tokens

    def station_ns(self, loads: Sequence[RankLoad]) -> list[int]:
        """Price a micro-batch at each station; see `StagedJointCost.station_ns`."""
        most = requests = 0
        for load in loads:
            most = max(most, load.new + load.decode)
            requests = max(requests, load.decode + len(load.chunks))
        times = [self.pipeline.host_ns(requests)]
        for number, part in enumerate(self.parts):
            if number:
                times.append(self.pipeline.hop_ns(number - 1, most))
            times.append(part.step_ns(loads))
        return times

    def step_ns(self, loads: Sequence[RankLoad]) -> int:
        """Return how long a micro-batch takes that is alone in the pipeline [ns]."""
        return sum(self.station_ns(loads))

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return decode attention of one rank, all stages; see `JointCost.attention_line`."""
        return _sum([part.attention_line(batch, padded_tokens) for part in self.parts], 0.0)

    def decode_line(self, batches: Sequence[int], lead: int, padded_tokens: int) -> PriceLine:
        """Price decodes that are alone in the pipeline; see `JointCost.decode_line`."""
        most = max(batches)
        beside = self.pipeline.host_ns(most)
        for number in range(self.stages - 1):
            beside += self.pipeline.hop_ns(number, most)
        lines = [part.decode_line(batches, lead, padded_tokens) for part in self.parts]
        return _sum(lines, float(beside))

    def explain(self, ranks: Sequence[tuple[Sequence[Chunk], Sequence[int]]]) -> StepBreakdown:
        """Split the price of a micro-batch that is alone in the pipeline by operator.

        Parameters
        ----------
        ranks
            As for `RankedCost.explain`.
        """
        rows: list[OperatorRow] = []
        tokens = 0
        for part in self.parts:
            own = part.explain(ranks)
            tokens = own.tokens
            rows += own.rows
        most = max(sum(new for new, _ in chunks) + len(contexts) for chunks, contexts in ranks)
        requests = max(len(chunks) + len(contexts) for chunks, contexts in ranks)
        sent = np.array([float(most)])
        for link in self.pipeline.links:
            rows += [table_row(table) for table in self.pipeline.hop_tables(link, sent)]
        return explain_rows(rows, (float(self.pipeline.host_ns(requests)), 0.0), tokens)

    def warnings(self) -> tuple[str, ...]:
        """Return what was taken for granted, each once."""
        return self.pipeline.warnings()


def _sum(lines: Sequence[PriceLine], more_ns: float) -> PriceLine:
    """Return the sum of lines and of what does not depend on context."""
    return PriceLine(
        more_ns + math.fsum([line.base_ns for line in lines]),
        math.fsum([line.per_token_ns for line in lines]),
        math.fsum([line.per_windowed_ns for line in lines]),
        min([FOREVER, *(line.until_tokens for line in lines)]),
    )
