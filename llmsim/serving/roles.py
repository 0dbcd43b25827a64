"""Replicas that change their role while the fleet runs: what happens to their work, and the price.

Where roles may change, every replica stands behind both doors, that of arrivals and that of prompts
that have been computed, and one of the two, or both, is closed. A change closes the doors of the
old role, sends those elsewhere who wait there for it, lets the rest come to its end, and opens the
doors of the new role when its price has been paid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.results.changes import FleetChange
from llmsim.serving.clock import Clock
from llmsim.serving.flows import FLOW_PRIORITY, Flows
from llmsim.serving.wake import Wake
from llmsim.serving.weights import members_of, read_weights

if TYPE_CHECKING:
    from llmsim.serving.board import LoadBoard
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.gateway import Gateway
    from llmsim.serving.handoff import Handoff
    from llmsim.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class FlipPlan:
    """What it takes until a replica does the work of another role.

    Parameters
    ----------
    drain : bool
        The new role begins when the last work of the old one has left; else beside it.
    switch_ns : int [ns]
        From then to the first work of the new role.
    weights_bytes : tuple of float [bytes]
        Of one replica of each pool, read again before the new role begins; 0: they stay.
    weights_bytes_per_s : float [bytes/s]
        Most that the store of weights gives to one replica.
    """

    drain: bool = True
    switch_ns: int = 0
    weights_bytes: tuple[float, ...] = ()
    weights_bytes_per_s: float = 0.0


class Roles:
    """The role of every replica, and who is about to change it.

    Parameters
    ----------
    clock : Clock
    plan : FlipPlan
    replicas : sequence of Replica
        Attention ranks of one change together; any of their indices stands for all.
    doors : sequence of Replica
        The first rank of each, in their places behind both doors.
    roles : sequence of str
        Of each replica at first.
    fleet : Fleet
    gateway : Gateway
        The door of arrivals.
    handoff : Handoff
        The door of prompts that have been computed.
    decoders : LoadBoard
        What the router of the handoff sees.
    flows : Flows
    told : callable
        Hears of every change.

    Attributes
    ----------
    roles : list of str
        Of each replica; where it is being changed, what it will be.
    changing : dict of int to str
        Replicas that have no role now, by their first rank, with ``draining`` or ``switching``.
    """

    def __init__(
        self,
        clock: Clock,
        plan: FlipPlan,
        replicas: Sequence[Replica],
        doors: Sequence[Replica],
        roles: Sequence[str],
        fleet: Fleet,
        gateway: Gateway,
        handoff: Handoff,
        decoders: LoadBoard,
        flows: Flows,
        told: Callable[[FleetChange], None],
    ) -> None:
        self._clock = clock
        self._plan = plan
        self._replicas = replicas
        self._doors = doors
        self._fleet = fleet
        self._gateway = gateway
        self._handoff = handoff
        self._board = decoders
        self._flows = flows
        self._told = told
        self.roles = list(roles)
        self.changing: dict[int, str] = {}
        gateway.elsewhere = self._taker_of_arrivals
        handoff.elsewhere = self._decoder
        handoff.freed = self.look_soon
        for door in doors:
            if roles[door.index] == "decode":
                gateway.close(door.slot)
            else:
                decoders.close(door.slot)

    # --- who takes what ---------------------------------------------------------------------

    def _taker_of_arrivals(self, chosen: int) -> int:
        return self._of_role(chosen, ("mixed", "prefill"))

    def _decoder(self, chosen: int) -> int:
        return self._of_role(chosen, ("decode",))

    def _of_role(self, chosen: int, roles: tuple[str, ...]) -> int:
        """Return a door whose replica has one of the roles now, the chosen one if it has; or -1.

        Choices that are blind to the role are spread evenly over those who have it.
        """
        changing, doors = self.changing, self._doors
        index = doors[chosen].index
        if self.roles[index] in roles and index not in changing:
            return chosen
        open_now = [
            door.slot
            for door in doors
            if self.roles[door.index] in roles and door.index not in changing
        ]
        return open_now[chosen % len(open_now)] if open_now else -1

    def states(self, others: Sequence[str]) -> list[str]:
        """Return the state of every replica for reports, where those without a role now differ."""
        return [
            self.changing.get(replica.turn, state)
            for replica, state in zip(self._replicas, others, strict=True)
        ]

    # --- a change ---------------------------------------------------------------------------

    def set_role(self, index: int, role: str) -> str:
        """Begin to change the role of a replica; return why that cannot be, or nothing."""
        if role not in ("mixed", "prefill", "decode"):
            raise InvariantError(f"a controller asks for the role {role!r}")
        index = self._replicas[index].turn
        old = self.roles[index]
        if index in self.changing:
            return f"is {self.changing[index]}"
        if old == role:
            return f"is {role} already"
        others = [door.index for door in self._doors if door.index != index]
        rest = {self.roles[other] for other in others if other not in self.changing}
        if "decode" not in rest and old == "decode":
            return "the last that decodes for others"
        if rest == {"decode"} or not rest:
            return "the last that takes arrivals"
        for replica in members_of(self._replicas, index):
            self.roles[replica.index] = role
        self.changing[index] = "draining"
        self._tell(f"to {role}", index)
        self._close(index, old)
        if self._plan.drain:
            self._later(0, lambda: self._look(index))
        else:
            self._pay(index)
        return ""

    def _close(self, index: int, old: str) -> None:
        """Close the door of the old role, and send those elsewhere who wait behind it."""
        slot = self._replicas[index].slot
        if old == "decode":
            self._board.close(slot)
        else:
            self._gateway.close(slot)
        for replica in members_of(self._replicas, index):
            for request in replica.line.requests():
                lease = request.lease
                if lease is not None:
                    replica.port.withdraw(request)
                    self._handoff.route_again(request, lease)
                elif not request.generated and old != "decode":
                    replica.port.withdraw(request)
                    self._fleet.requeue(request)

    def look_soon(self, replica: Replica) -> None:
        """Look at a replica that drains after the calls of this instant."""
        if self.changing.get(replica.turn) == "draining" and self._plan.drain:
            self._later(0, lambda: self._look(replica.turn))

    def _look(self, index: int) -> None:
        if self.changing.get(index) != "draining":
            return
        if all(replica.port.empty() for replica in members_of(self._replicas, index)):
            self.changing[index] = "switching"
            self._pay(index)

    def _pay(self, index: int) -> None:
        """Let pass what the change takes, then open the doors of the new role."""
        plan = self._plan
        size = plan.weights_bytes[self._replicas[index].pool] if plan.weights_bytes else 0.0
        if not size:
            self._later(plan.switch_ns, lambda: self._open(index))
            return
        read_weights(
            self._flows,
            members_of(self._replicas, index),
            size,
            plan.weights_bytes_per_s,
            lambda: self._later(plan.switch_ns, lambda: self._open(index)),
        )

    def _open(self, index: int) -> None:
        role = self.roles[index]
        del self.changing[index]
        for replica in members_of(self._replicas, index):
            replica.port.take_role(role == "prefill")
        self._tell(role, index)
        slot = self._replicas[index].slot
        if role == "decode":
            self._board.open(slot)
            self._handoff.try_held()
        else:
            self._gateway.open(slot)

    def _tell(self, what: str, index: int) -> None:
        self._told(FleetChange(self._clock.now, what, index))

    def _later(self, wait_ns: int, do: Callable[[], None]) -> None:
        self._clock.at(Wake(lambda _: do()), FLOW_PRIORITY, self._clock.now + wait_ns)
