"""A copy of a tier's store that costs what is looked at of it, not what is kept there.

Edges and pieces are copied when a text leads to them, or when they are next to be evicted; the
store behind the copy is only read, and must stand still as long as the copy is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from llmsim.kvcache.content import Edge
from llmsim.kvcache.store import Arrival, Piece, Run, Segments, TierStore


class StoreMirror(TierStore):
    """A store that can be loaded, again and again, with the state of another.

    Parameters
    ----------
    like : TierStore
        Of the same size and order of eviction.
    """

    __slots__ = ("_base", "_edges", "_next", "_pieces")

    def __init__(self, like: TierStore) -> None:
        super().__init__(like.capacity, like.chunk_tokens, like._rank, like.spare_chunks)
        self._base = like
        self._edges: dict[Edge, Edge] = {}
        self._pieces: dict[Piece, Piece] = {}
        self._next: list[tuple[int, int, int]] = []  # of the other's queue: rank, ticket, place

    def mirror(self, other: TierStore, whole: bool = False) -> None:
        """Be as another store is.

        Parameters
        ----------
        other : TierStore
        whole : bool
            Copy everything now: the other one will not stand still.
        """
        self._base = other
        self.fresh = other.fresh
        self.cached = other.cached
        self.held = other.held
        self.arriving = other.arriving
        self.evicted = other.evicted
        self._stamp = other._stamp
        self.root = Edge(None, 0, None)
        self._edges = {other.root: self.root}
        self._pieces = {}
        self._queue = []
        self._next = []
        self._look_at(0)
        if whole:
            edges = [other.root]
            while edges:
                edge = edges.pop()
                self._edge(edge)
                edges.extend(edge.children.values())
            while self._next:
                self._draw_one()

    # --- what is copied ---------------------------------------------------------------------

    def _edge(self, theirs: Edge) -> Edge:
        """Return the copy of an edge; it is never pruned, since more may hang on it."""
        found = self._edges.get(theirs)
        if found is not None:
            return found
        way: list[Edge] = []
        above: Edge | None = theirs
        while above is not None and above not in self._edges:
            way.append(above)
            above = above.parent
        own = self.root if above is None else self._edges[above]
        for each in reversed(way):
            slot = each.slot
            copy = Edge(own, each.start, slot)
            copy.users = each.users + 1
            if slot is not None:
                own.children[slot] = copy
            self._edges[each] = copy
            for extent in each.extents:
                assert isinstance(extent, Piece)
                copy.extents.append(self.piece(extent))
            own = copy
        return own

    def piece(self, theirs: Piece) -> Piece:
        """Return the copy of a piece."""
        found = self._pieces.get(theirs)
        if found is not None:
            return found
        copy = Piece(None, theirs.lo, theirs.hi, theirs.stamp)
        self._pieces[theirs] = copy
        copy.refs = theirs.refs
        copy.ready = theirs.ready
        copy.reads = theirs.reads
        copy.used = theirs.used
        copy.ticket = theirs.ticket
        edge = theirs.edge
        if edge is self._base._unfindable:
            copy.edge = self._unfindable
        elif edge is not None:
            copy.edge = self._edge(edge)
        rest = theirs.rest
        if rest is not None:
            assert isinstance(rest, Piece)
            copy.rest = self.piece(rest)
        return copy

    def runs(self, held: Sequence[Run]) -> list[Run]:
        """Return what is held here of what is held in the other store."""
        return [(self.piece(piece), lo, hi) for piece, lo, hi in held]

    def arrival(self, arrival: Arrival) -> Arrival:
        """Return what is on its way here of what is on its way to the other store."""
        return Arrival(arrival.chunks, [self.piece(piece) for piece in arrival.pieces])

    def _reach(self, segments: Segments) -> None:
        """Copy what a text leads to."""
        edge, end = self._base.root, 0
        for key, length in segments:
            if length <= 0:
                continue
            child = edge.children.get((end, key))
            if child is None:
                return
            self._edge(child)
            end += length
            edge = child

    def _look_at(self, place: int) -> None:
        """Have the other's queue of eviction looked at from a place on."""
        queue = self._base._queue
        if place < len(queue):
            rank, ticket, _ = queue[place]
            heappush(self._next, (rank, ticket, place))

    def _draw_one(self) -> None:
        """Take over the next of the other's queue of eviction."""
        rank, ticket, place = heappop(self._next)
        self._look_at(2 * place + 1)
        self._look_at(2 * place + 2)
        theirs = self._base._queue[place][2]
        if theirs.ticket == ticket:
            heappush(self._queue, (rank, ticket, self.piece(theirs)))

    # --- as for any store -------------------------------------------------------------------

    def find(self, segments: Segments, at: int, most: int) -> list[Run]:
        """Return what is here of a text from one chunk on; see `TierStore.find`."""
        self._reach(segments)
        return super().find(segments, at, most)

    def missing(self, segments: Segments, at: int, upto: int) -> list[tuple[int, int]]:
        """Return which chunks of a text are not here; see `TierStore.missing`."""
        self._reach(segments)
        return super().missing(segments, at, upto)

    def _draw(self) -> None:
        while self._next:
            if self._queue and self._queue[0][:2] <= self._next[0][:2]:
                return
            self._draw_one()
