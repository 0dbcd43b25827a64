"""What happens to a fleet while it runs: keys of a scenario file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from llmsim.scenario.section import Section

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet


class Migration(Section):
    """How running requests change replicas: their KV is copied while they go on decoding."""

    link: str | None = None
    """Link card of a GPU's port to other replicas; absent: the link out of its GPU card's node."""
    messages: Literal["per-block", "per-layer"] = "per-layer"
    """One message per layer, K or V, and KV block; or one per layer that has been gathered."""
    message_s: Annotated[float, Ge(0)] = 1e-6
    """[s] What a message costs beside its bytes. Assumed: posting an RDMA write."""
    rounds: Annotated[int, Ge(0)] = 3
    """[copies] Copies made while the request goes on decoding, at most."""
    last_blocks: Annotated[int, Ge(0)] = 16
    """[blocks] With no more than these left to copy, the request sits out until they are."""
    handshake_s: Annotated[float, Gt(0)] = 0.001
    """[s] What both ends need to agree on the change, the request sitting out. Assumed."""
    most_per_replica: Annotated[int, Ge(1)] = 1
    """[requests] Moves that one replica takes part in at a time."""


class Gateway(Section):
    """What happens between the router's choice and a replica."""

    most_per_replica: Annotated[int, Ge(0)] = 0
    """[requests] A replica with as many in line or running refuses, and the next one is asked; 0:
    none refuses."""
    hold_s: Annotated[float, Gt(0)] = 60.0
    """[s] How long a request is held whom nobody takes; then it has timed out."""


class Boot(Section):
    """What it takes until an added replica takes work, and until a failure is noticed."""

    provision_s: Annotated[float, Ge(0)] = 30.0
    """[s] Until the machine is there; it is paid for from then on. Assumed."""
    weights_bytes_per_s: Annotated[float, Gt(0)] = 2e9
    """[bytes/s] What the store of weights gives to one replica. Assumed: object storage."""
    warm_up_s: Annotated[float, Ge(0)] = 20.0
    """[s] From the last weight to the first request: graphs, profiling run. Assumed."""
    detect_s: Annotated[float, Ge(0)] = 1.0
    """[s] Until requests of a failed replica are sent elsewhere. Assumed."""


class Flip(Section):
    """What it takes until a replica does the work of another role, where `control` changes roles.

    A replica keeps its GPUs, its plan and its pool's settings whatever its role.
    """

    drain: bool = True
    """The new role begins when the last work of the old one has left; false: beside it."""
    switch_s: Annotated[float, Ge(0)] = 0.0
    """[s] From then to the first work of the new role; 0: one process does either."""
    reload: bool = False
    """Weights are read again before the new role begins."""
    weights_bytes_per_s: Annotated[float, Gt(0)] = 2e9
    """[bytes/s] What the store of weights then gives to one replica. Assumed: object storage."""


def wrong_control(fleet: Fleet) -> dict[str, str]:
    """Return what is missing for a fleet's controllers, and what does not go together, by key."""
    wrong: dict[str, str] = {}
    for at, each in enumerate(fleet.control):
        if fleet.migration is None and getattr(each.cls, "migrates", False):
            wrong["migration"] = f"is missing; control[{at}] '{each.kind}' moves requests"
        if fleet.boot is None and getattr(each.cls, "scales", False):
            wrong["boot"] = f"is missing; control[{at}] '{each.kind}' adds or takes replicas"
        if fleet.flip is None and getattr(each.cls, "flips", False):
            wrong["flip"] = f"is missing; control[{at}] '{each.kind}' changes roles"
    pools = fleet.pools.values()
    if any(pool.beside for pool in pools) and (fleet.migration or fleet.boot or fleet.flip):
        wrong["control"] = "does not go together with pools that share GPUs yet"
    if fleet.migration and any(pool.kv for pool in pools):
        wrong["migration"] = "does not go together with tiers of KV (a pool's kv) yet"
    if fleet.boot and (fleet.hands_over or any(pool.kv for pool in pools)):
        wrong["boot"] = "does not go together with prefill pools, or a pool's kv, yet"
    if fleet.flip and fleet.report_period_s:
        wrong["report_period_s"] = "does not go together with roles that change (flip) yet"
    if fleet.flip and not fleet.hands_over:
        wrong["flip"] = "is for fleets with prefill and decode pools"
    elif fleet.flip and any(pool.kv for pool in pools):
        wrong["flip"] = "does not go together with tiers of KV (a pool's kv) yet"
    return wrong
