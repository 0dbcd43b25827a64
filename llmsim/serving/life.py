"""Replicas that come and go: boot, drain, removal, failure; and since when each is paid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.results.changes import FleetChange
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.flows import FLOW_PRIORITY, Flows
from llmsim.serving.request import Request
from llmsim.serving.wake import Wake
from llmsim.serving.weights import members_of, read_weights

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.gateway import Gateway
    from llmsim.serving.migration import Migrations
    from llmsim.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class BootPlan:
    """What it takes until a new replica takes work.

    Parameters
    ----------
    provision_ns : int [ns]
        Until the machine is there; paid for from then on.
    weights_bytes : tuple of float [bytes]
        Of one replica of each pool.
    weights_bytes_per_s : float [bytes/s]
        Most that the store of weights gives to one replica.
    warm_up_ns : int [ns]
        From the last weight to the first request.
    detect_ns : int [ns]
        Until the gateway knows of a failure and sends its requests elsewhere.
    """

    provision_ns: int
    weights_bytes: tuple[float, ...]
    weights_bytes_per_s: float
    warm_up_ns: int
    detect_ns: int


class Life:
    """The state of every replica: ``off``, ``booting``, ``up``, ``draining`` or ``failed``.

    Attention ranks of one replica come and go together; any of their indices stands for all.

    Parameters
    ----------
    clock : Clock
    plan : BootPlan
    replicas : sequence of Replica
    spare : set of int
        Replicas that are off at first.
    fleet : Fleet
    gateway : Gateway
    flows : Flows
    told : callable
        Hears of every change.

    Attributes
    ----------
    states : list of str
        Of each replica.
    migrations : Migrations or None
        Set by whoever makes them.
    """

    def __init__(
        self,
        clock: Clock,
        plan: BootPlan,
        replicas: Sequence[Replica],
        spare: set[int],
        fleet: Fleet,
        gateway: Gateway,
        flows: Flows,
        told: Callable[[FleetChange], None],
    ) -> None:
        self._clock = clock
        self._plan = plan
        self._replicas = replicas
        self._fleet = fleet
        self._gateway = gateway
        self._flows = flows
        self._told = told
        self.migrations: Migrations | None = None
        self.states = ["off" if replica.index in spare else "up" for replica in replicas]
        self._since_ns = [-1 if replica.index in spare else 0 for replica in replicas]
        self._billed_ns = [0] * len(replicas)
        self._draining: set[int] = set()
        for replica in replicas:
            for delivery in replica.port.deliveries():
                delivery.lose = self._lost
            if replica.index in spare and replica.turn == replica.index:
                gateway.close(replica.slot)

    def billed_ns(self, end_ns: int) -> list[int]:
        """Return for how long each replica is paid for up to a time [ns]."""
        return [
            done + (end_ns - since if 0 <= since < end_ns else 0)
            for done, since in zip(self._billed_ns, self._since_ns, strict=True)
        ]

    # --- coming -----------------------------------------------------------------------------

    def add(self, pool: int) -> str:
        """Boot a replica of a pool; return why that cannot be, or nothing."""
        free = [
            replica.index
            for replica in self._replicas
            if replica.pool == pool
            and replica.turn == replica.index
            and self.states[replica.index] in ("off", "failed")
        ]
        if not free:
            return "no spare replica"
        index = free[0]
        self._set(index, "booting")
        self._later(self._plan.provision_ns, lambda: self._load(index))
        return ""

    def _members(self, index: int) -> Sequence[Replica]:
        return members_of(self._replicas, index)

    def _load(self, index: int) -> None:
        plan, members = self._plan, self._members(index)
        for replica in members:
            self._since_ns[replica.index] = self._clock.now
        read_weights(
            self._flows,
            members,
            plan.weights_bytes[members[0].pool],
            plan.weights_bytes_per_s,
            lambda: self._later(plan.warm_up_ns, lambda: self._open(index)),
        )

    def _open(self, index: int) -> None:
        self._set(index, "up")
        self._gateway.open(self._replicas[index].slot)

    # --- going ------------------------------------------------------------------------------

    def drain(self, index: int) -> str:
        """Let a replica take no more work; it goes when it is empty."""
        if self.states[index] != "up":
            return f"is {self.states[index]}"
        first = self._replicas[self._replicas[index].turn]
        self._gateway.close(first.slot)
        self._draining.add(first.index)
        self._set(first.index, "draining")
        for replica in self._members(first.index):
            for request in replica.line.requests():
                if request.lease is None and not request.generated:
                    replica.port.withdraw(request)
                    self._fleet.requeue(request)
        self._later(0, lambda: self.look(first))
        return ""

    def look_soon(self, replica: Replica) -> None:
        """Look at a draining replica after the calls of this instant."""
        if replica.turn in self._draining:
            self._later(0, lambda: self.look(replica))

    def look(self, replica: Replica) -> None:
        """Switch off a replica that was draining and is empty."""
        index = replica.turn
        if index not in self._draining:
            return
        if not all(member.port.empty() for member in self._members(index)):
            return
        self._draining.discard(index)
        self._stop(index, "off")

    def fail(self, index: int) -> str:
        """Let a replica stop dead at the end of its step: its KV is gone, its requests retried."""
        if self.states[index] not in ("up", "draining"):
            return f"is {self.states[index]}"
        index = self._replicas[index].turn
        self._gateway.close(self._replicas[index].slot)
        self._draining.discard(index)
        self._stop(index, "failed")
        for replica in self._members(index):
            if self.migrations is not None:
                self.migrations.fail(replica)
            for request in replica.line.requests():
                replica.port.withdraw(request)
                self.strand(request)
            replica.port.fail()
        return ""

    def _lost(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.strand(request)

    def strand(self, request: Request) -> None:
        """Send a request elsewhere as soon as the gateway has noticed that it must."""
        self._fleet.set_adrift(request)
        due = max(self._clock.now + self._plan.detect_ns, request.last_token_ns)
        wake = Wake(lambda _: self._fleet.requeue(request))
        self._clock.at(wake, ARRIVAL_PRIORITY, due)

    def _stop(self, index: int, state: str) -> None:
        for replica in self._members(index):
            since = self._since_ns[replica.index]
            if since >= 0:
                self._billed_ns[replica.index] += self._clock.now - since
            self._since_ns[replica.index] = -1
        self._set(index, state)

    def _set(self, index: int, state: str) -> None:
        if self.states[index] == state:
            raise InvariantError(f"replica {index} is {state} already")
        for replica in self._members(index):
            self.states[replica.index] = state
        self._told(FleetChange(self._clock.now, state, index))

    def _later(self, wait_ns: int, do: Callable[[], None]) -> None:
        self._clock.at(Wake(lambda _: do()), FLOW_PRIORITY, self._clock.now + wait_ns)
