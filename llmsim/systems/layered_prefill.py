"""Layered prefill (2025): prompts go through the model a group of layers at a time.

A step computes one group of layers for the prompts and all layers for the decodes, so that no chunk
of a prompt reads experts that the next one reads again. Give it ``engine.max_num_batched_tokens:
8192``: longer prompts are cut into pieces of that size, one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.views import RequestView


@BATCHING.register("layered-prefill")
@dataclass
class LayeredPrefill:
    """vLLM's order, prompts in groups of layers; nobody is admitted while some are under way.

    A set of at most 512 tokens goes through the whole model in one step, up to 1,024 in 2 groups,
    2,048 in 4, 4,096 in 8, more in 16.

    References
    ----------
    Layered Prefill, arXiv 2510.08055, and its code: the table for 16 stages.
    """

    step_tokens: Annotated[int, Ge(1)] = 512
    """[tokens] Prompt tokens that the work of one step stands for: the groups are as many as steps
    with chunks of this size, rounded up to a power of two."""
    most_groups: Annotated[int, Ge(1)] = 16
    """[groups] Most of them."""

    every_step: ClassVar[bool] = False

    def layer_groups(self, tokens: int) -> int:
        """Return how many groups of layers a set of so many tokens goes through."""
        groups = 1
        while groups < self.most_groups and groups * self.step_tokens < tokens:
            groups *= 2
        return min(groups, self.most_groups)

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """First come, first served."""
        return None

    def plan(self, step: StepDraft) -> None:
        """Advance who is running; admit only if nobody had to be preempted."""
        if step.advance_running() and step.waiting:
            step.admit_waiting()
