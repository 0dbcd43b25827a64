"""The decoding requests of a replica that advance together, priced without visiting them.

One tick gives every member one token. A member that has `computed` tokens of KV at tick `t` has
``computed = base + t`` for as long as it stays, so the whole cohort is four integers and two rings
of counts: how many members stand at each position inside an attention tile, and inside a KV block.
A tick costs O(1); the sum of padded contexts over k ticks costs O(min(k, tile, members)).
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import Final

from llmsim.serving.request import DECODE, Request

FOREVER: Final = 2**62 - 1
"""A tick that is never reached; the largest integer that compiled code keeps in a register."""


class Cohort:
    """Members, their finishing ticks, and the sums the cost model and the KV ledger ask for.

    Parameters
    ----------
    tile : int [tokens]
        Contexts count rounded up to multiples of this (`StepCost.context_tile`).
    block_tokens : int [tokens]
        Tokens per KV block.
    window : int [tokens]
        Attention window of the windowed layers; 0 for none.

    Attributes
    ----------
    count : int
        Members.
    tick : int
        Ticks scheduled so far; the next one has this number.
    context : int [tokens]
        Sum over members of the tokens computed before the next tick.
    padded : int [tokens]
        Sum over members of ``pad(computed + 1)`` at the next tick.
    windowed : int [tokens]
        The same with each term clipped at ``pad(window)``; 0 without a window.
    block_ring : list of int
        Members that need a new KV block at tick t, at index ``t % block_tokens``.
    due : int
        Tick count at which the next member will have all its tokens.
    top_seat : int
        No member has a higher seat.
    grown, grown_last : int [tokens]
        See `padded_sum`.
    """

    __slots__ = (
        "_block_tokens",
        "_clip",
        "_finishes",
        "_joins",
        "_saturated",
        "_saturations",
        "_spots",
        "_tile_ring",
        "_window_base",
        "_window_growing",
        "_window_ring",
        "block_ring",
        "context",
        "count",
        "due",
        "grown",
        "grown_last",
        "padded",
        "tick",
        "tile",
        "top_seat",
        "windowed",
    )

    def __init__(self, tile: int, block_tokens: int, window: int) -> None:
        self.tile = tile
        self._block_tokens = block_tokens
        self._clip = -(-window // tile) * tile
        self._tile_ring = [0] * tile
        self._spots: dict[int, int] = {}  # the ring's entries that are not zero
        self.block_ring = [0] * block_tokens
        self._window_ring = [0] * tile if window else []
        self._window_growing = 0
        self._window_base = 0
        self._saturated = 0
        self._finishes: list[tuple[int, int, int, Request]] = []
        self._saturations: list[tuple[int, int, Request]] = []
        self._joins = 0
        self.count = 0
        self.tick = 0
        self.context = 0
        self.padded = 0
        self.windowed = 0
        self.top_seat = -1
        self.due = FOREVER
        self.grown = 0
        self.grown_last = 0

    # --- membership -------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Take in a request that has one token per tick to compute from the next tick on."""
        computed = request.computed
        tick = self.tick
        base = computed - tick
        request.base = base
        request.finish_tick = finish = tick + request.output - request.generated
        request.join_tick = tick
        spot = -base % self.tile
        self._tile_ring[spot] += 1
        self._spots[spot] = self._tile_ring[spot]
        self.block_ring[-base % self._block_tokens] += 1
        self.count += 1
        self.context += computed
        padded = -(-(computed + 1) // self.tile) * self.tile
        self.padded += padded
        self._joins += 1  # makes heap entries unique
        if self._clip:
            self._join_window(request, padded)
        if request.seat > self.top_seat:
            self.top_seat = request.seat
        heappush(self._finishes, (finish, request.seat, self._joins, request))
        if finish < self.due:
            self.due = finish

    def leave(self, request: Request) -> None:
        """Let a member go; its own counters are brought up to the last scheduled tick."""
        tick = self.tick
        base = request.base
        computed = base + tick
        request.computed = computed
        request.generated = request.output - (request.finish_tick - tick)
        spot = -base % self.tile
        left = self._tile_ring[spot] - 1
        self._tile_ring[spot] = left
        if left:
            self._spots[spot] = left
        else:
            del self._spots[spot]
        self.block_ring[-base % self._block_tokens] -= 1
        self.count -= 1
        self.context -= computed
        padded = -(-(computed + 1) // self.tile) * self.tile
        self.padded -= padded
        if self._clip:
            self._leave_window(request, padded)
        due = request.finish_tick == self.due
        request.finish_tick = -1
        if not self.count:
            self.top_seat = -1
            self._finishes.clear()
            self.due = FOREVER
        elif due:
            self.due = self._next_finish()

    def expel(self, request: Request) -> None:
        """Let a member go that will be in another cohort: nothing here may point to it."""
        self.leave(request)
        self._finishes = [entry for entry in self._finishes if entry[3] is not request]
        heapify(self._finishes)
        self._saturations = [entry for entry in self._saturations if entry[2] is not request]
        heapify(self._saturations)

    def mirror(self, other: Cohort) -> None:
        """Have the sums of another cohort; its members follow by `adopt`."""
        self._tile_ring = other._tile_ring.copy()
        self._spots = other._spots.copy()
        self.block_ring[:] = other.block_ring  # others hold the list
        self._window_ring = other._window_ring.copy()
        self._window_growing = other._window_growing
        self._window_base = other._window_base
        self._saturated = other._saturated
        self._joins = other._joins
        self.count = other.count
        self.tick = other.tick
        self.context = other.context
        self.padded = other.padded
        self.windowed = other.windowed
        self.top_seat = other.top_seat

    def adopt(self, other: Cohort, copies: Mapping[Request, Request]) -> None:
        """Have copies of the members of a cohort that was mirrored; they say when they finish."""
        self._finishes = finishes = [
            (copy.finish_tick, copy.seat, number, copy)
            for number, copy in enumerate(copies.values())
            if copy.state == DECODE
        ]
        heapify(finishes)
        self.due = finishes[0][0] if finishes else FOREVER
        self._saturations = [
            (tick, order, copies[request])
            for tick, order, request in other._saturations
            if request.window_tick == tick
        ]
        heapify(self._saturations)

    def _next_finish(self) -> int:
        heap = self._finishes
        while heap:
            tick, _, _, request = heap[0]
            if request.finish_tick == tick:
                return tick
            heappop(heap)
        return FOREVER

    def pop_finished(self) -> Request:
        """Remove and return the next member that has all its tokens scheduled."""
        request = heappop(self._finishes)[3]
        self.leave(request)
        return request

    def computed(self, request: Request) -> int:
        """Return a member's computed tokens before the next tick [tokens]."""
        return request.base + self.tick

    # --- time -------------------------------------------------------------------------------

    def advance(self, ticks: int, growth: int) -> None:
        """Schedule `ticks` more ticks for every member.

        Parameters
        ----------
        ticks : int
        growth : int [tokens]
            What `growth` returns for them.
        """
        self.padded += growth
        if self._clip:
            self.windowed += self._window_growth(ticks)
        self.tick += ticks
        self.context += ticks * self.count
        while self._saturations and self._saturations[0][0] <= self.tick:
            self._saturate()

    def padded_sum(self, ticks: int) -> int:
        """Return the sum of the padded context sums of the next `ticks` ticks [tokens].

        Leaves the growth of the padded context sum over them in `grown`, and over all but the
        last of them in `grown_last`.
        """
        tile = self.tile
        if ticks == 1:
            self.grown_last = 0
            self.grown = tile * self._tile_ring[(self.tick + 1) % tile]
            return self.padded
        if 2 * len(self._spots) < min(ticks, tile):
            return self._sparse_sum(ticks)
        if ticks < tile:
            if ticks <= 16:
                return self._short_sum(ticks)
            part = list(accumulate(_ahead(self._tile_ring, self.tick + 1, ticks)))
            crossed = part[-1]
            self.grown = tile * crossed
            self.grown_last = tile * part[-2]
            return ticks * self.padded + tile * (sum(part) - crossed)
        self.grown = self.growth(ticks)
        self.grown_last = self.growth(ticks - 1)
        return _sum_over_ticks(
            ticks,
            tile,
            self.count,
            self.context + self.count,
            self.padded,
            self._tile_ring,
            self.tick,
        )

    def _short_sum(self, ticks: int) -> int:
        """Do what `padded_sum` does, tick by tick."""
        tile = self.tile
        ring = self._tile_ring
        at = self.tick % tile
        crossed = total = 0
        for _ in range(ticks - 1):
            at += 1
            if at == tile:
                at = 0
            crossed += ring[at]
            total += crossed
        self.grown_last = tile * crossed
        at += 1
        if at == tile:
            at = 0
        self.grown = tile * (crossed + ring[at])
        return ticks * self.padded + tile * total

    def _sparse_sum(self, ticks: int) -> int:
        """Do what `padded_sum` does, spot by spot: less work in a small cohort.

        Notes
        -----
        Members that jump for the first time with ``left`` ticks still to come jump again every
        `tile` ticks, n times in all, and a jump counts in every tick after it:
        ``n left - tile n (n - 1) / 2``.
        """
        tile = self.tile
        start = self.tick + 1
        crossed = last = extra = 0
        for spot, members in self._spots.items():
            left = ticks - 1 - (spot - start) % tile
            if left < 0:
                continue
            jumps = left // tile + 1
            crossed += members * jumps
            extra += members * (jumps * left - tile * (jumps * (jumps - 1) // 2))
            if not left % tile:
                jumps -= 1  # the latest of them is in the last tick
            last += members * jumps
        self.grown = tile * crossed
        self.grown_last = tile * last
        return ticks * self.padded + tile * extra

    def growth(self, ticks: int) -> int:
        """Return how much the padded context sum grows over the next `ticks` ticks [tokens]."""
        tile = self.tile
        if tile == 1:
            return ticks * self.count
        cycles = ticks // tile
        rest = ticks - cycles * tile
        crossed = cycles * self.count
        if rest > 3 * len(self._spots):
            start = self.tick + 1
            for spot, members in self._spots.items():
                if (spot - start) % tile < rest:
                    crossed += members
        elif rest:
            crossed += sum(_ahead(self._tile_ring, self.tick + 1, rest))
        return crossed * tile

    def growth_at(self, step: int) -> int:
        """Return how much the padded context sum grows after the `step`-th tick from 1 [tokens]."""
        return self.tile * self._tile_ring[(self.tick + step) % self.tile]

    def windowed_growth_at(self, step: int) -> int:
        """Return the same for the clipped context sum; valid up to `next_saturation` [tokens]."""
        if not self._clip:
            return 0
        return self.tile * self._window_ring[(self.tick + step) % self.tile]

    def windowed_sum(self, ticks: int) -> int:
        """Return the sum of the clipped context sums of the next `ticks` ticks [tokens].

        Valid up to `next_saturation`, where a member's context reaches the window.
        """
        growing = self._window_growing
        if not growing:
            return ticks * self.windowed
        # everyone in a lock-step cohort who is past the window adds a constant
        tick = self.tick
        contexts = self._window_base + growing * (tick + 1)
        saturated = self._saturated * self._clip
        return ticks * saturated + _sum_over_ticks(
            ticks,
            self.tile,
            growing,
            contexts,
            self.windowed - saturated,
            self._window_ring,
            tick,
        )

    def next_saturation(self) -> int:
        """Return the tick at which the next member's context reaches the attention window."""
        heap = self._saturations
        while heap:
            tick, _, request = heap[0]
            if request.window_tick == tick:
                return tick
            heappop(heap)
        return FOREVER

    # --- KV blocks --------------------------------------------------------------------------

    def blocks_needed(self, ticks: int) -> int:
        """Return how many new KV blocks the next `ticks` ticks take [blocks]."""
        ring = self.block_ring
        size = self._block_tokens
        need = ticks // size * self.count
        at = self.tick % size
        for _ in range(ticks % size):
            need += ring[at]
            at += 1
            if at == size:
                at = 0
        return need

    def ticks_within(self, blocks: int, limit: int) -> int:
        """Return how many of the next `limit` ticks can run with `blocks` free KV blocks."""
        size = self._block_tokens
        if (limit + size - 1) // size * self.count <= blocks:
            return limit
        cycles = blocks // self.count
        ticks = cycles * size
        blocks -= cycles * self.count
        ring = self.block_ring
        at = self.tick
        while ticks < limit:
            blocks -= ring[(at + ticks) % size]
            if blocks < 0:
                return ticks
            ticks += 1
        return limit

    # --- windows ----------------------------------------------------------------------------

    def _join_window(self, request: Request, padded: int) -> None:
        if padded >= self._clip:
            request.window_tick = -1
            self.windowed += self._clip
            self._saturated += 1
            return
        self.windowed += padded
        self._window_growing += 1
        self._window_base += request.base
        self._window_ring[-request.base % self.tile] += 1
        # computed + 1 exceeds clip - tile, so that pad() equals clip, at this tick
        request.window_tick = self._clip - self.tile - request.base
        heappush(self._saturations, (request.window_tick, self._joins, request))

    def _leave_window(self, request: Request, padded: int) -> None:
        if request.window_tick < 0:
            self.windowed -= self._clip
            self._saturated -= 1
            return
        self.windowed -= padded
        self._window_growing -= 1
        self._window_base -= request.base
        self._window_ring[-request.base % self.tile] -= 1
        request.window_tick = -1

    def _saturate(self) -> None:
        tick, _, request = heappop(self._saturations)
        if request.window_tick == tick:
            self._window_growing -= 1
            self._window_base -= request.base
            self._window_ring[-request.base % self.tile] -= 1
            request.window_tick = -1
            self._saturated += 1

    def _window_growth(self, ticks: int) -> int:
        ring = self._window_ring
        cycles, rest = divmod(ticks, self.tile)
        crossed = cycles * self._window_growing
        if rest:
            crossed += sum(_ahead(ring, self.tick + 1, rest))
        return crossed * self.tile


def _ahead(ring: list[int], start: int, length: int) -> list[int]:
    """Return the next `length` < len(ring) counts of a ring from tick `start` on.

    A ring has the members that reach a multiple of its size at tick t at index ``t % size``.
    """
    size = len(ring)
    low = start % size
    high = low + length
    if high <= size:
        return ring[low:high]
    return ring[low:] + ring[: high - size]


def _sum_over_ticks(
    ticks: int, tile: int, count: int, contexts: int, padded: int, ring: list[int], tick: int
) -> int:
    """Sum the padded context sums of `ticks` ticks.

    Notes
    -----
    Over one full cycle of `tile` ticks a member with context s, padded to p, spends p - s + 1 ticks
    at p and the rest at p + tile, which adds up to ``tile * (tile - 1 + s)`` whatever its position.
    """
    cycles, rest = divmod(ticks, tile)
    total = 0
    if cycles:
        total = cycles * tile * ((tile - 1) * count + contexts)
        total += tile * tile * count * (cycles * (cycles - 1) // 2)
        padded += cycles * tile * count
    if rest:
        total += rest * padded
        if tile == 1:
            total += count * (rest * (rest - 1) // 2)
        elif rest > 1:
            # a member that jumps at tick t counts `tile` more in every tick from t on
            total += tile * sum(accumulate(_ahead(ring, tick + 1, rest - 1)))
    return total
