"""How long the KV of a call stays on the GPU when its program goes on elsewhere: retention.

A call of a program ends, a tool runs or a person thinks, and the next call repeats all that was
said. What is *pinned* meanwhile can be overwritten by nobody; it takes memory from everybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar, Literal, Protocol

from annotated_types import Gt

from llmsim.core.registry import Registry

GivesWay = Literal["deadlock", "preemption", "admission"]
"""When pins are released before their time: where nothing else can run; also before a running
request loses its KV; also where the head of the line does not fit."""


@dataclass(frozen=True, slots=True)
class CallView:
    """What an engine knows of a call that has just ended, and of what will follow.

    Parameters
    ----------
    program_ns : int [ns]
        When its program began.
    turn : int
        Which of its program's calls it was, from 0.
    tool : str
        The tool that its answer calls; empty where no tools are known of.
    tokens : int [tokens]
        Whose KV could be pinned.
    rebuild_s : float [s]
        What it would take to have them back: computed in a step of their own, or loaded
        from the nearest tier, if that is sooner.
    pauses_s : sequence of float or None [s]
        How long the tool may take, equally likely times in ascending order, as the scenario's
        estimator believes: none where it knows nothing. None where there is no estimator.
    """

    program_ns: int
    turn: int
    tool: str
    tokens: int
    rebuild_s: float
    pauses_s: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class PinView:
    """A pin that may be released before its time.

    Parameters
    ----------
    program_ns : int [ns]
        When its program began.
    ends_ns : int [ns]
        When it would end; far in the future if never.
    """

    program_ns: int
    ends_ns: int


class RetentionPolicy(Protocol):
    """Says how long KV is pinned, and learns from what happened.

    Attributes
    ----------
    pins : bool
        False if nothing is ever pinned.
    gives_way : str
        When pins are released before their time, see `GivesWay`.
    """

    pins: ClassVar[bool]
    gives_way: GivesWay

    def hold_s(self, call: CallView) -> float:
        """Return how long the KV of a call that has ended is pinned [s]; 0 for not at all.

        A pin whose program's next call has come does not run out while that waits.
        """
        ...

    def rank(self, pin: PinView) -> int:
        """Rank pins for when some must go before their time: the greatest first."""
        ...

    def returned(self, tool: str, pause_s: float) -> None:
        """Hear how long a tool took, now that the next call of its program has come here [s]."""
        ...

    def admitted(self, wait_s: float) -> None:
        """Hear how long a call has waited that runs now [s]."""
        ...

    def ended(self, turns: int) -> None:
        """Hear how many calls a program had whose last answer called no tool."""
        ...


RETENTION: Registry[RetentionPolicy] = Registry("retention")


@dataclass
class _Unlearning:
    """What policies have in common that learn nothing."""

    def rank(self, pin: PinView) -> int:
        """Release first what would end last."""
        return pin.ends_ns

    def returned(self, tool: str, pause_s: float) -> None:
        """Learn nothing."""

    def admitted(self, wait_s: float) -> None:
        """Learn nothing."""

    def ended(self, turns: int) -> None:
        """Learn nothing."""


@RETENTION.register("none")
@dataclass
class NoRetention(_Unlearning):
    """Nothing is pinned: what has ended is cached until it is overwritten."""

    pins: ClassVar[bool] = False
    gives_way: ClassVar[GivesWay] = "deadlock"

    def hold_s(self, call: CallView) -> float:
        """Pin nothing."""
        return 0.0


@RETENTION.register("fixed")
@dataclass
class FixedRetention(_Unlearning):
    """Everything is pinned equally long."""

    ttl_s: Annotated[float, Gt(0)] | None = None
    """[s] For how long; absent: until the next call runs."""
    gives_way: GivesWay = "deadlock"
    """When pins are released before their time, the one that ends last first: where nothing else
    can run (`deadlock`), also before a running request loses its KV (`preemption`), also where the
    head of the line does not fit (`admission`)."""

    pins: ClassVar[bool] = True

    def hold_s(self, call: CallView) -> float:
        """Return the one time there is."""
        return inf if self.ttl_s is None else self.ttl_s
