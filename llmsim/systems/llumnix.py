"""Llumnix (OSDI 2024): dispatch by freeness, and live migration of running requests.

Freeness is ``(M - V) / B``: KV capacity less virtual usage, over the batch. A running request's
virtual usage is what it holds, a waiting one's is what it asks for, so freeness may be negative.

References
----------
Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving", OSDI 2024, section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from llmsim.policies.control import CONTROL, Action, Migrate
from llmsim.policies.reports import FleetReport, ReplicaReport, RunningReport


def freeness(report: ReplicaReport) -> float:
    """Return a replica's freeness [blocks per running request].

    All that wait count with their demand: with the first one alone a replica with a long line
    looks as free as one with a short line.
    """
    left = report.kv_blocks - report.kv_used - report.waiting_blocks
    return left / max(1, report.running)


@CONTROL.register("llumnix")
@dataclass
class LlumnixRebalance:
    """Pair the least free replica with the freest, and move requests from the one to the other."""

    migrates: ClassVar[bool] = True

    period_s: Annotated[float, Gt(0)] = 0.05
    """[s] Time between two calls; the default of the published code (polling_interval)."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of the reports."""
    source_below: float = 3.0
    """[blocks/request] A replica less free than this gives requests away; the published code's
    migrate_out_threshold."""
    target_above: float = 3.0
    """[blocks/request] A replica freer than this takes them."""

    def start(self, rng: np.random.Generator) -> None:
        """Need no random numbers."""

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Pair lowest with highest; one request for each pair."""
        ranked = sorted(
            ((freeness(r), r.replica, r) for r in fleet.replicas if r.state == "up"),
            key=lambda entry: entry[:2],
        )
        low = [r for free, _, r in ranked if free < self.source_below]
        high = [r for free, _, r in reversed(ranked) if free > self.target_above]
        moves = []
        for source, target in zip(low, high, strict=False):
            victim = self._victim(fleet.decoding(source.replica), target.kv_free)
            if victim is not None:
                moves.append(Migrate(victim.request.index, source.replica, target.replica))
        return moves

    @staticmethod
    def _victim(running: Sequence[RunningReport], room: int) -> RunningReport | None:
        """Choose the least urgent, and of these the shortest, that fits the target."""
        fits = [one for one in running if one.kv_blocks <= room]
        return min(
            fits,
            key=lambda one: (-one.request.priority, one.tokens, one.request.index),
            default=None,
        )
