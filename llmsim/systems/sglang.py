"""SGLang 0.5: prompts first, longest cached prefix first, memory kept for a share of the output.

What is modelled, from ``srt/managers/schedule_policy.py`` (SchedulePolicy, PrefillAdder),
``scheduler.py`` (get_next_batch_to_run, update_running_batch) and ``schedule_batch.py``
(retract_decode) of 0.5.8:

- A step computes prompts alone while somebody can be admitted; its tokens are
  ``chunked_prefill_size`` (here ``engine.max_num_batched_tokens``), the last prompt is cut there
  and goes first in the next step. A second prompt must leave ``max_prefill_tokens`` unreached.
  With ``mixed_chunk`` decodes run along.
- Waiting requests go by longest prefix in the cache. Of those with at most 32 tokens cached that
  share as many with one before them, one goes first. Beyond 128 of them the line stays as it is
  (``SchedulePolicy._determine_active_policy``).
- A request is admitted if prompt, longest output and a page fit beside a share of what running
  requests may still write, at most 4,096 tokens each. After a refusal nobody is looked at before
  a step after one in which somebody has ended.
- Where memory runs out, who has written least loses its KV and waits at the end of the line.
- A prefix is found when the result of its step is in; an output when its request has ended.

Not modelled: host overhead of matching, priorities, LRU by lookups (a cached prefix ages from its
last use here, and not from the last time that somebody who waits was matched with it).

References
----------
Zheng et al., SGLang: Efficient Execution of Structured Language Model Programs, NeurIPS 2024,
section 3 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from annotated_types import Ge, Gt

from llmsim.policies.batching import BATCHING
from llmsim.policies.lines import ArrivalLine, PrefixLine
from llmsim.policies.ordering import EngineView
from llmsim.policies.prompts import PromptsFirst
from llmsim.policies.room import ShareOfOutput

CLIP_TOKENS: Final = 4_096
"""SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION."""

APART_TOKENS: Final = 32
"""IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD and _DEPRIORITIZE_THRESHOLD."""


@BATCHING.register("sglang")
@dataclass
class Sglang(PromptsFirst):
    """SGLang's scheduler: prompts first, by longest cached prefix, a share of the output kept.

    A page is ``engine.block_tokens``, 1 by SGLang's default.
    """

    order: Literal["lpm", "fcfs"] = "fcfs"
    """Order of the line: arrival, SGLang's default, or longest cached prefix first."""
    longest_sorted: Annotated[int, Ge(1)] = 128
    """[requests] A longer line is not sorted by prefix but stays as it is; the paper has no such
    limit."""
    conservativeness: Annotated[float, Gt(0)] = 1.0
    """Multiplies the share of the output that is kept at first (schedule_conservativeness)."""
    mixed_chunk: bool = False
    """Decodes run in the steps of prompts too (enable_mixed_chunk)."""
    max_prefill_tokens: Annotated[int, Ge(1)] = 16_384
    """[tokens] A step takes no further prompt that would reach this; the first may."""
    recv_interval_steps: Annotated[int, Ge(1)] = 1
    """[steps] While requests decode, arrivals are looked for every so many steps since the last
    prompt (scheduler_recv_interval)."""

    clip_tokens: ClassVar[int] = CLIP_TOKENS

    def waiting_order(self, engine: EngineView) -> PromptsFirst:
        """Keep the line of one replica."""
        self._engine = engine
        self._mixed, self._look_steps = self.mixed_chunk, self.recv_interval_steps
        self._most_tokens = self.max_prefill_tokens
        if self.order == "lpm":
            self._line = PrefixLine(engine, self.longest_sorted, APART_TOKENS)
        else:
            self._line = ArrivalLine()
        self._room = ShareOfOutput(self.left, engine.block_tokens, self.conservativeness)
        return self
