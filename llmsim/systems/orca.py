"""Orca (OSDI 2022), and the static batching that it replaced.

Both give a request memory for its longest possible answer when they admit it, so nobody is ever
preempted; set ``allocation: contiguous-max`` beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.views import RequestView


@BATCHING.register("orca")
@dataclass
class Orca:
    """Whole prompts in the same step in which others decode, first come, first served.

    A prompt longer than the budget of a step waits until nobody runs and is then cut into chunks.

    References
    ----------
    Yu et al., Orca: A Distributed Serving System for Transformer-Based Generative Models, OSDI
    2022, algorithm 1: requests join and leave between two steps, and are admitted with memory for
    their longest answer.
    """

    every_step: ClassVar[bool] = False

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """First come, first served."""
        return None

    def plan(self, step: StepDraft) -> None:
        """Advance who is running, then admit whole prompts into the same step."""
        kept = step.advance_running()
        if kept and step.waiting:
            step.admit_waiting(whole_prompts=True)
            if not step.running:
                step.admit_waiting()


@BATCHING.register("static-batching")
@dataclass
class StaticBatching:
    """A batch runs to its end before the next begins, and all its results leave together.

    References
    ----------
    As Yu et al., OSDI 2022, section 3.1, describe FasterTransformer and Triton. There a finished
    request is still computed until the batch ends; here it leaves the step, which favours static
    batching: what it costs is its place.
    """

    every_step: ClassVar[bool] = False
    releases_together: ClassVar[bool] = True

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """First come, first served."""
        return None

    def plan(self, step: StepDraft) -> None:
        """Admit only when nobody is left."""
        if step.running:
            step.advance_running()
            return
        step.admit_waiting(whole_prompts=True)
        if not step.running:
            step.admit_waiting()
