"""Continuum (2025): KV stays on the GPU while a program's tool runs, for a time worth its price.

Keeping the KV of a call for a time t costs t of everybody's memory; it brings what the next call
would else wait for (its place in the line, and its KV computed anew), if the tool is done by then.
The time kept is the t that maximises ``P(tool <= t) (T eta + R) - t``: P from tool times seen
before, T the mean wait of a call, R the time to rebuild the KV, and eta how surely a program that
has had many calls has few left. Programs go by when they began, those whose KV is there first.

References
----------
Li et al., "Continuum: Efficient and Robust Multi-Turn LLM Agent Scheduling with KV Cache
Time-to-Live", arXiv 2511.02230, sections 4 and 5; github.com/Hanchenli/vllm-continuum, whose
preview pins for 2 s where a tool takes less than 2 s in the mean, and releases the pin that ends
last when nothing else can run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.estimation import ToolHistory
from llmsim.policies.retention import RETENTION, CallView, GivesWay, PinView
from llmsim.policies.views import RequestView


@BATCHING.register("continuum")
@dataclass
class ContinuumOrder:
    """vLLM v1's steps; first the calls whose KV is pinned, then by when their program began."""

    every_step: ClassVar[bool] = False

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Rank by (KV is not pinned, program's begin, arrival)."""
        program = request.program
        began_ns = request.arrival_ns if program is None else program.arrival_ns
        unkept = program is None or not program.kept
        return (int(unkept), began_ns, request.arrival_ns, request.index)

    def plan(self, step: StepDraft) -> None:
        """Advance who is running; admit only if nobody had to be preempted."""
        if step.advance_running() and step.waiting:
            step.admit_waiting()


def best_s(times_s: Sequence[float], worth_s: float) -> float:
    """Return the time to wait that gains most where the tool's end in time is worth so much.

    Parameters
    ----------
    times_s : sequence of float [s]
        That the tool may take, equally likely, in ascending order.
    worth_s : float [s]
    """
    count = len(times_s)
    best, gain = 0.0, 0.0
    for below, time_s in enumerate(times_s, 1):
        if time_s >= worth_s:
            break
        if below / count * worth_s - time_s > gain:
            best, gain = time_s, below / count * worth_s - time_s
    return best


class TurnsLeft:
    """How surely programs that have had many calls have few left: ``-corr(had, left)``."""

    def __init__(self) -> None:
        self._n = self._had = self._left = 0
        self._had2 = self._left2 = self._both = 0

    def add(self, turns: int) -> None:
        """Add a program of so many calls, one point after each of them."""
        ones, squares = turns * (turns + 1) // 2, turns * (turns + 1) * (2 * turns + 1) // 6
        self._n += turns
        self._had += ones
        self._had2 += squares
        self._left += ones - turns
        self._left2 += squares - 2 * ones + turns  # of 0 to turns - 1
        self._both += turns * ones - squares

    @property
    def eta(self) -> float:
        """1 where programs are equally long (or none is known), 0 where they are memoryless."""
        n = self._n
        had = n * self._had2 - self._had**2
        left = n * self._left2 - self._left**2
        if had <= 0 or left <= 0:
            return 1.0
        return float(-(n * self._both - self._had * self._left) / (had * left) ** 0.5)


@RETENTION.register("continuum")
@dataclass
class ContinuumRetention:
    """Pinned as long as the chance that the tool is done by then is worth the memory.

    Tool times are those that `estimators.tool_time` believes; without it, what has been seen here.
    """

    default_s: Annotated[float, Ge(0)] = 2.0
    """[s] While too few tool times are known; the preview's FIXED_THRESHOLD_CONTINUUM."""
    samples: Annotated[int, Ge(1)] = 100
    """More tool times than this must be known of a tool, else those of all tools together count."""
    remembered: Annotated[int, Ge(1)] = 1000
    """Latest times that are kept of each tool, and of all together. Assumed; published: all."""

    pins: ClassVar[bool] = True
    asks_pauses: ClassVar[bool] = True
    gives_way: ClassVar[GivesWay] = "deadlock"

    _history: ToolHistory = field(init=False, repr=False)
    _turns: TurnsLeft = field(init=False, repr=False, default_factory=TurnsLeft)
    _waits: int = field(init=False, repr=False, default=0)
    _waited_s: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        """Begin with nothing learned."""
        self._history = ToolHistory(self.samples, self.remembered)

    def hold_s(self, call: CallView) -> float:
        """Return the time that gains most [s]."""
        times_s = self._history.known(call.tool) if call.pauses_s is None else call.pauses_s
        if not times_s:
            return self.default_s
        mean_s = self._waited_s / self._waits if self._waits else 0.0
        return best_s(times_s, mean_s * self._turns.eta + call.rebuild_s)

    def rank(self, pin: PinView) -> int:
        """Release first what would end last."""
        return pin.ends_ns

    def returned(self, tool: str, pause_s: float) -> None:
        """Remember how long a tool took."""
        self._history.learn(tool, pause_s)

    def admitted(self, wait_s: float) -> None:
        """Remember how long a call has waited."""
        self._waits += 1
        self._waited_s += wait_s

    def ended(self, turns: int) -> None:
        """Remember how many calls a program had."""
        self._turns.add(turns)
