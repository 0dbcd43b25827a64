"""The block ledger with automatic prefix caching, in extents.

An *extent* is a run of blocks on one edge of the content tree that share one fate: the same number
of holders and, while nobody holds them, one place in the free queue. It is split when a lookup
takes part of it and shrinks from its end when blocks are overwritten, so work is per branch, not
per block. The order of eviction is that of vLLM's free queue, block for block: released blocks go
to the tail of the queue, the last block of a request first; a block that never filled up goes to
the front (to the tail too before vLLM 0.33).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmsim.core.errors import InvariantError
from llmsim.kvcache.content import ENDLESS, Edge, Path, prune, walk
from llmsim.kvcache.ledger import NO_MATCH, Holder, Match

if TYPE_CHECKING:
    from llmsim.kvcache.segments import SegmentIndex


class Extent:
    """A run of cached blocks ``[lo, hi)`` of one edge.

    Attributes
    ----------
    edge : Edge or None
        None for blocks without content, which only the free queue knows.
    lo, hi : int [blocks]
    refs : int
        Requests that hold it; 0 while it is in the free queue.
    stamp : int
        Order of registration: of two copies of a block, the older one is found.
    rest : Extent or None
        The part that was split off behind it.
    before, after : Extent or None
        Neighbours in the free queue.
    """

    __slots__ = ("after", "before", "edge", "hi", "lo", "refs", "rest", "stamp")

    def __init__(self, edge: Edge | None, lo: int, hi: int, refs: int, stamp: int) -> None:
        self.edge = edge
        self.lo = lo
        self.hi = hi
        self.refs = refs
        self.stamp = stamp
        self.rest: Extent | None = None
        self.before: Extent | None = None
        self.after: Extent | None = None


class PrefixLedger:
    """Blocks with content: reference counts, reuse by prefix, eviction in queue order.

    Parameters
    ----------
    blocks : int [blocks]
        Usable blocks.
    block_tokens : int [tokens]
    unfilled_first : bool
        Whether released blocks without full content are taken again first (vLLM 0.33) or queue up
        like all others (0.20).
    segments_of : callable
        Returns a request's prompt identity and the key of its output, or None for a prompt that
        is unlike all others.
    settle : callable
        Called with a decoding request before its output is looked up; returns how many of its
        tokens are in full, registrable blocks by now [tokens].

    Attributes
    ----------
    free : int [blocks]
        Blocks that can be taken now, cached but unreferenced ones included.
    evicted : int [blocks]
        Cached blocks overwritten so far.
    index : SegmentIndex or None
        Is told of every prompt's path; None where only prefixes are reused.
    """

    __slots__ = (
        "_fresh",
        "_head",
        "_segments_of",
        "_settle",
        "_stamp",
        "_unfilled_first",
        "_unfindable",
        "block_tokens",
        "capacity",
        "evicted",
        "free",
        "index",
        "root",
    )
    caches = True

    def __init__(
        self,
        blocks: int,
        block_tokens: int,
        unfilled_first: bool,
        segments_of: Callable[[Any], tuple[tuple[tuple[int, int], ...], int] | None],
        settle: Callable[[Any], int],
    ) -> None:
        self.capacity = blocks
        self.block_tokens = block_tokens
        self.free = blocks
        self.evicted = 0
        self.index: SegmentIndex | None = None
        self.root = Edge(None, 0, None)
        self._unfindable = Edge(None, 0, None)
        self._fresh = blocks
        self._stamp = 0
        self._unfilled_first = unfilled_first
        self._segments_of = segments_of
        self._settle = settle
        self._head = head = Extent(None, 0, 0, 0, 0)  # sentinel of the circular free queue
        head.before = head.after = head

    # --- lookup -----------------------------------------------------------------------------

    def match(self, request: Holder, known_tokens: int) -> Match:
        """Find the longest cached run of leading blocks; changes nothing.

        Parameters
        ----------
        request : Holder
        known_tokens : int [tokens]
            Tokens known so far. At least one is always computed anew, so at most
            ``(known_tokens - 1) // block_tokens`` blocks are found.
        """
        path = request.path
        if path is None:
            path = self._walk(request)
            if path is None:
                return NO_MATCH
        size = self.block_tokens
        most = (known_tokens - 1) // size
        at = unreferenced = 0
        pieces: list[tuple[Extent, int, int]] = []
        for edge, end in path:
            stop = min(end // size, most)
            writer = edge.writer
            if writer is not None and writer is not request:
                self.register(writer, self._settle(writer))
            extents = edge.extents
            while at < stop:
                best = None
                for extent in extents:
                    if extent.lo <= at < extent.hi and (best is None or extent.stamp < best.stamp):
                        best = extent
                if best is None:
                    return Match(at, unreferenced, pieces) if at else NO_MATCH
                upto = min(best.hi, stop)
                if len(extents) > 1:
                    for extent in extents:
                        if at < extent.lo < upto and extent.stamp < best.stamp:
                            upto = extent.lo
                pieces.append((best, at, upto))
                if not best.refs:
                    unreferenced += upto - at
                at = upto
            if at >= most:
                break
        return Match(at, unreferenced, pieces) if at else NO_MATCH

    def may_grow(self, request: Holder, match: Match) -> bool:
        """Whether a decoding request is writing blocks that would lengthen this match."""
        at = match.blocks
        size = self.block_tokens
        for edge, end in request.path or ():
            if edge.writer is not None and edge.writer is not request and at < end // size:
                return True
        return False

    def _walk(self, request: Holder) -> Path | None:
        identity = self._segments_of(request)
        if identity is None:
            return None
        segments, output_key = identity
        path = walk(self.root, (*segments, (output_key, ENDLESS)))
        request.path = path
        if self.index is not None:
            self.index.note(path)
        return path

    # --- taking and holding -----------------------------------------------------------------

    def take(self, blocks: int) -> None:
        """Take free blocks from the front of the queue, overwriting what they cached.

        The caller has asked whether there are enough.
        """
        self.free -= blocks
        fresh = self._fresh
        if blocks <= fresh:
            self._fresh = fresh - blocks
            return
        self._fresh = 0
        blocks -= fresh
        head = self._head
        while blocks > 0:
            first = head.after
            if first is None or first is head:
                raise InvariantError("more KV blocks taken than are free")
            size = first.hi - first.lo
            if first.edge is not None:
                self.evicted += min(size, blocks)
            if size <= blocks:
                self._unlink(first)
                self._bury(first)
                blocks -= size
            else:
                first.hi -= blocks  # the last block of a chain is overwritten first
                blocks = 0

    def hold(self, request: Holder, match: Match) -> None:
        """Take references to the blocks of a match, out of the free queue where need be."""
        held: list[tuple[Extent, int, int]] = []
        for extent, lo, hi in match.pieces:
            piece = extent
            while piece.hi <= lo and piece.rest is not None:  # split meanwhile
                piece = piece.rest
            if piece.lo < lo:
                piece = self._split(piece, lo)
            if piece.hi > hi:
                self._split(piece, hi)
            if not piece.refs:
                self._unlink(piece)
                self.free -= hi - lo
            piece.refs += 1
            held.append((piece, lo, hi))
        request.held = held
        request.held_blocks = match.blocks

    def register(self, request: Holder, tokens: int) -> None:
        """Make a request's full blocks findable.

        Parameters
        ----------
        request : Holder
        tokens : int [tokens]
            Its tokens that are computed or being computed and known.
        """
        upto = tokens // self.block_tokens
        at = request.held_blocks
        if upto <= at:
            return
        path = request.path
        if path is None:
            path = self._walk(request)
            if path is None:
                path = request.path = [(Edge(None, 0, None), ENDLESS)]
        held = request.held
        if held is None:
            held = request.held = []
        request.held_blocks = upto
        self._stamp += 1
        size = self.block_tokens
        for edge, end in path:
            stop = min(end // size, upto)
            if stop <= at:
                continue
            extents = edge.extents
            if held and len(extents) == 1:
                last, lo, hi = held[-1]
                if last is extents[0] and last.refs == 1 and last.hi == hi == at:
                    last.hi = stop
                    last.rest = None  # what was split off behind it has been overwritten
                    held[-1] = (last, lo, stop)
                    at = stop
                    if at >= upto:
                        return
                    continue
            extent = Extent(edge, at, stop, 1, self._stamp)
            extents.append(extent)
            held.append((extent, at, stop))
            at = stop
            if at >= upto:
                return

    def fork(self, request: Holder, child: Holder, tokens: int) -> None:
        """Let another holder share a request's full blocks, each of which now has one holder more.

        Nobody writes a shared block: the request goes on in blocks of its own, and the other only
        holds, until it is released with `held_blocks`.

        Parameters
        ----------
        request : Holder
        child : Holder
            Holds nothing yet.
        tokens : int [tokens]
            Of the request, computed or being computed and known.
        """
        self.register(request, tokens)
        held = request.held
        child.held_blocks = request.held_blocks
        child.held = None if held is None else list(held)
        path = request.path
        if path is not None:
            child.path = list(path)
            for edge, _ in path:
                if edge.slot is not None:
                    edge.users += 1
        for extent, _, hi in held or ():
            part: Extent | None = extent
            while part is not None and part.lo < hi:
                part.refs += 1
                part = part.rest

    # --- giving back ------------------------------------------------------------------------

    def release(self, request: Holder, allocated: int, tokens: int) -> None:
        """Give back a request's blocks; what is cached stays findable until overwritten.

        Parameters
        ----------
        request : Holder
        allocated : int [blocks]
            All blocks it holds.
        tokens : int [tokens]
            Its tokens that are computed or being computed and known.
        """
        self.register(request, tokens)
        path = request.path
        if path and path[-1][0].writer is request:
            path[-1][0].writer = None
        self._give_back_unfilled(allocated - request.held_blocks)
        head = self._head
        held = request.held
        if not held:
            return
        for extent, _, hi in reversed(held):
            if extent.hi == hi:  # never split
                extent.refs -= 1
                if not extent.refs:
                    self.free += hi - extent.lo
                    self._link_before(head, extent)
                continue
            parts: list[Extent] = []
            part: Extent | None = extent
            while part is not None and part.lo < hi:
                parts.append(part)
                part = part.rest
            for part in reversed(parts):
                part.refs -= 1
                if not part.refs:
                    self.free += part.hi - part.lo
                    self._link_before(head, part)
        request.held = None
        request.held_blocks = 0

    def forget(self, request: Holder) -> None:
        """Drop what is kept about a request that has ended."""
        path = request.path
        if path is None:
            return
        request.path = None
        for edge, _ in reversed(path):
            if edge.writer is request:
                edge.writer = None
            if edge.slot is not None:
                edge.users -= 1
                if not edge.users:
                    prune(edge)

    def retire(self, request: Holder, allocated: int, tokens: int) -> None:
        """Give back the blocks of a request that has ended, and forget it.

        Parameters
        ----------
        request : Holder
        allocated, tokens : int [blocks], [tokens]
            As for `release`.
        """
        if request.path is not None or self._segments_of(request) is not None:
            self.release(request, allocated, tokens)
            self.forget(request)
            return
        # Nobody will ever look for these blocks: what counts is how many there are, and when
        # they are overwritten. So neighbours in the queue are one extent, without a place in
        # the tree.
        full = tokens // self.block_tokens
        self.free += full
        self._give_back_unfilled(allocated - full)
        if not full:
            return
        last = self._head.before
        if last is not None and last.edge is self._unfindable:
            last.hi += full
        else:
            self._link_before(self._head, Extent(self._unfindable, 0, full, 0, 0))

    def _give_back_unfilled(self, blocks: int) -> None:
        if blocks > 0:
            self.free += blocks
            if self._unfilled_first:
                self._fresh += blocks
            else:
                self._link_before(self._head, Extent(None, 0, blocks, 0, 0))

    # --- queue ------------------------------------------------------------------------------

    def _link_before(self, place: Extent, extent: Extent) -> None:
        before = place.before
        extent.before = before
        extent.after = place
        before.after = extent  # type: ignore[union-attr]  # the queue is circular
        place.before = extent

    def _unlink(self, extent: Extent) -> None:
        before, after = extent.before, extent.after
        before.after = after  # type: ignore[union-attr]  # the queue is circular
        after.before = before  # type: ignore[union-attr]  # the queue is circular
        extent.before = extent.after = None

    def _bury(self, extent: Extent) -> None:
        edge = extent.edge
        if edge is None:
            return
        extent.edge = None
        if edge is self._unfindable:
            return
        edge.extents.remove(extent)
        if not edge.extents:
            prune(edge)

    def _split(self, extent: Extent, at: int) -> Extent:
        """Cut an extent in two at block `at`; the front keeps the object, the back is new."""
        back = Extent(extent.edge, at, extent.hi, extent.refs, extent.stamp)
        back.rest = extent.rest
        extent.rest = back
        extent.hi = at
        if extent.edge is not None:
            extent.edge.extents.append(back)
        if not extent.refs:  # queued: the back is overwritten before the front
            self._link_before(extent, back)
        return back

    # --- proof ------------------------------------------------------------------------------

    def check(self) -> None:
        """Prove that the free queue and the count agree; raises InvariantError."""
        queued = self._fresh
        extent = self._head.after
        while extent is not None and extent is not self._head:
            if extent.refs:
                raise InvariantError("a held extent is in the free queue")
            queued += extent.hi - extent.lo
            extent = extent.after
        if queued != self.free or not 0 <= self.free <= self.capacity:
            raise InvariantError(
                f"free queue holds {queued} blocks, ledger says {self.free} of {self.capacity}"
            )
