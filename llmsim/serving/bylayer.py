"""What is sent layer by layer: when it can go, and what becomes of it if there is no next token.

A layer goes before anybody can know that the first token will be the only one. Such a request is
routed, queued and sent like any other, and is called back when the step has run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.core.units import NS_PER_S
from llmsim.serving.clock import Clock
from llmsim.serving.flows import Flow, Flows
from llmsim.serving.request import LOADING, WAITING, Request
from llmsim.specs.stages import layers_by_stage

if TYPE_CHECKING:
    from llmsim.serving.handoff import Lease


class LayerWay:
    """KV on its way layer by layer, from a replica or one of its stages, to another replica.

    Layer i of L is ready at ``begun + i (due - begun) / L``. With x what one layer takes alone on
    the way, messages included, the last has come at ``max(max(ready_1, now) + L x, due + x)``. All
    layers but the last are one transfer that is no faster than they are computed, the last is one.

    Parameters
    ----------
    flows : Flows
    clock : Clock
    path : tuple of int
        Resources.
    rank : int
        Of its transfers among those that end together.
    arrived : callable
        Called with the last flow when all is there.

    Attributes
    ----------
    flow : Flow or None
        The transfer under way.
    """

    __slots__ = (
        "_arrived", "_begun_ns", "_clock", "_due_ns", "_flows", "_layers", "_lead_ns", "_path",
        "_rank", "_size_bytes", "flow",
    )  # fmt: skip

    def __init__(
        self,
        flows: Flows,
        clock: Clock,
        path: tuple[int, ...],
        rank: int,
        arrived: Callable[[Flow], None],
    ) -> None:
        self._flows = flows
        self._clock = clock
        self._path = path
        self._rank = rank
        self._arrived = arrived
        self._begun_ns = self._due_ns = self._lead_ns = 0
        self._layers = 1
        self._size_bytes = 0.0
        self.flow: Flow | None = None

    def expect(
        self, begun_ns: int, due_ns: int, layers: int, size_bytes: float, lead_ns: int
    ) -> None:
        """Say what is computed for this way.

        Parameters
        ----------
        begun_ns, due_ns : int [ns]
            Of the work that computes the KV.
        layers : int [layers]
        size_bytes : float [bytes]
            All layers.
        lead_ns : int [ns]
            Messages of all layers.
        """
        self._begun_ns, self._due_ns, self._layers = begun_ns, due_ns, layers
        self._size_bytes, self._lead_ns = size_bytes, lead_ns

    def start_with(self, size_bytes: float, lead_ns: int) -> None:
        """Send what earlier steps have computed [bytes], after its messages [ns]; then the rest.

        Where a stage has yet to begin, the parts of the prompt before may still be in work there.
        """
        lead_ns += max(0, self._begun_ns - self._clock.now)
        self.flow = self._flows.start(
            self._path, size_bytes, self._send, rank=self._rank, lead_ns=lead_ns
        )

    def start(self) -> None:
        """Send layer by layer from now on."""
        now = self._clock.now
        layers, size, lead_ns = self._layers, self._size_bytes, self._lead_ns
        path, rank, left_ns = self._path, self._rank, self._due_ns - now
        if left_ns <= 0 or layers == 1:
            lead_ns += max(0, left_ns)
            self.flow = self._flows.start(path, size, self._arrived, rank=rank, lead_ns=lead_ns)
            return
        first_ns = max(now, self._begun_ns - (self._begun_ns - self._due_ns) // layers)
        share = (layers - 1) / layers
        lead_ns, size = round(lead_ns * share), size * share
        window_ns = self._due_ns - first_ns - lead_ns
        # flows end at the next whole nanosecond: half of one less has them end as the step does
        cap = size * NS_PER_S / (window_ns - 0.5) if size and window_ns > 0 else math.inf
        self.flow = self._flows.start(
            path,
            size,
            self._send_last,
            rank=rank,
            lead_ns=first_ns - now + lead_ns,
            cap_bytes_per_s=cap,
        )

    def _send(self, _: Flow) -> None:
        self.start()

    def _send_last(self, _: Flow) -> None:
        share = (self._layers - 1) / self._layers
        wait_ns = max(0, self._due_ns - self._clock.now)
        wait_ns += self._lead_ns - round(self._lead_ns * share)
        rest = self._size_bytes - self._size_bytes * share
        self.flow = self._flows.start(
            self._path, rest, self._arrived, rank=self._rank, lead_ns=wait_ns
        )


class _Meeting:
    """What is done when all stages are done with it."""

    __slots__ = ("_done", "_missing")

    def __init__(self, count: int, done: Callable[[Flow], None]) -> None:
        self._missing = count
        self._done = done

    def join(self, flow: Flow) -> None:
        """Note that one more is done."""
        self._missing -= 1
        if not self._missing:
            self._done(flow)


def go_by_layer(
    lease: Lease,
    clock: Clock,
    path: tuple[int, ...],
    rank: int,
    layers: int,
    first_bytes: float,
    first_ns: int,
    size_bytes: float,
    lead_ns: int,
    arrived: Callable[[Flow], None],
) -> None:
    """Start to send KV while the last step that makes some of it still runs.

    Stages of a pipeline send side by side, each its own layers over ports of its own.

    Parameters
    ----------
    lease : Lease
        Of who computes it.
    clock : Clock
    path : tuple of int
        Resources of all its transfers.
    rank : int
    layers : int [layers]
        Of the model.
    first_bytes : float [bytes]
        What earlier steps have computed.
    first_ns : int [ns]
        Of its messages; -1 where there is nothing of that.
    size_bytes : float [bytes]
        What the last step computes.
    lead_ns : int [ns]
        Of its messages.
    arrived : callable
        Called with the last flow when all is there.
    """
    windows = lease.windows
    counts: tuple[int, ...] = (layers,)
    if windows:
        counts = layers_by_stage(layers, len(windows))
        arrived = _Meeting(len(windows), arrived).join
    else:
        windows = [(lease.begun_ns, lease.due_ns)]
    ports = lease.source.port.stage_resources
    for stage, (begun_ns, due_ns) in enumerate(windows):
        own = counts[stage]
        share = own / layers
        way = LayerWay(lease.flows, clock, (ports[stage], *path) if ports else path, rank, arrived)
        way.expect(begun_ns, due_ns, own, size_bytes * share, round(lead_ns * share))
        lease.ways.append(way)
        if first_ns < 0:
            way.start()
        else:
            way.start_with(first_bytes * share, round(first_ns * share))


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
    lease.stop()
    arrived = request.lease is None  # in this very instant, and has given back what it left
    request.lease, request.replica = None, source
    if not arrived:
        source.port.take_back(lease)
    source.delivery.close(request, now)
