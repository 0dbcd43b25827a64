"""What a batching policy holds of the next step."""

from __future__ import annotations

from collections.abc import Callable

from llmsim.policies.ordering import Running
from llmsim.policies.views import RequestView
from llmsim.serving.admission import admit_waiting
from llmsim.serving.cohort import Cohort
from llmsim.serving.draft import Draft
from llmsim.serving.preemption import displace
from llmsim.serving.queue import OrderedQueue
from llmsim.serving.switching import switch


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
    def free_seats(self) -> int:
        """How many more requests may run."""
        return self._draft.max_seqs - len(self._draft.running_set)

    @property
    def decode_steps(self) -> int:
        """Steps with decodes that this replica has planned so far."""
        return self._draft.cohort.tick

    @property
    def short_of_blocks(self) -> bool:
        """Whether somebody must lose its KV for everybody who decodes to get a next token."""
        draft = self._draft
        return draft.cohort.blocks_needed(1) > draft.ledger.free

    def advance_prefills(self) -> bool:
        """Give prompts in progress their next tokens, and nobody else, within the budget."""
        return self._draft.advance_prefills()

    def switch(self, rank: Callable[[RequestView], int]) -> None:
        """Let those run who rank first."""
        switch(self._draft, rank)

    def come_back(self, rank: Callable[[RequestView], int | float] | None = None) -> None:
        """Bring back who was swapped out, by a rank or that of the latest `switch`."""
        swapper = self._draft.swapper
        if swapper is not None:
            if rank is not None:
                swapper.rank = rank
            swapper.bring_back(ranked=True)

    def ask_again(self, steps: int) -> None:
        """Have the policy called after so many steps, even if nothing else happens."""
        if steps < self._draft.most_ticks:
            self._draft.most_ticks = max(1, steps)

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget."""
        return self._draft.advance_running()

    def displace(self, place: int) -> bool:
        """Take seat and KV of a running request, which waits from now on; see `StepDraft`."""
        return displace(self._draft, place)

    def admit_waiting(self, whole_prompts: bool = False) -> None:
        """Admit from the head of the queue until one does not fit."""
        admit_waiting(self._draft, whole_prompts)


class StagedStep(Step):
    """The same of a pipeline: steps are counted over all its micro-batches.

    Parameters
    ----------
    draft : Draft
    cohorts : list of Cohort
        Of all micro-batches; it grows until all are made.
    """

    __slots__ = ("_cohorts",)

    def __init__(self, draft: Draft, cohorts: list[Cohort]) -> None:
        super().__init__(draft)
        self._cohorts = cohorts

    @property
    def decode_steps(self) -> int:
        """Micro-batches with decodes that this pipeline has planned so far."""
        return sum([cohort.tick for cohort in self._cohorts])


class Engine:
    """What a policy may ask about its replica. Implements `llmsim.policies.ordering.EngineView`.

    Parameters
    ----------
    draft : Draft
    """

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def follow(self, draft: Draft) -> None:
        """Tell from now on of another micro-batch of the same replica: the one that is planned."""
        self._draft = draft

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block."""
        return self._draft.block_tokens

    @property
    def kv_tokens(self) -> int:
        """KV memory of the replica, in use or not [tokens]."""
        return self._draft.config.kv_blocks * self._draft.block_tokens

    @property
    def longest_tokens(self) -> int:
        """Longest prompt plus output that the replica takes [tokens]."""
        return self._draft.config.max_model_len

    @property
    def caches(self) -> bool:
        """Whether prefixes are cached."""
        return self._draft.ledger.caches

    @property
    def idle(self) -> bool:
        """Whether nobody holds KV and nobody waits."""
        return not self._draft.running_set and not self._draft.line.count

    def cached_tokens(self, request: RequestView) -> int:
        """Return how many leading tokens of a waiting request are cached here now [tokens]."""
        draft = self._draft
        line = draft.line
        if not draft.ledger.caches or not isinstance(line, OrderedQueue):
            return 0
        waiting = line.behind(request)
        known = waiting.prompt + waiting.generated
        return draft.ledger.match(waiting, known).blocks * draft.block_tokens

    def generated(self, request: RequestView) -> int:
        """Return the output tokens that a request had that waits or is swapped out [tokens]."""
        line, swapper = self._draft.line, self._draft.swapper
        if swapper is not None and request.index in swapper.outside:
            return swapper.outside[request.index].generated
        return line.behind(request).generated if isinstance(line, OrderedQueue) else 0

    def running(self) -> list[Running]:
        """Return who holds KV, in running order; visits every one of them."""
        return self._draft.running_now()
