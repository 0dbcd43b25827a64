"""What a batching policy may decide beside the next step: who is next, who loses, who gets in.

Each is an ability of its own. A policy that has the method has the ability; the engine asks once,
when a run begins, and a policy without any costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from llmsim.policies.views import RequestView


class Running(NamedTuple):
    """A request that holds KV, as its engine knows it.

    Attributes
    ----------
    view : RequestView
    generated : int [tokens]
        Output tokens so far, the one under way included.
    """

    view: RequestView
    generated: int


class EngineView(Protocol):
    """What a policy may ask about the replica it plans for."""

    def cached_tokens(self, request: RequestView) -> int:
        """Return how many leading tokens of a waiting request are cached here now [tokens]."""
        ...

    def running(self) -> list[Running]:
        """Return who holds KV, in running order; visits every one of them."""
        ...


class WaitingOrder(Protocol):
    """A waiting line whose order is the policy's own and may change at any time."""

    def add(self, request: RequestView, returned: bool) -> None:
        """Take in an arrival, or (`returned`) a request that has lost its KV."""
        ...

    def head(self) -> RequestView | None:
        """Return who is next; None if nobody waits."""
        ...

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go: it was `admitted`, or its client has left."""
        ...


@runtime_checkable
class OrdersWaiting(Protocol):
    """A policy that keeps the waiting line itself; its `urgency` is not asked."""

    def waiting_order(self, engine: EngineView) -> WaitingOrder:
        """Return the line of one replica; called once, before anything arrives."""
        ...


@runtime_checkable
class ChoosesVictims(Protocol):
    """A policy that says who loses its KV when there is not enough for everybody's next token."""

    def victim(self, running: Sequence[Running]) -> int:
        """Return the place in `running` of the one who does."""
        ...


@runtime_checkable
class GuardsAdmission(Protocol):
    """A policy with a condition of its own for admission, beside free blocks and seats."""

    def admits(self, request: RequestView, new_tokens: int, free_tokens: int) -> bool:
        """Whether the request at the head of the line may be admitted now.

        Parameters
        ----------
        request : RequestView
        new_tokens : int [tokens]
            What is known of its text and not cached here.
        free_tokens : int [tokens]
            KV memory that could be taken now, cached prefixes of nobody included.
        """
        ...


@runtime_checkable
class ReleasesTogether(Protocol):
    """A policy whose replica hands out results only when all that run have ended."""

    releases_together: bool
