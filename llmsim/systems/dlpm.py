"""DLPM (2025): the longest cached prefix goes first, among clients that have credit left.

Every client has a deficit counter. Who is admitted pays for the prompt tokens that are not cached,
and for its output; a client without credit waits, however long its prefix, until no client that
waits has any: then each of those is given the quantum. A small quantum is fair, a large one local.

References
----------
Cao et al., Locality-aware Fair Scheduling in LLM Serving, arXiv 2501.14312, algorithm 1; on SGLang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt

from llmsim.policies.batching import BATCHING
from llmsim.policies.lines import ALWAYS, PrefixLine
from llmsim.policies.ordering import EngineView, Running
from llmsim.policies.prompts import PromptsFirst
from llmsim.policies.room import ShareOfOutput
from llmsim.policies.views import RequestView


class CreditLine(PrefixLine):
    """By longest cached prefix, of clients that have credit left.

    Parameters
    ----------
    engine : EngineView
    quantum_tokens : int [tokens]
        Credit that a client is given when nobody who waits has any.
    input_weight, output_weight : float
        Price of a prompt token that is computed, and of an output token.
    """

    def __init__(
        self,
        engine: EngineView,
        quantum_tokens: int,
        input_weight: float,
        output_weight: float,
    ) -> None:
        super().__init__(engine, longest=ALWAYS, apart_tokens=32)
        self._quantum = quantum_tokens
        self._prices = (input_weight, output_weight)
        self._paid: dict[int, list[int]] = {}  # prompt, output tokens of a client
        self._given: dict[int, int] = {}  # quanta
        self._charged: dict[int, int] = {}  # output tokens of who runs that are paid
        self.uncached_tokens = 0  # of who is about to be admitted

    def credit(self, client: int) -> float:
        """Return what a client may still spend [weighted tokens]."""
        prompt, output = self._paid.get(client, (0, 0))
        spent = self._prices[0] * prompt + self._prices[1] * output
        return self._given.get(client, 0) * self._quantum - spent

    def pay(self, client: int, prompt_tokens: int, output_tokens: int) -> None:
        """Take the price of some tokens from a client's credit."""
        paid = self._paid.setdefault(client, [0, 0])
        paid[0] += prompt_tokens
        paid[1] += output_tokens

    def arrange(self, running: Sequence[Running]) -> None:
        """Let who runs pay for its output, sort by prefix, and give credit if nobody has any."""
        for one in running:
            self._settle(one.view, one.generated)
        super().arrange(running)
        self._refill()

    def head(self) -> RequestView | None:
        """Return the first whose client has credit; the first of all where none has."""
        first = None
        for request in self._line[self._gone :]:
            if self.credit(request.client) > 0:
                return request
            first = first or request
        return first

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go; credit is given anew if that was the last one with any."""
        super().remove(request, admitted)
        if admitted:
            self.pay(request.client, self.uncached_tokens, 0)
            self._charged.setdefault(request.index, self._engine.generated(request))
            self._refill()

    def ended(self, request: RequestView, generated: int) -> None:
        """Let a request that has ended pay for the rest of its output."""
        if request.index in self._charged:
            self._settle(request, generated)
            del self._charged[request.index]

    def steady_steps(self) -> int:
        """Return after how many steps another may be next: credit is spent step by step."""
        return 1

    def _settle(self, request: RequestView, generated: int) -> None:
        counted = self._charged.get(request.index, 0)
        if generated > counted:
            self._charged[request.index] = generated
            self.pay(request.client, 0, generated - counted)

    def _refill(self) -> None:
        clients = {request.client for request in self._line[self._gone :]}
        while clients and all(self.credit(client) <= 0 for client in clients):
            for client in clients:
                self._given[client] = self._given.get(client, 0) + 1


@BATCHING.register("dlpm")
@dataclass
class Dlpm(PromptsFirst):
    """Deficit longest prefix match, on SGLang's scheduler."""

    quantum_tokens: Annotated[int, Gt(0)] = 10_000
    """[tokens] Weighted tokens that a client may spend before others without credit get some."""
    input_weight: Annotated[float, Ge(0)] = 1.0
    """Price of a prompt token that is not cached."""
    output_weight: Annotated[float, Ge(0)] = 2.0
    """Price of an output token."""

    _credits: CreditLine = field(init=False, repr=False)

    def waiting_order(self, engine: EngineView) -> PromptsFirst:
        """Keep the line of one replica."""
        self._engine = engine
        weights = self.input_weight, self.output_weight
        self._line = self._credits = CreditLine(engine, self.quantum_tokens, *weights)
        self._room = ShareOfOutput(self.left, engine.block_tokens, 1.0)
        return self

    def admits(
        self, request: RequestView, new_tokens: int, now_tokens: int, free_tokens: int
    ) -> bool:
        """Let in who fits, and note what it will have to pay for."""
        self._credits.uncached_tokens = new_tokens
        return super().admits(request, new_tokens, now_tokens, free_tokens)

    def ended(self, request: RequestView, generated: int) -> None:
        """Let a request that has ended pay for the rest of its output."""
        self._credits.ended(request, generated)
