"""CUDA graphs of one kind of step, captured into memory that they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Captures:
    """Captures graphs one after the other, the largest first, so that the others fit in its memory.

    Parameters
    ----------
    torch : module
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        # all on one stream: memory of another stream's captures would not be used again
        self._stream: Any = None
        self._pool: Any = None

    def graph_of(self, forward: Callable[[], Any]) -> tuple[Any, Any]:
        """Return a graph of a call, and the tensor that its result comes out in.

        Parameters
        ----------
        forward : callable
            Runs once before: libraries load and kernels compile, which no capture allows.
        """
        cuda = self._torch.cuda
        if self._stream is None:
            self._stream = cuda.Stream()
        stream = self._stream
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            forward()
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, pool=self._pool, stream=stream):
            out = forward()
        self._pool = graph.pool()
        return graph, out
