"""Weights that a replica reads again: each of its attention ranks its share, all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from llmsim.serving.flows import Flow, Flows

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica


def members_of(replicas: Sequence[Replica], index: int) -> Sequence[Replica]:
    """Return all attention ranks of a replica, itself where it is one, by the index of any."""
    replica = replicas[index]
    return [replica] if replica.ranks is None else replica.ranks.members


def read_weights(
    flows: Flows,
    members: Sequence[Replica],
    weights_bytes: float,
    bytes_per_s: float,
    done: Callable[[], None],
) -> None:
    """Read the weights of a replica from their store.

    Parameters
    ----------
    flows : Flows
        Whose resource ``2 i + 1``, where there are any, is what comes in to rank i.
    members : sequence of Replica
        All its attention ranks.
    weights_bytes : float [bytes]
        Of all of them.
    bytes_per_s : float [bytes/s]
        Most that the store gives to all of them.
    done : callable
        Called when the last byte is there.
    """
    waits = {replica.index for replica in members}

    def loaded(rank: int, _: Flow) -> None:
        waits.discard(rank)
        if not waits:
            done()

    for replica in members:
        flows.start(
            (2 * replica.index + 1,) if flows.resources else (),
            weights_bytes / len(members),
            partial(loaded, replica.index),
            rank=-1 - replica.index,
            cap_bytes_per_s=bytes_per_s / len(members),
        )
