"""What a batching policy holds of the next step."""

from __future__ import annotations

from llmsim.policies.ordering import Running
from llmsim.policies.views import RequestView
from llmsim.serving.admission import admit_waiting
from llmsim.serving.draft import Draft
from llmsim.serving.queue import OrderedQueue


class Step:
    """What a batching policy gets: the verbs of a draft, and no way to the requests behind it.

    Implements `llmsim.policies.batching.StepDraft`.

    Parameters
    ----------
    draft : Draft
    """

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def budget_tokens(self) -> int:
        """Tokens that still fit into this step."""
        return self._draft.budget_tokens

    @budget_tokens.setter
    def budget_tokens(self, tokens: int) -> None:
        self._draft.budget_tokens = tokens

    @property
    def admitted(self) -> int:
        """Requests admitted into this step so far."""
        return self._draft.admitted

    @property
    def running(self) -> int:
        """Requests that hold KV."""
        return len(self._draft.running_set)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._draft.line.count

    @property
    def prefilling(self) -> int:
        """Requests whose prompt is in progress."""
        return len(self._draft.prefilling)

    @property
    def short_of_blocks(self) -> bool:
        """Whether somebody must lose its KV for everybody who decodes to get a next token."""
        draft = self._draft
        return draft.cohort.blocks_needed(1) > draft.ledger.free

    @property
    def planned_tokens(self) -> int:
        """Prompt tokens in this step so far."""
        return sum(tokens for _, tokens, _ in self._draft.chunks)

    @property
    def decode_steps(self) -> int:
        """Steps with decodes that this replica has planned so far."""
        return self._draft.cohort.tick

    def advance_prefills(self) -> bool:
        """Give prompts in progress their next tokens, and nobody else, within the budget."""
        return self._draft.advance_prefills()

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget."""
        return self._draft.advance_running()

    def admit_waiting(self, whole_prompts: bool = False) -> None:
        """Admit from the head of the queue until one does not fit."""
        admit_waiting(self._draft, whole_prompts)


class Engine:
    """What a policy may ask about its replica. Implements `llmsim.policies.ordering.EngineView`.

    Parameters
    ----------
    draft : Draft
    """

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def cached_tokens(self, request: RequestView) -> int:
        """Return how many leading tokens of a waiting request are cached here now [tokens]."""
        draft = self._draft
        line = draft.line
        ledger = draft.ledger
        if not ledger.caches or not isinstance(line, OrderedQueue):
            return 0
        waiting = line.behind(request)
        known = waiting.prompt + waiting.generated
        return ledger.match(waiting, known).blocks * draft.block_tokens

    def running(self) -> list[Running]:
        """Return who holds KV, in running order; visits every one of them."""
        return self._draft.running_now()
