"""S3 (NeurIPS 2023): memory for the answer that is predicted, batches packed by what they reserve.

Set ``batching: s3`` and ``allocation: s3``, with an estimator of output lengths: the published
one is a classifier into buckets (``{kind: bucket}``). Who outgrows its reservation loses its KV and
waits for one twice as large.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Gt

from llmsim.policies.allocation import ALLOCATION
from llmsim.policies.batching import BATCHING, StepDraft
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.views import RequestView


def reserved_tokens(request: RequestView, generated: int) -> int:
    """Return what a request reserves at first [tokens]: prompt and predicted answer.

    Parameters
    ----------
    request : RequestView
    generated : int [tokens]
        What it has written already: the answer is no shorter.
    """
    return request.prompt_tokens + max(request.believed_tokens, generated + 1)


@ALLOCATION.register("s3")
@dataclass
class PredictedAnswer:
    """A region for the prompt and the answer that is predicted; a wrong one is doubled.

    References
    ----------
    Jin et al., S3: Increasing GPU Utilization during Generative Inference for Higher Throughput,
    NeurIPS 2023, arXiv 2306.06000, section 3.
    """

    grow_factor: Annotated[float, Gt(1)] = 2.0
    """Size of the next reservation over the one that was outgrown."""

    reserves: ClassVar[bool] = True
    grows: ClassVar[bool] = False
    asks_lengths: ClassVar[bool] = True

    def claim_tokens(self, request: RequestView, known_tokens: int, most_tokens: int) -> int:
        """Claim prompt and predicted answer, at most the longest sequence."""
        generated = known_tokens - request.prompt_tokens
        return min(most_tokens, reserved_tokens(request, generated))

    def renewed_tokens(self, claimed_tokens: int) -> int:
        """Claim so many times as much."""
        return max(claimed_tokens + 1, int(self.grow_factor * claimed_tokens))

    def wait_s(self, tokens: int) -> float:
        """Wait for nothing: all memory is there from the beginning."""
        return 0.0


@BATCHING.register("s3")
@dataclass
class S3:
    """First fit decreasing: of those that fit beside who runs, the largest reservation is next.

    Whole prompts join in the steps in which others decode; a prompt longer than the budget of a
    step waits until nobody runs and is then cut into chunks.

    References
    ----------
    As above, section 3.2: bin packing by decreasing size, as an Orca that reserves less.
    """

    every_step: ClassVar[bool] = False
    asks_lengths: ClassVar[bool] = True

    _engine: EngineView = field(init=False, repr=False)
    _line: list[tuple[int, int, RequestView]] = field(init=False, repr=False, default_factory=list)
    _size: dict[int, int] = field(init=False, repr=False, default_factory=dict)
    _held: dict[int, int] = field(init=False, repr=False, default_factory=dict)

    _reserved: int = field(init=False, repr=False, default=0)

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Keep no rank: the line has an order of its own."""
        return None

    def waiting_order(self, engine: EngineView) -> S3:
        """Keep the line of one replica."""
        self._engine = engine
        return self

    def add(self, request: RequestView, returned: bool) -> None:
        """Take a request in; who comes back has outgrown its reservation and needs twice that."""
        block = self._engine.block_tokens
        size = reserved_tokens(request, self._engine.generated(request) if returned else 0)
        if returned:
            had = self._held.pop(request.index, 0)
            self._reserved -= had
            size = max(size, 2 * had)
        size = -(-min(size, self._engine.longest_tokens) // block) * block
        self._size[request.index] = size
        # of equal sizes who came first: the line is searched from its end
        insort(self._line, (size, -request.index, request))

    def head(self) -> RequestView | None:
        """Return the largest that fits; the smallest of all if none does, which then waits."""
        if not self._line:
            return None
        free = self._engine.kv_tokens - self._reserved
        fitting = bisect_right(self._line, free, key=lambda entry: entry[0])
        return self._line[max(fitting - 1, 0)][2]

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go; its reservation counts from now on, if it was admitted."""
        size = self._size.pop(request.index)
        del self._line[bisect_left(self._line, (size, -request.index))]
        if admitted:
            self._held[request.index] = size
            self._reserved += size

    def victim(self, running: Sequence[Running]) -> int:
        """Choose who was admitted last, where memory runs out all the same."""
        return len(running) - 1

    def ended(self, request: RequestView, generated: int) -> None:
        """Give back what a request had reserved."""
        self._reserved -= self._held.pop(request.index, 0)

    def plan(self, step: StepDraft) -> None:
        """Advance who is running, then admit whole prompts into the same step."""
        kept = step.advance_running()
        if kept and step.waiting:
            step.admit_waiting(whole_prompts=True)
            if not step.running:
                step.admit_waiting()
