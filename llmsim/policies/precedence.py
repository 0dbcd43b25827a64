"""Whose prompt is computed first, and whether it stops a step under way.

Asked where steps can be stopped (`fleet.pools.*.stop`), and only when a request arrives or a step
ends. A policy ranks; what is begun, what fits and what can be stopped is the engine's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from annotated_types import Ge, Gt

from llmsim.core.registry import Registry
from llmsim.core.units import seconds_to_ns
from llmsim.policies.views import RequestView

Rank = tuple[int, ...]
"""The least goes first; ends in the request's index, so that no two are equal."""

NO_TURN: Final = 2**62 - 1
"""The rank of a request that waits never changes [ns]."""


class PrefillProfile(Protocol):
    """How long prompts take on this engine, as its operator has measured it beforehand.

    Attributes
    ----------
    longest_tokens : int [tokens]
        The longest prompt that it serves.
    """

    @property
    def longest_tokens(self) -> int:
        """The longest prompt that it serves [tokens]."""
        ...

    def prefill_ns(self, tokens: int) -> int:
        """Return the time of a prompt that is computed alone [ns]."""
        ...


class Precedence(Protocol):
    """Ranks prompts, one instance per replica."""

    def start(self, profile: PrefillProfile) -> None:
        """Begin a run on an engine with this profile."""
        ...

    def declared(self) -> tuple[str, ...]:
        """Return what it knows that no deployment could; told with every result."""
        ...

    def rank(self, request: RequestView, tokens: int, executed_ns: int, now_ns: int) -> Rank:
        """Rank a prompt that waits, is begun, or is being computed.

        Parameters
        ----------
        request : RequestView
        tokens : int [tokens]
            Of its prompt, and of those that are computed in the same step.
        executed_ns : int [ns]
            For how long it has been computed by now.
        now_ns : int [ns]
        """
        ...

    def turns_ns(self, request: RequestView) -> int:
        """Return when its rank changes while it waits [ns]; `NO_TURN` if it does not.

        It changes at most once.
        """
        ...

    def joins(self, head: RequestView, tokens: int, more: RequestView, now_ns: int) -> bool:
        """Whether a step that computes `head` takes in the next in rank, too.

        Parameters
        ----------
        head : RequestView
            First of the step.
        tokens : int [tokens]
            Of the prompts of the step so far.
        more : RequestView
        now_ns : int [ns]
        """
        ...


PRECEDENCE: Registry[Precedence] = Registry("precedence")


@dataclass
class _Packing:
    """Steps take in whoever is next while their budget lasts; ranks never change."""

    def start(self, profile: PrefillProfile) -> None:
        """Begin; nothing is asked of the profile."""

    def declared(self) -> tuple[str, ...]:
        """Return nothing: it knows what everybody knows."""
        return ()

    def turns_ns(self, request: RequestView) -> int:
        """Return `NO_TURN`."""
        return NO_TURN

    def joins(self, head: RequestView, tokens: int, more: RequestView, now_ns: int) -> bool:
        """Say yes."""
        return True


@PRECEDENCE.register("arrival")
@dataclass
class ByArrival(_Packing):
    """First come, first served: nobody is ever stopped."""

    def rank(self, request: RequestView, tokens: int, executed_ns: int, now_ns: int) -> Rank:
        """Rank by arrival."""
        return (request.arrival_ns, request.index)


@PRECEDENCE.register("priority")
@dataclass
class ByPriority(_Packing):
    """By priority, then by arrival."""

    def rank(self, request: RequestView, tokens: int, executed_ns: int, now_ns: int) -> Rank:
        """Rank by (priority, arrival)."""
        return (request.priority, request.arrival_ns, request.index)


@dataclass
class Deadlines:
    """When first tokens are due; of use to policies that know what was promised.

    The promise may depend on the prompt: ``arrival + ttft_s + tokens * ttft_per_prompt_token_s``.
    """

    ttft_s: Annotated[float, Gt(0)] | None = None
    """[s] Promised time to first token; absent: what the request's SLO class is promised, or the
    scenario's `slo`."""
    ttft_per_prompt_token_s: Annotated[float, Ge(0)] = 0.0
    """[s] What is promised besides for every token of the prompt."""

    def deadline_ns(self, request: RequestView) -> int:
        """Return when a request's first token is due [ns]; far in the future if never."""
        if self.ttft_s is None:
            return request.promise.first_due_ns(request.arrival_ns, request.prompt_tokens)
        promised = self.ttft_s + request.prompt_tokens * self.ttft_per_prompt_token_s
        return request.arrival_ns + seconds_to_ns(promised)


@PRECEDENCE.register("deadline")
@dataclass
class ByDeadline(Deadlines, _Packing):
    """Earliest deadline first, whether or not it can still be kept."""

    def rank(self, request: RequestView, tokens: int, executed_ns: int, now_ns: int) -> Rank:
        """Rank by deadline."""
        return (self.deadline_ns(request), request.index)
