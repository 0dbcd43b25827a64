"""The block ledger with prefix caching, and an order of eviction of one's own.

What nobody holds is ranked when it is given back, and the least is overwritten first; but nothing
is overwritten before what was computed from it and is still cached, which nobody would find then.
With the rank of latest use this is the order of `PrefixLedger`, block for block.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

from llmsim.core.errors import InvariantError
from llmsim.kvcache.content import Edge
from llmsim.kvcache.ledger import Holder, Match
from llmsim.kvcache.prefix import Extent, PrefixLedger

Key = tuple[int, int, int]
"""Rank, order of giving back, and minus the first block: of one chain the last goes first."""


class Use:
    """What is known of an extent that may be overwritten.

    Attributes
    ----------
    reads : int
        Requests that found it.
    stored : int
        When it was first given back, as a count of such events.
    key : tuple of int, or None
        Its place among those that nobody holds; None while somebody does.
    """

    __slots__ = ("key", "reads", "stored")

    def __init__(self, reads: int, stored: int, key: Key | None) -> None:
        self.reads = reads
        self.stored = stored
        self.key = key


class RankedLedger(PrefixLedger):
    """A `PrefixLedger` whose order of eviction is a policy's.

    Parameters
    ----------
    blocks, block_tokens, unfilled_first, segments_of, settle
        As for `PrefixLedger`.
    rank : callable
        Ranks what nobody holds by (reads, latest use, first given back), see
        `policies.EvictionPolicy`; the least goes first.
    """

    __slots__ = ("_count", "_line", "_rank", "_uses")

    def __init__(
        self,
        blocks: int,
        block_tokens: int,
        unfilled_first: bool,
        segments_of: Callable[[Any], tuple[tuple[tuple[int, int], ...], int] | None],
        settle: Callable[[Any], int],
        rank: Callable[[int, int, int], int],
    ) -> None:
        super().__init__(blocks, block_tokens, unfilled_first, segments_of, settle)
        self._rank = rank
        self._count = 0
        self._uses: dict[Extent, Use] = {}
        self._line: list[tuple[Key, Extent]] = []  # a heap

    def hold(self, request: Holder, match: Match) -> None:
        """Take references to the blocks of a match, which are read by one more."""
        super().hold(request, match)
        for extent, _, _ in request.held or ():
            use = self._uses.get(extent)
            if use is not None:
                use.reads += 1

    def take(self, blocks: int) -> None:
        """Take free blocks, overwriting what ranks least; the caller has asked for room."""
        self.free -= blocks
        fresh = self._fresh
        if blocks <= fresh:
            self._fresh = fresh - blocks
            return
        self._fresh = 0
        blocks -= fresh
        while blocks > 0:
            victim = self._below(self._least())
            size = victim.hi - victim.lo
            most = min(blocks, victim.hi - self._needed(victim))
            if victim.edge is not None:
                self.evicted += most
            if size <= most:
                self._unlink(victim)
                self._bury(victim)
                self._uses.pop(victim, None)
                blocks -= size
            else:
                victim.hi -= most
                blocks -= most

    def _least(self) -> Extent:
        """Return what ranks least of all that nobody holds."""
        line = self._line
        while line:
            key, extent = line[0]
            use = self._uses.get(extent)
            if use is not None and use.key == key:
                return extent
            heappop(line)
        raise InvariantError("more KV blocks taken than are free")

    def _below(self, extent: Extent) -> Extent:
        """Return the last thing that was computed from an extent; itself if there is none."""
        found = extent
        while True:
            edge = found.edge
            after = None if edge is None or edge is self._unfindable else self._after(edge, found)
            if after is None:
                return found
            found = after

    def _after(self, edge: Edge, extent: Extent) -> Extent | None:
        """Return an extent that nobody holds and that would be found by nobody without another."""
        hi = extent.hi
        after = None
        for other in edge.extents:
            if other.lo < hi <= other.hi and other is not extent:
                return None  # there is a copy
            if other.lo >= hi and not other.refs:
                after = other
        if after is not None:
            return after
        for (start, _), child in edge.children.items():
            if start // self.block_tokens >= hi:
                found = self._first_on(child)
                if found is not None:
                    return found
        return None

    def _needed(self, extent: Extent) -> int:
        """Return up to which block of an extent something is cached that branches off inside."""
        edge, needed = extent.edge, extent.lo
        if edge is None or edge is self._unfindable:
            return needed
        for (start, _), child in edge.children.items():
            at = start // self.block_tokens
            if needed < at < extent.hi and self._first_on(child) is not None:
                needed = at
        return needed

    def _first_on(self, edge: Edge) -> Extent | None:
        for extent in edge.extents:
            if not extent.refs:
                return extent
        for child in edge.children.values():
            found = self._first_on(child)
            if found is not None:
                return found
        return None

    # --- queue ------------------------------------------------------------------------------

    def _link_before(self, place: Extent, extent: Extent) -> None:
        super()._link_before(place, extent)
        use = self._uses.get(extent)
        if place is not self._head and use is None:  # split off: as the part before it
            front = self._uses[place]
            use = self._uses[extent] = Use(front.reads, front.stored, None)
            if front.key is not None:
                use.key = (front.key[0], front.key[1], -extent.lo)
        else:
            count = self._count = self._count + 1
            if use is None:
                use = self._uses[extent] = Use(0, count, None)
            use.key = (self._rank(use.reads, count, use.stored), count, -extent.lo)
        if use.key is not None:
            if len(self._line) > 2 * len(self._uses) + 64:
                self._line = [each for each in self._line if self._stands(each)]
                heapify(self._line)
            heappush(self._line, (use.key, extent))

    def _split(self, extent: Extent, at: int) -> Extent:
        """Cut an extent in two at block `at`; both parts have been read as often."""
        back = super()._split(extent, at)
        front = self._uses.get(extent)
        if front is not None and back not in self._uses:
            self._uses[back] = Use(front.reads, front.stored, None)
        return back

    def _stands(self, entry: tuple[Key, Extent]) -> bool:
        use = self._uses.get(entry[1])
        return use is not None and use.key == entry[0]

    def _unlink(self, extent: Extent) -> None:
        super()._unlink(extent)
        use = self._uses.get(extent)
        if use is not None:
            use.key = None
