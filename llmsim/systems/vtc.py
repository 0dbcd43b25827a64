"""VTC (OSDI 2024): clients are served fairly, by a counter of weighted tokens each.

With ``memory: peak`` and ``wait_steps: 10`` it is the published runtime (S-LoRA on LightLLM): whole
prompts in steps of their own, looked for after every tenth step of decodes, and admission by the
memory that the batch would need at its fullest if everybody wrote all that it asked for. With the
defaults the order stands on SGLang's scheduler, as in later comparisons.

References
----------
Sheng et al., Fairness in Serving Large Language Models, OSDI 2024, algorithms 2 and 4; weights 1
and 2 as there. The runtime: Ying1123/VTC-artifact, ``slora/server/router``: ``vtc_req_queue.py``,
``manager.py``; batches are limited by ``batch_max_tokens``, here ``engine.max_num_batched_tokens``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from llmsim.policies.batching import BATCHING
from llmsim.policies.lines import ArrivalLine, CounterLine
from llmsim.policies.ordering import EngineView
from llmsim.policies.prompts import PromptsFirst
from llmsim.policies.room import PeakOfAll, ShareOfOutput
from llmsim.policies.views import RequestView


@BATCHING.register("vtc")
@dataclass
class Vtc(PromptsFirst):
    """Virtual token counters: the client that was served least is next."""

    order: Literal["counters", "fcfs"] = "counters"
    """`fcfs`: the same engine without fairness, to compare with."""
    memory: Literal["share", "peak"] = "share"
    """What is kept for outputs: SGLang's share of them, or LightLLM's peak of the whole batch."""
    wait_steps: Annotated[int, Ge(0)] = 0
    """[steps] Decodes run so many steps between two steps of prompts."""
    input_weight: Annotated[float, Ge(0)] = 1.0
    """Service of a prompt token."""
    output_weight: Annotated[float, Ge(0)] = 2.0
    """Service of an output token."""
    weights: tuple[Annotated[float, Gt(0)], ...] = ()
    """What clients are due, in their order; 1 for the others."""

    _counters: CounterLine | None = field(init=False, repr=False, default=None)

    def waiting_order(self, engine: EngineView) -> PromptsFirst:
        """Keep the line of one replica."""
        self._engine = engine
        if self.order == "counters":
            line = CounterLine(engine, self.input_weight, self.output_weight, self.weights)
            self._line = self._counters = line
        else:
            self._line = ArrivalLine()
        if self.memory == "peak":
            self._room = PeakOfAll(self.left, engine.kv_tokens)
            self._whole, self._late = True, False
        else:
            self._room = ShareOfOutput(self.left, engine.block_tokens, 1.0)
        self._wait_steps = self.wait_steps
        return self

    def ended(self, request: RequestView, generated: int) -> None:
        """Count what a request has had that has ended."""
        if self._counters is not None:
            self._counters.ended(request, generated)
