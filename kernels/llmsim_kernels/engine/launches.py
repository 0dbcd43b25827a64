"""Steps with prompts on a GPU: numbers in two copies, attention in two launches a layer.

Everything that a launch takes from the step lies in device memory at fixed places, so that a graph
of a captured size serves any step that fits it: tokens are padded, and so are the requests that
decode and the tiles of prompts, to which nothing belongs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmsim.specs.engine import EngineLimits
from llmsim_kernels.engine.cache import PagedCache
from llmsim_kernels.engine.captures import Captures
from llmsim_kernels.engine.model import Decoder
from llmsim_kernels.engine.scheduler import Sequence, Slice
from llmsim_kernels.engine.watch import Watch

DECODES = (32, 96, 256)
"""Requests that decode beside prompts, for which graphs are captured, as far as so many may run."""


_LINE = 32
"""Numbers to whose multiples parts of a buffer are filled up."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a step may have, or has when it is launched without a graph.

    Parameters
    ----------
    tokens, decodes, prompts, tiles, sampled : int
        New tokens; requests that decode and that do not; query tiles; tokens that are sampled.
    width : int [blocks]
        Of a row of the block table.
    """

    tokens: int
    decodes: int
    prompts: int
    tiles: int
    sampled: int
    width: int

    def holds(self, other: Room) -> bool:
        """Whether a step of the other's size fits into this."""
        mine = (self.tokens, self.decodes, self.prompts, self.tiles, self.sampled)
        its = (other.tokens, other.decodes, other.prompts, other.tiles, other.sampled)
        return all(most >= size for most, size in zip(mine, its, strict=True))

    @property
    def longs(self) -> tuple[int, ...]:
        """Numbers in each part of the int64 buffer: tokens, positions, slots, sampled."""
        return self.tokens, self.tokens, self.tokens, self.sampled

    @property
    def ints(self) -> tuple[int, ...]:
        """Numbers in each part of the int32 buffer, see `Views`."""
        rows = self.prompts + 1  # and one without tokens, to which spare tiles belong
        return (
            self.decodes * self.width,
            rows * self.width,
            self.decodes,
            rows,
            rows + 1,
            self.tiles,
            self.tiles,
        )


def whole_lines(count: int) -> int:
    """Return the numbers that a part takes: a kernel is compiled anew for one that is not aligned.

    Parameters
    ----------
    count : int
    """
    return -(-count // _LINE) * _LINE


@dataclass(frozen=True, slots=True)
class Views:
    """Parts of the buffers, of the host (NumPy) or of the device (torch).

    Parameters
    ----------
    tokens, positions, slots : (tokens,), int64
    sampled : (sampled,), int64
        Indices of the tokens whose logits are wanted.
    decode_table : (decodes, width), int32
    prompt_table : (prompts + 1, width), int32
    decode_contexts : (decodes,), int32 [tokens]
    prompt_contexts : (prompts + 1,), int32 [tokens]
    starts : (prompts + 2,), int32 [tokens]
        Where the new tokens of each prompt begin.
    tile_request, tile_token : (tiles,), int32
    """

    tokens: Any
    positions: Any
    slots: Any
    sampled: Any
    decode_table: Any
    prompt_table: Any
    decode_contexts: Any
    prompt_contexts: Any
    starts: Any
    tile_request: Any
    tile_token: Any

    @classmethod
    def of(cls, room: Room, longs: Any, ints: Any) -> Views:
        """Cut two flat buffers."""
        parts = []
        for buffer, sizes in ((longs, room.longs), (ints, room.ints)):
            starts = np.cumsum([0, *map(whole_lines, sizes)]).tolist()
            parts += [buffer[a : a + n] for a, n in zip(starts, sizes, strict=False)]
        parts[4:6] = [table.reshape(-1, room.width) for table in parts[4:6]]
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class TwoLaunches:
    """Decodes by the paged decode kernel, prompts by the varlen kernel.

    Parameters
    ----------
    cache : PagedCache
    views : Views
        Of the device.
    decodes : int
        Rows of the decode launch; the first tokens of the step.
    longest : int [tokens]
        No decode's context is longer.
    tiles : Tiles
        How prompts are cut.
    """

    cache: PagedCache
    views: Views
    decodes: int
    longest: int
    tiles: Any

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Write keys and values; return the mix that each query sees (tokens, heads, head_dim)."""
        import torch

        from llmsim_kernels.ops.paged_decode import paged_decode
        from llmsim_kernels.ops.varlen_attention import varlen_attention
        from llmsim_kernels.ops.varlen_plan import Plan

        views, keys, values = self.views, self.cache.keys[layer], self.cache.values[layer]
        self.cache.write(layer, views.slots, k, v)
        q = q.contiguous()
        out = torch.empty_like(q)
        if self.decodes:
            # rows of prompts among them, where a graph has room for more decodes than there are,
            # have no context: what is written there, the prompts write again
            known = views.decode_table, views.decode_contexts
            paged_decode(
                q[: self.decodes], keys, values, *known, self.longest, out=out[: self.decodes]
            )
        plan = Plan(views.starts, views.tile_request, views.tile_token, True, self.tiles)
        known = views.prompt_table, views.prompt_contexts
        return varlen_attention(q, keys, values, *known, plan, out=out)


class PromptSteps:
    """Runs steps with prompts, by a graph where one was captured that holds them.

    Parameters
    ----------
    decoder : Decoder
    cache : PagedCache
    limits : EngineLimits
        Mixed steps are captured for every 64th token, and every 32nd up to 256, up to
        `max_graph_tokens`.
    capture : bool
        Whether there are graphs at all.
    """

    def __init__(
        self, decoder: Decoder, cache: PagedCache, limits: EngineLimits, *, capture: bool = True
    ) -> None:
        from llmsim_kernels.ops.varlen_plan import tiles_for

        torch = decoder.torch
        self.torch, self.decoder, self.cache, self.limits = torch, decoder, cache, limits
        self.device = device = cache.keys[0].device
        self.group = decoder.shape.heads // decoder.shape.kv_heads
        many = limits.max_num_batched_tokens
        self.cut = tiles_for(device, decoder.shape.head_dim, many, self.group, many)
        self.tile_tokens = self.cut.rows // self.group
        self.width = -(-limits.max_model_len // limits.block_tokens)
        running = limits.max_num_seqs
        most = limits.max_step_tokens
        whole = self._room(max(most, running), running, running, running)
        pinned = device.type == "cuda"  # so that copies run beside the host
        sizes = [
            (sum(map(whole_lines, parts)), kind)
            for parts, kind in ((whole.longs, torch.int64), (whole.ints, torch.int32))
        ]
        self._pinned = [torch.zeros(n, dtype=kind, pin_memory=pinned) for n, kind in sizes]
        self._host = [each.numpy() for each in self._pinned]
        self._there = [torch.zeros(n, dtype=kind, device=device) for n, kind in sizes]
        self._captures = Captures(torch)
        self._graphs: dict[Room, tuple[Any, Any]] = {}
        self.rooms: list[Room] = self._rooms() if capture else []
        with torch.inference_mode():
            for room in reversed(self.rooms):  # the largest first: the others fit into its memory
                self._graphs[room] = self._capture(room)

    def _room(self, tokens: int, decodes: int, prompts: int, sampled: int) -> Room:
        tiles = tokens // self.tile_tokens + prompts  # each prompt's last may be half empty
        return Room(tokens, decodes, prompts, tiles, sampled, self.width)

    def _rooms(self) -> list[Room]:
        running, most = self.limits.max_num_seqs, max(self.limits.graph_sizes(), default=0)
        sizes = [n for n in (*range(32, 256, 32), *range(256, most + 1, 64)) if n <= most]
        decodes = DECODES[: bisect_left(DECODES, running) + 1]
        found = []
        for tokens in sizes:
            for count in decodes:
                count = min(count, tokens, running)
                room = self._room(tokens, count, min(32, tokens), min(running, count + 32))
                if room not in found:
                    found.append(room)
        return found

    def _without_graph(self, exact: Room) -> Room:
        """Return room for as many decodes as some graph has: no other launch needs compiling."""
        most = min(exact.tokens, self.limits.max_num_seqs)
        count = next((n for n in DECODES if exact.decodes <= n <= most), exact.decodes)
        return replace(exact, decodes=count)

    def _forward(self, room: Room) -> Any:
        views = Views.of(room, *self._there)
        longest = self.limits.max_model_len
        attention = TwoLaunches(self.cache, views, room.decodes, longest, self.cut)
        return self.decoder.forward(views.tokens, views.positions, views.sampled, attention)

    def _capture(self, room: Room) -> tuple[Any, Any]:
        """Return a graph and the tensor that its next tokens come out in."""
        return self._captures.graph_of(lambda: self._forward(room))

    def run(self, slices: list[Slice], watch: Watch) -> list[int]:
        """Run a step, decodes first, and return the next tokens of the slices that sample."""
        count = sum(part.decodes for part in slices)
        prompts = slices[count:]
        tiles = sum(-(-part.new // self.tile_tokens) for part in prompts)
        sampled = sum(part.samples for part in slices)
        tokens = count + sum(part.new for part in prompts)
        exact = Room(tokens, count, len(prompts), tiles, sampled, self.width)
        room = next((room for room in self.rooms if room.holds(exact)), None)
        room = room or self._without_graph(exact)
        self._fill(slices, count, room)
        watch.launching()
        if room in self._graphs:
            graph, out = self._graphs[room]
            graph.replay()
        else:
            out = self._forward(room)
        watch.launched()
        return list(out[:sampled].tolist())

    def _fill(self, slices: list[Slice], count: int, room: Room) -> None:
        """Bring the step's numbers to the device; what is padded uses block 0, or nothing."""
        host = Views.of(room, *self._host)
        for part in (host.tokens, host.positions, host.slots, host.sampled):
            part[:] = 0
        for part in (host.decode_contexts, host.prompt_contexts, host.tile_token):
            part[:] = 0
        host.tile_request[:] = room.prompts
        block = self.limits.block_tokens
        at = tile = sampled = 0
        for number, part in enumerate(slices):
            row = table_row(part.sequence, self.width)
            end = at + part.new
            places = np.arange(part.past, part.past + part.new)
            host.tokens[at:end] = part.sequence.tokens[part.past : part.past + part.new]
            host.positions[at:end] = places
            host.slots[at:end] = row[places // block] * np.int64(block) + places % block
            if part.samples:
                host.sampled[sampled] = end - 1
                sampled += 1
            if number < count:
                host.decode_table[number] = row
                host.decode_contexts[number] = part.past + 1
            else:
                prompt = number - count
                host.prompt_table[prompt] = row
                host.prompt_contexts[prompt] = part.past + part.new
                host.starts[prompt] = at
                firsts = range(0, part.new, self.tile_tokens)
                host.tile_request[tile : tile + len(firsts)] = prompt
                host.tile_token[tile : tile + len(firsts)] = firsts
                tile += len(firsts)
            at = end
        host.starts[len(slices) - count :] = at
        for there, pinned, sizes in zip(
            self._there, self._pinned, (room.longs, room.ints), strict=True
        ):
            size = sum(map(whole_lines, sizes))
            there[:size].copy_(pinned[:size], non_blocking=True)


def table_row(sequence: Sequence, width: int) -> Any:
    """Return the row of the block table of a request, brought up to date.

    Parameters
    ----------
    sequence : Sequence
    width : int [blocks]

    Returns
    -------
    ndarray (width,), int32
    """
    row = sequence.row
    if row is None:
        row = sequence.row = np.zeros(width, dtype=np.int32)
    if sequence.rowed != len(sequence.blocks):  # a block every 16 tokens, not every step
        row[sequence.rowed : len(sequence.blocks)] = sequence.blocks[sequence.rowed :]
        sequence.rowed = len(sequence.blocks)
    return row
