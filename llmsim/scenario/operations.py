"""What happens to a fleet while it runs: keys of a scenario file."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt

from llmsim.scenario.section import Section


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
