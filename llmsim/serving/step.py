"""What a batching policy holds of the next step."""

from __future__ import annotations

from llmsim.serving.admission import admit_waiting
from llmsim.serving.draft import Draft


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
    def short_of_blocks(self) -> bool:
        """Whether somebody must lose its KV for everybody who decodes to get a next token."""
        draft = self._draft
        return draft.cohort.blocks_needed(1) > draft.ledger.free

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget."""
        return self._draft.advance_running()

    def admit_waiting(self, whole_prompts: bool = False) -> None:
        """Admit from the head of the queue until one does not fit."""
        admit_waiting(self._draft, whole_prompts)
