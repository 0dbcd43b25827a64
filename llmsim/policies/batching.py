"""What a replica computes in its next step: batching policies.

A policy fills in a `StepDraft`, which offers the mechanisms (advance who is running, admit who is
waiting) and keeps the state; the policy only decides. The draft never shows a true output length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from llmsim.core.registry import Registry
from llmsim.policies.views import RequestView


class StepDraft(Protocol):
    """The next step of one replica, under construction.

    Attributes
    ----------
    budget_tokens : int [tokens]
        Tokens that still fit into this step.
    running : int [requests]
        Requests that hold KV, decoding or prefilling.
    waiting : int [requests]
        Requests in the queue.
    admitted : int [requests]
        Requests admitted into this step so far.
    prefilling : int [requests]
        Requests whose prompt is in progress, those admitted into this step included.
    free_seats : int [requests]
        How many more may run.
    decode_steps : int [steps]
        Steps with decodes that this replica has planned since it began.
    short_of_blocks : bool
        Whether somebody must lose its KV for everybody who decodes to get a next token.
    """

    budget_tokens: int

    @property
    def admitted(self) -> int:
        """Requests admitted into this step so far."""
        ...

    @property
    def running(self) -> int:
        """Requests that hold KV."""
        ...

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        ...

    @property
    def prefilling(self) -> int:
        """Requests whose prompt is in progress."""
        ...

    @property
    def free_seats(self) -> int:
        """How many more requests may run."""
        ...

    @property
    def decode_steps(self) -> int:
        """Steps with decodes that this replica has planned so far."""
        ...

    @property
    def short_of_blocks(self) -> bool:
        """Whether somebody must lose its KV for everybody who decodes to get a next token."""
        ...

    def advance_prefills(self) -> bool:
        """Give prompts in progress their next tokens, and nobody else, within the budget.

        Returns
        -------
        bool
            Whether there were blocks for them; nothing is planned if not.
        """
        ...

    def switch(self, rank: Callable[[RequestView], int]) -> None:
        """Let those run who rank first: who ranks below one that waits loses its KV, or swaps it.

        Parameters
        ----------
        rank : callable
            The least is the most important; of equals who has arrived first.
        """
        ...

    def come_back(self, rank: Callable[[RequestView], int | float] | None = None) -> None:
        """Bring back who was swapped out, by rank, as far as it fits.

        From the first rank on, who waits in line gets in before who is out and ranks lower.

        Parameters
        ----------
        rank : callable or None
            Of who waits or is out: as in `switch`. None: that of the latest `switch`.
        """
        ...

    def ask_again(self, steps: int) -> None:
        """Have the policy called after so many steps, even if nothing else happens."""
        ...

    def advance_running(self) -> bool:
        """Give running requests their next tokens, in running order, within the budget.

        Decodes get one token, prefills as much as budget and chunk limit allow. Where KV runs out,
        requests are preempted in the policy's victim order until the rest fits.

        Returns
        -------
        bool
            Whether everybody kept their KV: False if someone was preempted.
        """
        ...

    def displace(self, place: int) -> bool:
        """Take seat and KV of a running request, which waits from now on.

        To be called before anybody is advanced, by a policy with ``displaces = True``: arrivals
        are then shown to it even where no seat is free. Where KV is swapped, nobody new gets in
        before who was displaced comes back, unless `come_back` has ranked them.

        Parameters
        ----------
        place : int
            In `EngineView.running`.

        Returns
        -------
        bool
            False, and nothing is done, for one whose last token is on its way, and where KV is
            swapped for one that decodes and has no token in the step before this one: who has just
            come back gets on before it loses its place again.
        """
        ...

    def admit_waiting(self, whole_prompts: bool = False) -> None:
        """Admit from the head of the queue until one does not fit.

        Parameters
        ----------
        whole_prompts : bool
            Never cut a prompt at the budget, even if the engine has chunked prefill on.
        """
        ...


class BatchingPolicy(Protocol):
    """Decides what a step computes.

    Attributes
    ----------
    every_step : bool
        Whether the plan may change without a decision point, so that steps cannot be merged.
    """

    every_step: ClassVar[bool]

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Rank a request in the queue (least first) and among victims (greatest first).

        A rank ends in the request's index, so that no two are equal. None, for all requests alike,
        means first come first served: a preempted request returns to the front and the victim is
        the one admitted last.
        """
        ...

    def plan(self, step: StepDraft) -> None:
        """Fill in the next step."""
        ...


BATCHING: Registry[BatchingPolicy] = Registry("batching")


@BATCHING.register("vllm")
@dataclass
class VllmBatching:
    """vLLM v1: one budget of tokens per step, running requests first, then the queue.

    Nothing new is admitted in a step that preempted.
    """

    order: Literal["fcfs", "priority", "programs", "deadline"] = "fcfs"
    """Order of the queue: arrival, (priority, arrival), or `programs`: whose program began first;
    a request of its own counts as a program that begins with it. `deadline`: whose first or last
    token is due first, by its SLO class or else the scenario's `slo`; last who is promised none."""

    every_step: ClassVar[bool] = False

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """Rank by (priority, arrival), by when the program began, or by deadline."""
        if self.order == "fcfs":
            return None
        if self.order == "programs":
            program = request.program
            began_ns = request.arrival_ns if program is None else program.arrival_ns
            return (began_ns, request.arrival_ns, request.index)
        if self.order == "deadline":
            due_ns = request.promise.due_ns(request.arrival_ns, request.prompt_tokens)
            return (due_ns, request.arrival_ns, request.index)
        return (request.priority, request.arrival_ns, request.index)

    def plan(self, step: StepDraft) -> None:
        """Advance who is running; admit only if nobody had to be preempted."""
        if step.advance_running() and step.waiting:
            step.admit_waiting()


@BATCHING.register("prefill-first")
@dataclass
class PrefillFirst:
    """Whole prompts before decodes: a step either prefills new requests or decodes all others.

    A prompt longer than the budget of a step waits until nobody runs and is then cut into chunks.
    """

    every_step: ClassVar[bool] = False

    def urgency(self, request: RequestView) -> tuple[int, ...] | None:
        """First come, first served."""
        return None

    def plan(self, step: StepDraft) -> None:
        """Admit who fits; decode only when nobody could be admitted."""
        if step.waiting:
            step.admit_waiting(whole_prompts=True)
        if not step.admitted:
            step.advance_running()
        if not step.admitted and not step.running:
            step.admit_waiting()
