"""Prompts before decodes, with a line, a memory rule and a choice of victims of one's own.

The common part of engines that compute prompts in steps of their own: what differs is who is next
(`lines`) and how much memory is kept for outputs still to come (`room`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge

from llmsim.policies.batching import StepDraft
from llmsim.policies.lines import ALWAYS, Line
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.room import Room
from llmsim.policies.views import RequestView


@dataclass
class PromptsFirst:
    """A step computes prompts while somebody can be admitted, else everybody's next token.

    The last prompt of a step is cut where the step is full, and goes on alone in the next one.
    """

    max_new_tokens: Annotated[int, Ge(0)] = 0
    """[tokens] Longest output that clients ask for; 0 for as long as the engine takes. Memory is
    kept for it; how long an output will be, nobody knows."""

    every_step: ClassVar[bool] = False
    publishes_results: ClassVar[bool] = True
    clip_tokens: ClassVar[int] = ALWAYS
    """Output for which memory is kept at most [tokens]."""

    _engine: EngineView = field(init=False, repr=False)
    _line: Line = field(init=False, repr=False)
    _room: Room = field(init=False, repr=False)
    _whole: bool = field(init=False, repr=False, default=False)
    _mixed: bool = field(init=False, repr=False, default=False)
    # who was refused is looked at again in the step after one in which somebody has ended;
    # else whenever anything may have changed
    _late: bool = field(init=False, repr=False, default=True)
    _wait_steps: int = field(init=False, repr=False, default=0)
    _look_steps: int = field(init=False, repr=False, default=1)
    _most_tokens: int = field(init=False, repr=False, default=0)
    _unseen: list[RequestView] = field(init=False, repr=False, default_factory=list)
    _spent: int = field(init=False, repr=False, default=0)
    _full: bool = field(init=False, repr=False, default=False)
    _left: bool = field(init=False, repr=False, default=False)
    _changed: bool = field(init=False, repr=False, default=True)
    _alone: bool = field(init=False, repr=False, default=False)
    _refused: bool = field(init=False, repr=False, default=False)
    _ran: int = field(init=False, repr=False, default=0)
    _try_at: int = field(init=False, repr=False, default=0)
    _prompt_at: int = field(init=False, repr=False, default=0)

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Keep no rank: the line has an order of its own."""
        return None

    def left(self, request: RequestView, generated: int) -> int:
        """Return how many output tokens a request may still get, as far as anybody knows."""
        engine = self._engine
        most = min(engine.longest_tokens, engine.kv_tokens - engine.block_tokens)
        asked = self.max_new_tokens or most
        asked = min(asked, most - request.prompt_tokens)
        return max(0, min(asked - generated, self.clip_tokens))

    # --- the line ---------------------------------------------------------------------------

    def add(self, request: RequestView, returned: bool) -> None:
        """Take in an arrival, or who has lost its KV."""
        if self._engine.idle:
            self._room.idle()
            self._full = False
        if self._look_steps > 1 and not returned:
            self._unseen.append(request)
            return
        self._changed = True
        self._line.add(request, returned)

    def head(self) -> RequestView | None:
        """Return who is next."""
        return self._line.head()

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go."""
        if request in self._unseen:
            self._unseen.remove(request)
            return
        if not admitted and self._line.head() is request:
            self._changed = True
        self._line.remove(request, admitted)

    def admits(
        self, request: RequestView, new_tokens: int, now_tokens: int, free_tokens: int
    ) -> bool:
        """Ask the memory rule; who is alone is admitted whatever it says."""
        if self._spent and self._most_tokens and new_tokens >= self._most_tokens - self._spent:
            return False
        generated = self._engine.generated(request)
        whole = now_tokens >= new_tokens
        fits = self._room.admits(request, generated, new_tokens, whole, free_tokens)
        if not fits and not self._alone:
            self._refused = True
            return False
        self._alone = False
        self._spent += now_tokens
        return True

    def victim(self, running: Sequence[Running]) -> int:
        """Choose who has written least; of equals the longest prompt, then who came last."""
        places = [at for at, one in enumerate(running) if not one.prefilling]
        if not places:
            return len(running) - 1
        return min(places, key=lambda at: _cheapest(running[at], at))

    # --- the step ---------------------------------------------------------------------------

    def plan(self, step: StepDraft) -> None:
        """Go on with a prompt that was cut, admit who fits, else decode."""
        if step.running < self._ran:
            self._left = True
            self._changed = self._changed or not self._late
        if not step.running:
            self._full = False
        if self._unseen:
            self._look(step)
        if self._mixed:
            if self._decode(step) and step.waiting and self._may_try(step):
                self._admit(step)
            if step.prefilling:
                self._prompt_at = step.decode_steps
        elif step.prefilling and not step.advance_prefills():
            self._decode(step)
        else:
            if step.waiting and self._may_try(step):
                self._admit(step)
            if step.prefilling:
                self._prompt_at = step.decode_steps
            else:
                self._decode(step)
        self._full = self._full or (self._late and not step.free_seats)
        self._ran = step.running

    def _look(self, step: StepDraft) -> None:
        """Look for arrivals: when nobody runs, and every so many steps since the last prompt."""
        since = (step.decode_steps - self._prompt_at) % self._look_steps
        if step.running and since:
            step.ask_again(self._look_steps - since)
            return
        for request in self._unseen:
            self._line.add(request, False)
        self._unseen.clear()
        self._changed = True

    def _may_try(self, step: StepDraft) -> bool:
        """Whether anybody could be admitted now."""
        if self._full or not step.free_seats:
            return False
        waited = step.decode_steps - self._prompt_at
        if step.running and waited < self._wait_steps:
            step.ask_again(self._wait_steps - waited)
            return False
        if self._changed or step.decode_steps >= self._try_at:
            return True
        step.ask_again(self._try_at - step.decode_steps)
        return False

    def _admit(self, step: StepDraft) -> None:
        running = self._engine.running()
        self._line.arrange(running)
        self._room.open(running, step.decode_steps, step.budget_tokens > 0)
        self._alone, self._refused, self._changed, self._spent = not running, False, False, 0
        step.admit_waiting(whole_prompts=self._whole)
        if self._whole and not step.running:
            step.admit_waiting()
        if not step.waiting:
            return
        if not self._refused:
            # budget, seats or blocks: looked at again at the next call, which comes when there are
            # any, or when the line may have changed by itself
            self._changed = True
            step.ask_again(self._line.steady_steps())
        elif self._late:
            self._full = True
        else:
            steady = self._line.steady_steps()
            self._try_at = step.decode_steps + steady
            self._changed = step.admitted > 0
            step.ask_again(steady)

    def _decode(self, step: StepDraft) -> bool:
        """Give everybody a token; notice who has ended since. Return whether all kept their KV."""
        if self._left:
            self._left = False
            if self._full:
                self._full, self._changed = False, True
                if step.waiting:
                    step.ask_again(1)
        kept = step.advance_running()
        if not kept:
            self._room.retracted(self._engine.running(), step.decode_steps)
            self._full, self._changed = False, True
            step.ask_again(1)
        return kept


def _cheapest(one: Running, at: int) -> tuple[int, int, int]:
    return one.generated, -one.view.prompt_tokens, -at
