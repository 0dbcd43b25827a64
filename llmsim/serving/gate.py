"""What a step waits for: transfers that its layers need."""

from __future__ import annotations

import math
from itertools import pairwise

from llmsim.serving.flows import Flow


class Gate:
    """A transfer that a step needs, whole or layer by layer.

    Parameters
    ----------
    flow : Flow
        Tracked.
    size_bytes : float [bytes]
    layers : tuple of int (stages,) [layers]
        Of each stage of the replica, where each layer of the step waits for its own part, which
        come in order; all stages copy side by side. Empty where the step cannot start before all
        has come.

    Attributes
    ----------
    ended_ns : int [ns]
        When the last byte came; -1 before.
    """

    __slots__ = ("_layers", "_size_bytes", "ended_ns", "flow")

    def __init__(self, flow: Flow, size_bytes: float, layers: tuple[int, ...] = ()) -> None:
        self.flow = flow
        self.ended_ns = -1
        self._size_bytes = size_bytes
        self._layers = layers

    def of(self, flow: Flow) -> Gate:
        """Return the same for a copy of the transfer."""
        copy = Gate(flow, self._size_bytes, self._layers)
        copy.ended_ns = self.ended_ns
        return copy

    def end_ns(self, start_ns: int, duration_ns: int, stage: int = 0) -> int:
        """Return when a step ends that starts at `start_ns` and lasts `duration_ns` by itself.

        With layer i of L ready at r(i), that is the latest of r(i) + duration * (L - i + 1) / L:
        a layer starts when the one before has ended and its own part has come.

        Parameters
        ----------
        start_ns, duration_ns : int [ns]
            At one stage, of a step that passes several.
        stage : int
        """
        layers = self._layers[stage] if self._layers else 1
        end = start_ns + duration_ns
        for layer in range(1, layers + 1):
            ready = self._ready_ns(layer / layers)
            end = max(end, math.ceil(ready + duration_ns * (layers - layer + 1) / layers))
        return end

    def _ready_ns(self, frac: float) -> float:
        """Return when a share of the bytes had come."""
        left = self._size_bytes * (1.0 - frac)
        points: list[tuple[int, float]] = [*(self.flow.track or ()), (self.ended_ns, 0.0)]
        for (before_ns, before), (after_ns, after) in pairwise(points):
            if after <= left < before:
                return before_ns + (after_ns - before_ns) * (before - left) / (before - after)
        return self.ended_ns
