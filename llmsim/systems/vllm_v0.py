"""vLLM before its V1 engine: prompts first, recompute of who came last (vLLM 0.1 to 0.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.views import RequestView


@BATCHING.register("vllm-v0")
@dataclass
class VllmV0:
    """A step computes whole prompts alone while some can be admitted, else everybody's next token.

    Where KV runs out, the request admitted last loses it and returns to the front of the queue.
    Without a watermark every end of a request lets somebody in whose blocks the others need a few
    steps later, and the same prompts are computed again and again; with one, four times more
    rarely (``scenarios/gallery/vllm-v0``). Give it ``engine.watermark_frac: 0.01`` and
    ``engine.lookahead: 0``, its defaults.
    A prompt longer than the budget of a step waits until nobody runs and is then cut into chunks.

    References
    ----------
    vLLM 0.6.3, ``vllm/core/scheduler.py``: ``_schedule_default`` and ``_schedule_prefills``;
    ``vllm/core/block_manager_v1.py``: a watermark of 1% of the blocks.
    """

    admit_when_short: bool = True
    """Admit although those who decode lack blocks for their next token, so that somebody loses its
    KV next; false: nobody is admitted before such a step. No decision differs while the watermark
    is larger than what everybody takes in a step, as it mostly is."""

    every_step: ClassVar[bool] = False

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """First come, first served; the victim is who was admitted last."""
        return None

    def plan(self, step: StepDraft) -> None:
        """Admit who fits; decode only when nobody could be admitted."""
        if step.waiting and (self.admit_when_short or not step.short_of_blocks):
            step.admit_waiting(whole_prompts=True)
        if not step.admitted:
            step.advance_running()
            if not step.running:
                step.admit_waiting()
