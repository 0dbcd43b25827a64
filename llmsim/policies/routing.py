"""Which replica takes a request: routing policies over a view that may be old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, Literal, Protocol

import numpy as np
from annotated_types import Ge, Gt, Le

from llmsim.core.registry import Registry
from llmsim.policies.views import RequestView

NEVER: Final = 2**62 - 1
"""A time that never comes [ns]."""


class FleetView(Protocol):
    """What a router sees of the replicas: the load reports that have reached it.

    Attributes
    ----------
    replicas : int
        Number of replicas.
    """

    replicas: int

    def outstanding(self, replica: int) -> int:
        """Return how many requests a replica has in line or running, as last reported."""
        ...

    def least_outstanding(self) -> int:
        """Return the replica with the fewest requests, as last reported; the lowest of equals."""
        ...


class ForecastView(FleetView, Protocol):
    """What a router sees that declares ``forecasts = True``: what would become of a request.

    An answer is that of a copy of the replica, run ahead without any later arrival, in which
    outputs are as long as the scenario's estimator believes.
    """

    def first_token_ns(self, replica: int, request: RequestView, before_ns: int = NEVER) -> int:
        """Return when a request sent to a replica now would have its first token [ns].

        Parameters
        ----------
        replica : int
        request : RequestView
        before_ns : int [ns]
            What is later may be returned as `NEVER`, which saves looking any further.
        """
        ...

    def last_token_ns(self, replica: int, request: RequestView, before_ns: int = NEVER) -> int:
        """Return when a request sent to a replica now would have its last token [ns].

        Parameters are those of `first_token_ns`.
        """
        ...


class CacheView(FleetView, Protocol):
    """What a router sees that declares ``reads_caches = True``: what is cached where."""

    def cached_tokens(self, replica: int, request: RequestView) -> int:
        """Return how many leading tokens of a prompt a replica has cached at this moment [tokens].

        Unlike loads this has no age.
        """
        ...


class LineView(CacheView, Protocol):
    """What a router that reads caches sees of lines: what is still to be computed.

    Like what is cached, and unlike loads, this has no age.
    """

    def waiting(self, replica: int) -> Sequence[RequestView]:
        """Return who is in line on a replica, in the order of the line."""
        ...

    def begun_tokens(self, replica: int) -> int:
        """Return what prompts that a replica has begun have still to compute [tokens].

        The step under way counts as not yet run.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reroute:
    """Take a request out of the line where it waits, and put it in another one.

    Parameters
    ----------
    request : int
        Its index.
    source, target : int
        Replicas.
    """

    request: int
    source: int
    target: int


class RoutingPolicy(Protocol):
    """Chooses a replica when a request arrives.

    A class may declare ``forecasts = True`` and gets a `ForecastView` then, or
    ``reads_caches = True`` and gets a `LineView`. With a method `moves` beside it, after every
    arrival `moves` returns who is to change lines, as `Reroute`; who has begun, or is gone, stays.
    It may have a
    `decision_s`: seconds that every decision takes before the request is on its replica. One that
    has a method `meet` is told before `start` which pools there are, with how many replicas each.
    """

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Get to know the fleet; called once per run, before the first request.

        Parameters
        ----------
        fleet : FleetView
            Stays valid for the whole run; every read shows the then visible state.
        rng : numpy.random.Generator
            The policy's own stream.
        """
        ...

    def choose(self, request: RequestView) -> int:
        """Return the index of the replica that takes the request."""
        ...


ROUTING: Registry[RoutingPolicy] = Registry("routing")


@ROUTING.register("round-robin")
@dataclass
class RoundRobin:
    """Each replica in turn."""

    _next: int = field(default=0, init=False, repr=False)
    _replicas: int = field(default=1, init=False, repr=False)

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Note how many replicas there are."""
        self._replicas = fleet.replicas

    def choose(self, request: RequestView) -> int:
        """Return the next replica in the circle."""
        chosen = self._next
        self._next = (chosen + 1) % self._replicas
        return chosen


@ROUTING.register("least-loaded")
@dataclass
class LeastLoaded:
    """The replica with the fewest requests in line or running."""

    ties: Literal["lowest", "random"] = "lowest"
    """Who of equals: the first one, or one by chance, which old reports make matter."""

    _fleet: FleetView = field(init=False, repr=False)
    _rng: np.random.Generator = field(init=False, repr=False)

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Keep the view and the stream."""
        self._fleet = fleet
        self._rng = rng

    def choose(self, request: RequestView) -> int:
        """Return the replica with the least outstanding requests."""
        if self.ties == "lowest":
            return self._fleet.least_outstanding()
        loads = list(map(self._fleet.outstanding, range(self._fleet.replicas)))
        least = min(loads)
        equals = [replica for replica, load in enumerate(loads) if load == least]
        return equals[int(self._rng.integers(len(equals)))]


@ROUTING.register("power-of-two")
@dataclass
class PowerOfTwo:
    """The less loaded of two replicas drawn at random."""

    _fleet: FleetView = field(init=False, repr=False)
    _rng: np.random.Generator = field(init=False, repr=False)
    _draws: list[int] = field(default_factory=list, init=False, repr=False)

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Keep the view and the stream."""
        self._fleet = fleet
        self._rng = rng

    def choose(self, request: RequestView) -> int:
        """Draw two replicas, return the one with fewer requests; the first of equals."""
        fleet = self._fleet
        if fleet.replicas == 1:
            return 0
        if not self._draws:
            # one vectorised draw for many requests: single draws cost more than the routing
            first = self._rng.integers(0, fleet.replicas, 2048)
            second = self._rng.integers(0, fleet.replicas - 1, 2048)
            second += second >= first
            self._draws = np.column_stack((second, first)).ravel().tolist()
        one = self._draws.pop()
        other = self._draws.pop()
        return one if fleet.outstanding(one) <= fleet.outstanding(other) else other


@ROUTING.register("session-sticky")
@dataclass
class SessionSticky:
    """All requests of a session go where its first one went; new ones to the least loaded."""

    _fleet: FleetView = field(init=False, repr=False)
    _home: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Keep the view."""
        self._fleet = fleet

    def choose(self, request: RequestView) -> int:
        """Return the session's replica."""
        if request.session < 0:
            return self._fleet.least_outstanding()
        home = self._home.get(request.session)
        if home is None:
            home = self._home[request.session] = self._fleet.least_outstanding()
        return home


@ROUTING.register("prefix-affinity")
@dataclass
class PrefixAffinity:
    """The replica that last served the longest prefix of this prompt, unless it is swamped.

    The router remembers which prompts it sent where; it does not look into any cache, so what a
    replica has evicted since is believed to be there still, as in real gateways.
    """

    min_match_frac: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the prompt that must match; below it the least loaded replica is chosen."""

    max_imbalance: Annotated[int, Ge(0)] = 16
    """How many more requests than the least loaded the matching replica may have [requests]."""

    max_nodes: Annotated[int, Gt(0)] = 2_000_000
    """Prompt pieces remembered; the oldest are forgotten beyond it."""

    _fleet: FleetView = field(init=False, repr=False)
    _nodes: dict[tuple[int, int], list[int]] = field(default_factory=dict, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def start(self, fleet: FleetView, rng: np.random.Generator) -> None:
        """Keep the view."""
        self._fleet = fleet

    def choose(self, request: RequestView) -> int:
        """Return the replica with the longest remembered prefix."""
        fleet = self._fleet
        least = fleet.least_outstanding()
        segments = request.segments
        if not segments:
            return least
        nodes = self._nodes
        parent = matched = 0
        best = -1
        for key, length in segments:
            node = nodes.get((parent, key))
            if node is None:
                break
            parent, best = node
            matched += length
        if (
            best < 0
            or matched < self.min_match_frac * request.prompt_tokens
            or fleet.outstanding(best) > fleet.outstanding(least) + self.max_imbalance
        ):
            best = least
        self._remember(segments, best)
        return best

    def _remember(self, segments: tuple[tuple[int, int], ...], replica: int) -> None:
        nodes = self._nodes
        parent = 0
        for key, _ in segments:
            node = nodes.get((parent, key))
            if node is None:
                self._count += 1
                node = nodes[(parent, key)] = [self._count, replica]
            else:
                node[1] = replica
            parent = node[0]
        while len(nodes) > self.max_nodes:
            del nodes[next(iter(nodes))]


@ROUTING.register("precise")
@dataclass
class Precise:
    """The replica that has most of this prompt cached at this moment, unless it is swamped.

    An index of KV blocks that every engine keeps up to date, without delay: what `prefix-affinity`
    remembers, and may be wrong about, this router knows. Steps are not merged where it looks.
    """

    min_match_frac: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the prompt that must be cached; below it the least loaded replica is chosen."""

    max_imbalance: Annotated[int, Ge(0)] = 16
    """How many more requests than the least loaded the replica may have [requests]."""

    reads_caches: ClassVar[bool] = True

    _fleet: CacheView = field(init=False, repr=False)

    def start(self, fleet: CacheView, rng: np.random.Generator) -> None:
        """Keep the view."""
        self._fleet = fleet

    def choose(self, request: RequestView) -> int:
        """Return the replica with the longest cached prefix; of equals the least loaded."""
        fleet = self._fleet
        least = fleet.least_outstanding()
        most = fleet.outstanding(least) + self.max_imbalance
        best, found = least, 0
        load = fleet.outstanding(least)
        for replica in range(fleet.replicas):
            outstanding = fleet.outstanding(replica)
            if outstanding > most:
                continue
            cached = fleet.cached_tokens(replica, request)
            if cached > found or (cached == found and outstanding < load):
                best, found, load = replica, cached, outstanding
        return best if found >= self.min_match_frac * request.prompt_tokens else least
