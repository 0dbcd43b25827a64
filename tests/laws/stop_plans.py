"""How steps of a world are stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmsim.costmodel.contract import Chunk
from llmsim.policies import PRECEDENCE
from llmsim.serving.stops import StopPlan


@dataclass(frozen=True)
class EvenPoints:
    """Steps can be stopped at so many instants, evenly spread; the last is their end."""

    count: int
    check_ns: int = 0

    @property
    def checks_ns(self) -> int:
        return self.count * self.check_ns

    def next_ns(
        self, chunks: Sequence[Chunk], logits: int, duration_ns: int, after_ns: int
    ) -> int:  # fmt: skip
        return min(-(-k * duration_ns // self.count) for k in range(1, self.count + 1)
                   if -(-k * duration_ns // self.count) >= after_ns)  # fmt: skip


def stop_plan(count: int, check_ns: int, agree_ns: int, precedence: str) -> StopPlan:
    """Steps can be stopped at `count` instants inside; 5 ms and 20 us a token are promised."""
    kind: Any = PRECEDENCE.get(precedence)
    given = {"ttft_s": 0.005, "ttft_per_prompt_token_s": 2e-5}
    given = given if hasattr(kind, "deadline_ns") else {}
    points = EvenPoints(count, check_ns) if count else None
    return StopPlan(lambda: kind(**given), points, agree_ns)
