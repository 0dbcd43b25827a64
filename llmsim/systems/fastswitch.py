"""FastSwitch (2024): priorities change while requests run, and the engine switches between them.

The paper drives vLLM's preemption by a trace of priorities that is redrawn every so many steps,
at random or so that who was important mostly stays so. This is that trace, made of hashes, and the
scheduler that follows it; what the paper adds (groups of blocks, copies beside steps, copies that
are kept) is said in ``kv.swap``: ``run_blocks``, ``overlaps``, ``keeps_copies``.

References
----------
Shen et al., FastSwitch: Optimizing Context Switching Efficiency in Fairness-aware Large Language
Model Serving, arXiv 2411.18424.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.views import RequestView


@BATCHING.register("fastswitch")
@dataclass
class FastSwitch:
    """Requests run by priorities that are drawn anew now and then."""

    update_steps: Annotated[int, Ge(1)] = 50
    """[steps] Steps with decodes between two changes of priorities: 50 is a frequency of 0.02."""
    pattern: Literal["random", "markov"] = "random"
    """Each change draws all priorities, or most requests keep theirs."""
    levels: Annotated[int, Ge(1)] = 8
    """How many priorities there are; 1: first come, first served."""
    keep_percent: Annotated[int, Ge(0), Le(100)] = 80
    """[percent] How many keep their priority at a change, with the pattern `markov`."""

    every_step: ClassVar[bool] = False

    _epoch: int = field(init=False, repr=False, default=-1)
    _waiting: dict[int, RequestView] = field(init=False, repr=False, default_factory=dict)

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Not asked: the line is kept here."""
        return None

    def waiting_order(self, engine: EngineView) -> FastSwitch:
        """Keep the line of one replica."""
        return self

    def add(self, request: RequestView, returned: bool) -> None:
        """Take in an arrival, or a request that has lost its KV."""
        self._waiting[request.index] = request

    def head(self) -> RequestView | None:
        """Return who ranks first."""
        return min(self._waiting.values(), key=self._place, default=None)

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go."""
        del self._waiting[request.index]

    def victim(self, running: Sequence[Running]) -> int:
        """Return who ranks last."""
        return max(range(len(running)), key=lambda place: self._place(running[place].view))

    def plan(self, step: StepDraft) -> None:
        """Change priorities when it is time, then advance who runs, then let others in."""
        epoch, past = divmod(step.decode_steps, self.update_steps)
        if epoch != self._epoch:
            self._epoch = epoch
            step.switch(self._rank)
        step.come_back()
        step.ask_again(self.update_steps - past)
        if step.advance_running():
            step.admit_waiting()

    def _place(self, request: RequestView) -> tuple[int, int]:
        return self._rank(request), request.index

    def _rank(self, request: RequestView) -> int:
        """Return a request's priority now; the least is the most important."""
        epoch = max(self._epoch, 0)
        if self.pattern == "markov":
            while epoch and _mixed(request.index, epoch, 1) % 100 < self.keep_percent:
                epoch -= 1
        return _mixed(request.index, epoch, 0) % self.levels


def _mixed(index: int, epoch: int, salt: int) -> int:
    """Return an integer that looks drawn; the finaliser of SplitMix64 (Steele et al. 2014)."""
    mask = (1 << 64) - 1
    value = (index * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + salt + 1) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
