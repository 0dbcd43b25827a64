"""What a replica does with KV that lies in tiers below its GPU: load it or not, which to forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Gt

from llmsim.core.registry import Registry


@dataclass(frozen=True, slots=True)
class LoadView:
    """What may be known when a prompt's beginning lies in a tier.

    Parameters
    ----------
    tokens : int [tokens]
        That could be loaded.
    past_tokens : int [tokens]
        Before them, on the GPU already.
    load_s : float [s]
        What loading would take if nothing else came to share its links.
    recompute_s : float [s]
        What computing these tokens would add to a step of their own.
    """

    tokens: int
    past_tokens: int
    load_s: float
    recompute_s: float


class LoadPolicy(Protocol):
    """Decides whether KV below the GPU is loaded, or its tokens computed again."""

    def loads(self, view: LoadView) -> bool:
        """Return whether to load."""
        ...


LOADING: Registry[LoadPolicy] = Registry("loading")


@LOADING.register("always")
@dataclass(frozen=True)
class AlwaysLoad:
    """Load whatever is there."""

    def loads(self, view: LoadView) -> bool:
        """Return True."""
        return True


@LOADING.register("never")
@dataclass(frozen=True)
class NeverLoad:
    """Load nothing: tiers are written and never read."""

    def loads(self, view: LoadView) -> bool:
        """Return False."""
        return False


@LOADING.register("cheaper")
@dataclass(frozen=True)
class LoadIfCheaper:
    """Load what is sooner here than computed."""

    bias: Annotated[float, Gt(0)] = 1.0
    """Load if loading takes less than this times computing; GPU time may be worth more."""

    def loads(self, view: LoadView) -> bool:
        """Compare the two estimates."""
        return view.load_s < self.bias * view.recompute_s


class EvictionPolicy(Protocol):
    """Ranks what nobody reads; the least is forgotten first."""

    def rank(self, reads: int, used: int, stored: int) -> int:
        """Return a rank.

        Parameters
        ----------
        reads : int
            Times that a run of KV was found since it came.
        used : int
            Its latest use, as a count of events of this cache.
        stored : int
            When it came, as a count of the same events.
        """
        ...


EVICTION: Registry[EvictionPolicy] = Registry("eviction")


@EVICTION.register("lru")
@dataclass(frozen=True)
class LeastRecentlyUsed:
    """What was used longest ago."""

    def rank(self, reads: int, used: int, stored: int) -> int:
        """Rank by latest use."""
        return used


@EVICTION.register("lfu")
@dataclass(frozen=True)
class LeastFrequentlyUsed:
    """What was found least often; of equals, what was used longest ago."""

    def rank(self, reads: int, used: int, stored: int) -> int:
        """Rank by (reads, latest use)."""
        return (reads << 40) + used


@EVICTION.register("fifo")
@dataclass(frozen=True)
class FirstInFirstOut:
    """What came first, however often it was found since."""

    def rank(self, reads: int, used: int, stored: int) -> int:
        """Rank by arrival."""
        return stored
