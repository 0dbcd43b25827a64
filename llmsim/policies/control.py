"""What is done about a fleet while it runs: controllers over reports that may be old.

A controller is called at a period of its own, sees a `FleetReport`, and returns actions. Each
takes the time and costs the money that it would; what has become impossible by then is refused,
and the event log says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Gt

from llmsim.core.registry import Registry
from llmsim.core.units import NS_PER_S, seconds_to_ns
from llmsim.policies.reports import FleetReport, ReplicaReport, by_replica


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move a decoding request, with its KV, to another replica.

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


@dataclass(frozen=True, slots=True)
class Add:
    """Boot a spare replica: a machine, its weights over a link, a warm-up.

    Parameters
    ----------
    pool : int
    """

    pool: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a replica take no more work and go when it is empty; who waits there is sent elsewhere.

    Parameters
    ----------
    replica : int
        Or any of its attention ranks: they come and go together.
    """

    replica: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Let a replica stop dead, with all its KV; its requests are computed again elsewhere.

    Parameters
    ----------
    replica : int
    """

    replica: int


@dataclass(frozen=True, slots=True)
class SetRole:
    """Let a replica compute prompts, decode, or do both from some time on.

    Its old work comes to an end as it would have; who waits there for it is sent elsewhere.

    Parameters
    ----------
    replica : int
    role : str
        ``mixed``, ``prefill`` or ``decode``.
    """

    replica: int
    role: str


Action = Migrate | Add | Drain | Fail | SetRole


class ControlPolicy(Protocol):
    """Looks at the fleet now and then, and acts.

    A class whose actions move running requests has ``migrates = True``; one that adds, drains or
    fails replicas has ``scales = True``; one that changes their roles has ``flips = True``.

    Attributes
    ----------
    period_s : float [s]
        Between two calls.
    view_age_s : float [s]
        How old the reports are that it is called with.
    """

    period_s: float
    view_age_s: float

    def start(self, rng: np.random.Generator) -> None:
        """Get the policy's own random stream; called once per run."""
        ...

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Return what is to be done, in order."""
        ...


CONTROL: Registry[ControlPolicy] = Registry("control")


@CONTROL.register("autoscale")
@dataclass
class Autoscale:
    """Add a replica when requests pile up, drain one when few are left, by thresholds."""

    scales: ClassVar[bool] = True

    period_s: Annotated[float, Gt(0)] = 10.0
    """[s] Time between two calls."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of the reports."""
    pool: Annotated[int, Ge(0)] = 0
    """Index of the pool that grows and shrinks, in the order of the file."""
    above: Annotated[float, Gt(0)] = 64.0
    """[requests] In line or running per replica, booting ones included; beyond it one is added."""
    below: Annotated[float, Ge(0)] = 16.0
    """[requests] In line or running per replica; under it one is drained."""
    least: Annotated[int, Ge(1)] = 1
    """[replicas] Never fewer than these."""
    patience: Annotated[int, Ge(1)] = 3
    """[calls] How often in a row it must be so before one is drained."""

    _calm: int = field(default=0, init=False, repr=False)
    _drained_ns: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def start(self, rng: np.random.Generator) -> None:
        """Need no random numbers."""

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Compare the load per replica with both thresholds."""
        # what it has drained still looks up in reports that are older
        known_ns = fleet.now_ns - seconds_to_ns(self.view_age_s)
        self._drained_ns = {i: at for i, at in self._drained_ns.items() if at >= known_ns}
        mine = [each for each in by_replica(fleet.replicas) if each.pool == self.pool]
        up = [each for each in mine if each.state == "up" and each.replica not in self._drained_ns]
        coming = sum(report.state == "booting" for report in mine)
        spare = any(report.state in ("off", "failed") for report in mine)
        load = sum(report.running + report.waiting for report in up)
        self._calm = self._calm + 1 if load < self.below * len(up) else 0
        few = len(up) + coming < self.least
        if spare and (few or load > self.above * (len(up) + coming)):
            return [Add(self.pool)]
        if self._calm >= self.patience and len(up) > self.least and not coming:
            self._calm = 0
            _, emptiest = min((report.running + report.waiting, report.replica) for report in up)
            self._drained_ns[emptiest] = fleet.now_ns
            return [Drain(emptiest)]
        return []


@CONTROL.register("schedule")
@dataclass
class Schedule:
    """Drain, fail and add replicas at given times, for maintenance and for what-ifs."""

    scales: ClassVar[bool] = True

    drain_at_s: dict[int, float] = field(default_factory=dict)
    """[s] When a replica is drained, by its index."""
    fail_at_s: dict[int, float] = field(default_factory=dict)
    """[s] When a replica fails, by its index."""
    add_at_s: list[float] = field(default_factory=list)
    """[s] When a replica of the first pool is added."""
    period_s: Annotated[float, Gt(0)] = 1.0
    """[s] Time between two looks at the clock."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of the reports."""

    _from_s: float = field(default=-1.0, init=False, repr=False)

    def start(self, rng: np.random.Generator) -> None:
        """Need no random numbers."""

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Return what has come due since the last call."""
        now_s = fleet.now_ns / NS_PER_S

        def due(at_s: float) -> bool:
            return self._from_s < at_s <= now_s

        todo: list[Action] = [Add(0) for at_s in self.add_at_s if due(at_s)]
        todo += [Drain(replica) for replica, at_s in self.drain_at_s.items() if due(at_s)]
        todo += [Fail(replica) for replica, at_s in self.fail_at_s.items() if due(at_s)]
        self._from_s = now_s
        return todo


@CONTROL.register("evacuate")
@dataclass
class Evacuate:
    """Move decoding requests off draining replicas, to where most KV is free."""

    migrates: ClassVar[bool] = True

    period_s: Annotated[float, Gt(0)] = 0.1
    """[s] Time between two calls."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of the reports."""

    def start(self, rng: np.random.Generator) -> None:
        """Need no random numbers."""

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Move one request off each draining replica, the shortest first."""
        up = [r for r in fleet.replicas if r.state == "up" and r.role != "prefill"]
        moves: list[Action] = []
        for source in fleet.replicas:
            running = fleet.decoding(source.replica) if source.state == "draining" else ()
            if running and up:
                target = max(up, key=lambda report: (report.kv_free, -report.replica))
                victim = min(running, key=lambda one: (one.tokens, one.request.index))
                moves.append(Migrate(victim.request.index, source.replica, target.replica))
        return moves


@CONTROL.register("balance-roles")
@dataclass
class BalanceRoles:
    """Turn a replica over to prefill or to decode when the other side has work piling up.

    Prompts pile up as tokens in line on prefill replicas, decodes as KV blocks that are in use or
    asked for on decode replicas.
    """

    flips: ClassVar[bool] = True

    period_s: Annotated[float, Gt(0)] = 1.0
    """[s] Time between two calls."""
    view_age_s: Annotated[float, Ge(0)] = 0.0
    """[s] Age of the reports."""
    prompts_above: Annotated[float, Gt(0)] = 16384.0
    """[tokens] In line per prefill replica; beyond it prompts pile up."""
    prompts_below: Annotated[float, Ge(0)] = 4096.0
    """[tokens] In line per prefill replica; under it one of several may go."""
    kv_above: Annotated[float, Gt(0)] = 0.9
    """[fraction] KV blocks in use or asked for on decode replicas; beyond it decodes pile up."""
    kv_below: Annotated[float, Ge(0)] = 0.6
    """[fraction] The same of the rest, if one went; under it one of several may go."""
    patience: Annotated[int, Ge(1)] = 2
    """[calls] How often in a row it must be so."""

    _for: str = field(default="", init=False, repr=False)
    _calls: int = field(default=0, init=False, repr=False)

    def start(self, rng: np.random.Generator) -> None:
        """Need no random numbers."""

    def act(self, fleet: FleetReport) -> Sequence[Action]:
        """Compare both piles; wait while a replica is between two roles."""
        if any(report.state in ("draining", "switching") for report in fleet.replicas):
            self._calls = 0
            return []
        up = [report for report in by_replica(fleet.replicas) if report.state == "up"]
        prefill = [report for report in up if report.role == "prefill"]
        decode = [report for report in up if report.role == "decode"]
        wanted = self._wanted(prefill, decode)
        self._calls = self._calls + 1 if wanted == self._for else 1
        self._for = wanted
        if not wanted or self._calls < self.patience:
            return []
        self._calls = 0
        of = decode if wanted == "prefill" else prefill
        idlest = min(of, key=lambda r: (r.waiting_tokens, r.kv_used, r.replica))
        return [SetRole(idlest.replica, wanted)]

    def _wanted(self, prefill: list[ReplicaReport], decode: list[ReplicaReport]) -> str:
        """Return the role that one more replica should have; empty if none."""
        if not prefill or not decode:
            return ""
        prompts = sum(report.waiting_tokens for report in prefill) / len(prefill)
        wanted = sum(report.kv_used + report.waiting_blocks for report in decode)
        whole = sum(report.kv_blocks for report in decode)
        if wanted > self.kv_above * whole and prompts < self.prompts_below and len(prefill) > 1:
            return "decode"
        rest = whole - max(report.kv_blocks for report in decode)
        if wanted <= self.kv_below * rest and prompts > self.prompts_above:
            return "prefill"
        return ""
