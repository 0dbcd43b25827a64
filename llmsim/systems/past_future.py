"""Past-Future (ASPLOS 2025): who is admitted must fit at the fullest moment that is to be expected.

How long an answer will be is drawn from the answers that have ended lately, of those longer than
what the request has written already, anew whenever somebody asks to be admitted. `memory` also has
the rules that it is compared with, on the same engine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from annotated_types import Ge, Gt, Le

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.estimation import LatestValues
from llmsim.policies.lines import ArrivalLine
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.prompts import PromptsFirst
from llmsim.policies.room import PeakOfAll, Watermark
from llmsim.policies.views import RequestView

_MASK: Final = 2**64 - 1


class RecentLengths(LatestValues):
    """The latest output lengths [tokens], from which one can be drawn."""

    def draw(self, beyond: int, chance: float) -> int:
        """Return one that is longer than `beyond` [tokens]; 0 if none is.

        Parameters
        ----------
        beyond : int [tokens]
        chance : float
            From 0 up to, not including, 1: which of them, by length.
        """
        first = bisect_right(self.sorted, beyond)
        longer = len(self.sorted) - first
        return int(self.sorted[first + int(chance * longer)]) if longer else 0


def chance_of(request: int, step: int) -> float:
    """Return a number in [0, 1) that depends on a request and a step and looks random.

    Stateless, so that nobody's draw depends on how often others have drawn.

    References
    ----------
    Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014: the finaliser
    of SplitMix64.
    """
    mixed = (request * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 1) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53


class _PatientLine(ArrivalLine):
    """By arrival; who has lost its KV comes back to the front, and who is refused asks again."""

    def __init__(self, retry_steps: int) -> None:
        super().__init__()
        self._retry = retry_steps

    def add(self, request: RequestView, returned: bool) -> None:
        """Take a request in at the end, or at the front if it has lost its KV."""
        if returned:
            self._line.insert(self._gone, request)
        else:
            self._line.append(request)

    def steady_steps(self) -> int:
        """Return after how many steps expectations have changed [steps]."""
        return self._retry


@BATCHING.register("past-future")
@dataclass
class PastFuture(PromptsFirst):
    """First come, first served, by the peak of memory to be expected; decodes first, chunks after.

    References
    ----------
    Gong et al., Past-Future Scheduler for LLM Serving under SLA Guarantees, ASPLOS 2025, doi
    10.1145/3676641.3716011. LightLLM's public scheduler has no history; this follows the paper.
    """

    memory: Literal["history", "believed", "longest", "watermark"] = "history"
    """What must fit: `history`, the peak if answers are as long as recent ones; `believed`, as long
    as `estimators.output_length` says; `longest`, as long as can be asked for (conservative);
    `watermark`, no more than what is there now (aggressive)."""
    window: Annotated[int, Ge(1)] = 1000
    """[answers] Latest ones that count. The published scheduler's size of history."""
    reserve_frac: Annotated[float, Ge(0), Le(0.5)] = 0.05
    """[fraction] Memory that admission never counts on: of `history`, `believed`, `watermark`."""
    retry_steps: Annotated[int, Gt(0)] = 8
    """[steps] Who was refused is looked at again after so many steps with decodes, besides whenever
    somebody comes or ends. Assumed; published: every step."""

    @property
    def asks_lengths(self) -> bool:
        """Whether it goes by the scenario's estimator."""
        return self.memory == "believed"

    _recent: RecentLengths = field(init=False, repr=False)
    _step: int = field(init=False, repr=False, default=0)

    def waiting_order(self, engine: EngineView) -> PromptsFirst:
        """Keep the line of one replica."""
        self._engine = engine
        self._mixed, self._late = True, False
        self._recent = RecentLengths(self.window)
        self._line = _PatientLine(self.retry_steps)
        kept = 1.0 if self.memory == "longest" else 1.0 - self.reserve_frac
        most = int(engine.kv_tokens * kept)
        if self.memory == "watermark":
            self._room = Watermark(engine.kv_tokens - most)
        else:
            self._room = PeakOfAll(self.left, most)
        return self

    def left(self, request: RequestView, generated: int) -> int:
        """Return how many output tokens a request is expected to get still."""
        most = super().left(request, generated)
        if self.memory == "history":
            drawn = self._recent.draw(generated, chance_of(request.index, self._step))
        elif self.memory == "believed":
            drawn = request.believed_tokens
        else:
            return most
        # nobody has written as much lately, or as was believed: as much as can be asked for
        return most if drawn <= generated else min(most, drawn - generated)

    def victim(self, running: Sequence[Running]) -> int:
        """Choose who was admitted last."""
        return len(running) - 1

    def ended(self, request: RequestView, generated: int) -> None:
        """Remember how long an answer was."""
        self._recent.add(generated)

    def plan(self, step: StepDraft) -> None:
        """Decode, then admit who fits."""
        self._step = step.decode_steps
        super().plan(step)
