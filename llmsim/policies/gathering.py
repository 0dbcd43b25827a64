"""Prompts that wait for one another, and so need fewer steps: TensorRT-LLM's batch waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.views import RequestView


@BATCHING.register("gathering")
@dataclass
class Gathering:
    """vLLM's steps, but nobody is admitted beside decodes before enough prompts have gathered.

    Fewer steps then hold a prompt, and every one of those that wait pays for it. Without decodes
    under way nobody waits.

    References
    ----------
    TensorRT-LLM, ``PyExecutor._waiting_requests``; its LlmArgs ``batch_wait_timeout_iters`` and
    ``batch_wait_max_tokens_ratio``. There the line is counted as far as it fits the KV memory, here
    as it is.
    """

    wait_steps: Annotated[int, Ge(0)] = 0
    """[steps] Longest wait, of the first in line; 0: nobody waits."""
    fill_frac: Annotated[float, Ge(0), Le(1)] = 1.0
    """[fraction] Of a step's budget of tokens: with so many, decodes included, nobody waits."""

    every_step: ClassVar[bool] = False

    _line: deque[RequestView] = field(init=False, repr=False, default_factory=deque)
    _tokens: int = field(init=False, repr=False, default=0)
    _since: int = field(init=False, repr=False, default=-1)
    """Steps with decodes at which somebody was first seen to wait; -1 for nobody."""

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """First come, first served."""
        return None

    def waiting_order(self, engine: EngineView) -> Gathering:
        """Keep the line of one replica."""
        return self

    def add(self, request: RequestView, returned: bool) -> None:
        """Take a request in at the end, or at the front if it has lost its KV."""
        self._tokens += request.prompt_tokens
        if returned:
            self._line.appendleft(request)
        else:
            self._line.append(request)

    def head(self) -> RequestView | None:
        """Return who is next."""
        return self._line[0] if self._line else None

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go."""
        self._tokens -= request.prompt_tokens
        if self._line[0] is request:
            self._line.popleft()
        else:
            self._line.remove(request)
        if admitted or not self._line:
            self._since = -1

    def victim(self, running: Sequence[Running]) -> int:
        """Choose who was admitted last."""
        return len(running) - 1

    def plan(self, step: StepDraft) -> None:
        """Advance who is running; admit once enough have gathered, or have waited long enough."""
        budget, now = step.budget_tokens, step.decode_steps
        decodes = step.running - step.prefilling
        if not step.advance_running() or not step.waiting or not step.free_seats:
            return  # the wait begins with a free seat, so that it ends when it does, asked or not
        if decodes and self._tokens + decodes < self.fill_frac * budget:
            if self._since < 0:
                self._since = now
            left = self.wait_steps - (now - self._since)
            if left > 0:
                step.ask_again(left)
                return
        waiting = step.waiting
        step.admit_waiting()  # who does not fit has waited all the same, and comes in once it does
        # whoever left the line, to a step or for its KV to come here, the next one's wait begins
        left_line = step.waiting < waiting
        if left_line and step.waiting and step.free_seats and self.wait_steps:
            self._since = now
            step.ask_again(self.wait_steps)
