"""Decode steps as CUDA graphs, captured before the clock starts; attention by our Triton kernel."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from llmsim.specs.engine import EngineLimits
from llmsim_kernels.engine.cache import PagedCache, slots_of
from llmsim_kernels.engine.captures import Captures
from llmsim_kernels.engine.launches import table_row
from llmsim_kernels.engine.model import Decoder
from llmsim_kernels.engine.scheduler import Slice
from llmsim_kernels.engine.watch import Watch

_FIRST_CONTEXT = 1024
_CONTEXT_RATIO = 4
"""Contexts for which the kernel's split is chosen: 1k, 4k, 16k, ... tokens. A graph is fixed, and
one that is cut for 128k tokens would waste launches on short contexts."""


@dataclass
class DecodeAttention:
    """Writes one token of each request and attends with the paged decode kernel.

    Parameters
    ----------
    cache : PagedCache
    slots : Tensor (requests,)
    table : Tensor (requests, blocks), int32
    contexts : Tensor (requests,), int32 [tokens]
        The new token included.
    longest : int [tokens]
        No context is longer.
    """

    cache: PagedCache
    slots: Any
    table: Any
    contexts: Any
    longest: int

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Return the mix that each query sees (requests, heads, head_dim)."""
        self.cache.write(layer, self.slots, k, v)
        return self.attend(layer, q)

    def attend(self, layer: int, q: Any) -> Any:
        """Attend to what is in the cache."""
        from llmsim_kernels.ops.paged_decode import paged_decode

        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return paged_decode(q.contiguous(), keys, values, self.table, self.contexts, self.longest)


class DecodeGraphs:
    """One graph for each captured batch size and context limit.

    Parameters
    ----------
    decoder : Decoder
    cache : PagedCache
    limits : EngineLimits
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, limits: EngineLimits) -> None:
        torch = decoder.torch
        self.torch, self.decoder, self.cache, self.limits = torch, decoder, cache, limits
        captured = limits.graph_sizes()
        # as far as the first that holds everybody: larger ones would never be asked for
        self.sizes = captured[: bisect_left(captured, limits.max_num_seqs) + 1]
        device = cache.keys[0].device
        rows = max(limits.max_num_seqs, *self.sizes, 1)
        width = -(-limits.max_model_len // limits.block_tokens)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._slots = torch.zeros(rows, dtype=torch.int64, device=device)
        self._table = torch.zeros((rows, width), dtype=torch.int32, device=device)
        self._contexts = torch.ones(rows, dtype=torch.int32, device=device)
        self._all = torch.arange(rows, device=device)
        pinned = device.type == "cuda"  # so that copies run beside the host
        self._pinned_numbers = torch.zeros((rows, 4), dtype=torch.int64, pin_memory=pinned)
        self._pinned_table = torch.zeros((rows, width), dtype=torch.int32, pin_memory=pinned)
        self._numbers, self._host_table = self._pinned_numbers.numpy(), self._pinned_table.numpy()
        self.contexts = _context_steps(limits.max_model_len)
        self._captures = Captures(torch)
        self._graphs: dict[tuple[int, int], tuple[Any, Any]] = {}
        with torch.inference_mode():
            for size in reversed(self.sizes):  # the largest first: the others fit into its memory
                for longest in self.contexts:
                    self._graphs[size, longest] = self._capture(size, longest)

    def _forward(self, size: int, longest: int) -> Any:
        attention = DecodeAttention(
            self.cache, self._slots[:size], self._table[:size], self._contexts[:size], longest
        )
        return self.decoder.forward(
            self._tokens[:size], self._positions[:size], self._all[:size], attention
        )

    def _capture(self, size: int, longest: int) -> tuple[Any, Any]:
        """Return a graph and the tensor that its next tokens come out in."""
        return self._captures.graph_of(lambda: self._forward(size, longest))

    def run(self, slices: list[Slice], watch: Watch | None = None) -> list[int]:
        """Run a step of decodes alone and return their next tokens."""
        count = len(slices)
        size = next((size for size in self.sizes if size >= count), 0)
        self._fill(slices, size or count)
        needed = max(part.past + 1 for part in slices)
        longest = next(limit for limit in self.contexts if limit >= needed)
        if watch is not None:
            watch.launching()
        if size:
            graph, out = self._graphs[size, longest]
            graph.replay()
        else:
            out = self._forward(count, longest)
        if watch is not None:
            watch.launched()
        return list(out[:count].tolist())

    def _fill(self, slices: list[Slice], size: int) -> None:
        """Bring the step's numbers to the device in one copy each; padded rows use block 0."""
        count = len(slices)
        block, width = self.limits.block_tokens, self._table.shape[1]
        numbers, table = self._numbers, self._host_table
        numbers[:count, 0] = [part.sequence.tokens[-1] for part in slices]
        numbers[:count, 1] = [part.past for part in slices]
        numbers[:count, 2] = [slots_of(part, block)[0] for part in slices]
        numbers[:count, 3] = numbers[:count, 1] + 1
        numbers[count:size] = (0, 0, 0, 1)
        for row, part in enumerate(slices):
            table[row] = table_row(part.sequence, width)
        table[count:size] = 0
        moved = self._pinned_numbers[:size].to(self._tokens.device, non_blocking=True)
        self._tokens[:size], self._positions[:size] = moved[:, 0], moved[:, 1]
        self._slots[:size], self._contexts[:size] = moved[:, 2], moved[:, 3]
        self._table[:size].copy_(self._pinned_table[:size], non_blocking=True)


def _context_steps(most: int) -> tuple[int, ...]:
    """Return the context limits of the graphs, the last being `most`."""
    found = []
    step = _FIRST_CONTEXT
    while step < most:
        found.append(step)
        step *= _CONTEXT_RATIO
    return (*found, most)
