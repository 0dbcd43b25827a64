"""What is sent layer by layer: when it can go, and what becomes of it if there is no next token.

A layer goes before anybody can know that the first token will be the only one. Such a request is
routed, queued and sent like any other, and is called back when the step has run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.core.units import NS_PER_S
from llmsim.serving.request import LOADING, WAITING, Request

if TYPE_CHECKING:
    from llmsim.serving.handoff import Lease


@dataclass(frozen=True, slots=True)
class LayerPart:
    """All layers of a request's KV but the last, sent while the step that makes them runs.

    Parameters
    ----------
    wait_ns : int [ns]
        Until the first layer is ready.
    lead_ns : int [ns]
        What the messages cost.
    size_bytes : float [bytes]
    cap_bytes_per_s : float [bytes/s]
        Not faster than the layers are computed; infinite where messages alone take longer.
    """

    wait_ns: int
    lead_ns: int
    size_bytes: float
    cap_bytes_per_s: float


def part_by_layer(
    begun_ns: int, due_ns: int, now_ns: int, layers: int, size_bytes: float, lead_ns: int
) -> LayerPart:
    """Return what is sent before the last layer is ready.

    Layer i of L is ready at ``begun + i (due - begun) / L``. With x what one layer takes alone on
    the way, messages included, the last has come at ``max(max(ready_1, now) + L x, due + x)``.

    Parameters
    ----------
    begun_ns, due_ns : int [ns]
        Of the step that computes the KV.
    now_ns : int [ns]
        When there is room for it.
    layers : int [layers]
        Two or more.
    size_bytes : float [bytes]
        All layers.
    lead_ns : int [ns]
        Messages of all layers.
    """
    first_ns = max(now_ns, begun_ns - (begun_ns - due_ns) // layers)
    share = (layers - 1) / layers
    lead, size = round(lead_ns * share), size_bytes * share
    window_ns = due_ns - first_ns - lead
    # flows end at the next whole nanosecond: half of one less has them end as the step does
    cap = size * NS_PER_S / (window_ns - 0.5) if size and window_ns > 0 else math.inf
    return LayerPart(first_ns - now_ns, lead, size, cap)


def call_back(request: Request, lease: Lease) -> None:
    """End a request where its prompt was computed: it has had its last token there.

    Wherever it has got to in the meantime, it gives back what it holds; a transfer under way stops.
    """
    source, target = lease.source, request.replica
    if target is None or target.board is None:
        raise InvariantError(f"request {request.view.index} was sent nowhere")
    now = source.clock.now
    if target is not source:
        if request.state == WAITING:
            target.port.withdraw(request)
        elif request.state == LOADING:
            target.port.give_up(request)
        target.board.change(target.slot, -1, now)
    if lease.flow is not None:
        lease.flows.cancel(lease.flow)
    request.lease, request.replica = None, source
    source.port.take_back(lease)
    source.delivery.close(request, now)
