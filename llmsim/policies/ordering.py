"""What a batching policy may decide beside the next step: who is next, who loses, who gets in.

Each is an ability of its own. A policy that has the method has the ability; the engine asks once,
when a run begins, and a policy without any costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from llmsim.policies.views import RequestView


class Running(NamedTuple):
    """A request that holds KV, as its engine knows it.

    Attributes
    ----------
    view : RequestView
    generated : int [tokens]
        Output tokens so far, the one under way included.
    prefilling : bool
        Whether its prompt is still being computed.
    """

    view: RequestView
    generated: int
    prefilling: bool


class EngineView(Protocol):
    """What a policy may ask about the replica it plans for.

    Attributes
    ----------
    block_tokens : int [tokens]
        Of a KV block.
    kv_tokens : int [tokens]
        KV memory of the replica, in use or not.
    longest_tokens : int [tokens]
        Longest prompt plus output that it takes.
    caches : bool
        Whether prefixes are cached.
    idle : bool
        Whether nobody holds KV and nobody waits.
    """

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block."""
        ...

    @property
    def kv_tokens(self) -> int:
        """KV memory of the replica, in use or not [tokens]."""
        ...

    @property
    def longest_tokens(self) -> int:
        """Longest prompt plus output that the replica takes [tokens]."""
        ...

    @property
    def caches(self) -> bool:
        """Whether prefixes are cached."""
        ...

    @property
    def idle(self) -> bool:
        """Whether nobody holds KV and nobody waits."""
        ...

    def cached_tokens(self, request: RequestView) -> int:
        """Return how many leading tokens of a waiting request are cached here now [tokens]."""
        ...

    def generated(self, request: RequestView) -> int:
        """Return the output tokens that a request had that waits or is swapped out [tokens]."""
        ...

    def running(self) -> list[Running]:
        """Return who holds KV, in running order; visits every one of them."""
        ...


class WaitingOrder(Protocol):
    """A waiting line whose order is the policy's own and may change at any call."""

    def add(self, request: RequestView, returned: bool) -> None:
        """Take in an arrival, or (`returned`) a request that has lost its KV."""
        ...

    def head(self) -> RequestView | None:
        """Return who is next; None if nobody waits. The same until it is removed or others come."""
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

    def admits(
        self, request: RequestView, new_tokens: int, now_tokens: int, free_tokens: int
    ) -> bool:
        """Whether the request at the head of the line is admitted now; it is, if so.

        Parameters
        ----------
        request : RequestView
        new_tokens : int [tokens]
            What is known of its text and not cached here.
        now_tokens : int [tokens]
            How much of that this step computes.
        free_tokens : int [tokens]
            KV memory that could be taken now: what is free, and cached prefixes that nobody
            holds, except its own.
        """
        ...


@runtime_checkable
class HearsOfEnds(Protocol):
    """A policy that is told when a request has ended, however it did."""

    def ended(self, request: RequestView, generated: int) -> None:
        """Note the end of a request that had `generated` output tokens [tokens]."""
        ...


@runtime_checkable
class PublishesResults(Protocol):
    """A policy whose engine enters a prefix into its cache when the step's result has come in.

    Two requests of one step then both compute what they have in common; and what a request
    generates is found by others once it has ended. Without this ability blocks are found as soon
    as they are planned, as in vLLM.
    """

    publishes_results: ClassVar[bool]
