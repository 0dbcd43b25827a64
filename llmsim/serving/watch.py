"""Reports of replicas, made when somebody wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsim.policies.reports import ReplicaReport, RunningReport

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica


def report_of(replica: Replica, role: str, state: str) -> ReplicaReport:
    """Return what a replica says of itself now."""
    size = replica.config.block_tokens
    tokens = blocks = head = 0
    if replica.line.count:
        for request in replica.line.requests():
            known = request.prompt + request.generated
            tokens += known
            blocks += -(-known // size)
            head = head or blocks
    return ReplicaReport(
        replica.index,
        replica.pool,
        replica.clock.now,
        role,
        state,
        replica.running,
        replica.waiting,
        tokens,
        blocks,
        head,
        replica.config.kv_blocks,
        replica.port.kv_blocks_used(),
        replica.turn,
    )


def decoding_on(replica: Replica) -> list[RunningReport]:
    """Return the decoding requests of a replica, in running order."""
    size = replica.config.block_tokens
    found = []
    for request, computed in replica.port.decoding():
        generated = computed + 1 - request.prompt
        blocks = -(-computed // size)
        found.append(RunningReport(request.view, computed + 1, generated, blocks))
    return found


class FleetSnapshot:
    """The fleet as it was at one instant; implements `llmsim.policies.reports.FleetReport`.

    Parameters
    ----------
    replicas : sequence of Replica
    roles, states : sequence of str
        Of each replica.
    at_once : bool
        Whether it is read at the instant of which it tells, so that requests can be looked up
        when they are asked for.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        roles: Sequence[str],
        states: Sequence[str],
        at_once: bool,
    ) -> None:
        self.now_ns = replicas[0].clock.now
        self._all = replicas
        self._decoding = None if at_once else [decoding_on(replica) for replica in replicas]
        self.replicas: Sequence[ReplicaReport] = [
            report_of(replica, role, state)
            for replica, role, state in zip(replicas, roles, states, strict=True)
        ]

    def decoding(self, replica: int) -> Sequence[RunningReport]:
        """Return the decoding requests of a replica, in running order, as reported."""
        if self._decoding is None:
            return decoding_on(self._all[replica])
        return self._decoding[replica]
