"""A tier below the GPU: chunks of KV with content, found by prefix, evicted by rank.

A tier knows *where* KV lies and what it is, not who uses it nor how long a copy takes: it is asked
for what it has (`find`) and what it lacks (`missing`), and told what comes (`reserve`), what has
come (`publish`), who reads (`hold`) and who has read (`release`). Content is a path of segments as
in `content`, cut into chunks; a chunk belongs to the edge that holds its last token, and a prompt's
tail below a whole chunk is not kept. What is on its way in is found by nobody, and is not written
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import pairwise

from llmsim.core.errors import InvariantError
from llmsim.kvcache.content import Edge, prune, walk
from llmsim.kvcache.prefix import Extent

Segments = Sequence[tuple[int, int]]
"""(key, length) of each part of a text; lengths in tokens."""

Rank = Callable[[int, int, int], int]
"""Takes (times read, latest use, arrival), the last two as counts of events; the least leaves."""


class Piece(Extent):
    """A run of chunks ``[lo, hi)`` of one edge in a tier.

    Attributes
    ----------
    ready : bool
        Whether it has come; False while it is on its way in.
    reads : int
        Times it was read.
    used : int
        When it was last used, as a count of events.
    ticket : int
        Its entry in the queue of eviction; 0 while it is held or on its way.
    """

    __slots__ = ("reads", "ready", "ticket", "used")

    def __init__(self, edge: Edge | None, lo: int, hi: int, stamp: int) -> None:
        super().__init__(edge, lo, hi, 0, stamp)
        self.ready = False
        self.reads = 0
        self.used = 0
        self.ticket = 0


Run = tuple[Piece, int, int]
"""A piece, and which of its chunks ``[lo, hi)``."""


class Arrival:
    """Chunks that have room in a tier and are on their way there.

    Attributes
    ----------
    chunks : int [chunks]
    pieces : list of Piece
        In order of the text.
    """

    __slots__ = ("chunks", "pieces")

    def __init__(self, chunks: int, pieces: list[Piece]) -> None:
        self.chunks = chunks
        self.pieces = pieces


class TierStore:
    """What one tier keeps, in chunks.

    Parameters
    ----------
    chunks : int [chunks]
        Capacity.
    chunk_tokens : int [tokens]
    rank : callable or None
        Order of eviction, see `Rank`; None for least recently used.
    spare_chunks : int [chunks]
        Kept free, so that what comes finds room without waiting for what leaves.

    Attributes
    ----------
    fresh : int [chunks]
        That hold nothing.
    cached : int [chunks]
        That nobody reads: they can be evicted.
    held : int [chunks]
        Being read.
    arriving : int [chunks]
        Reserved for what is on its way in.
    evicted : int [chunks]
        So far.
    on_evict : callable or None
        Called with (edge, lo, hi) before chunks are forgotten; the edge is None for chunks that
        nobody could ever have found.
    """

    __slots__ = (
        "_queue",
        "_rank",
        "_stamp",
        "_unfindable",
        "arriving",
        "cached",
        "capacity",
        "chunk_tokens",
        "evicted",
        "fresh",
        "held",
        "on_evict",
        "root",
        "spare_chunks",
    )

    def __init__(
        self, chunks: int, chunk_tokens: int, rank: Rank | None = None, spare_chunks: int = 0
    ) -> None:
        self.capacity = chunks
        self.chunk_tokens = chunk_tokens
        self.spare_chunks = spare_chunks
        self.fresh = chunks
        self.cached = 0
        self.held = 0
        self.arriving = 0
        self.evicted = 0
        self.on_evict: Callable[[Edge | None, int, int], None] | None = None
        self.root = Edge(None, 0, None)
        self._unfindable = Edge(None, 0, None)
        self._rank = rank
        self._queue: list[tuple[int, int, Piece]] = []
        self._stamp = 0

    # --- asking -----------------------------------------------------------------------------

    def find(self, segments: Segments, at: int, most: int) -> list[Run]:
        """Return what is here of a text from one chunk on, without a gap; changes nothing.

        Parameters
        ----------
        segments : sequence of (key, length) [tokens]
        at : int [chunks]
            Where to begin.
        most : int [chunks]
            Where to stop at the latest.
        """
        runs: list[Run] = []
        edge = self.root
        end = 0
        for key, length in segments:
            if at >= most:
                break
            if length <= 0:
                continue
            child = edge.children.get((end, key))
            if child is None:
                break
            end += length
            stop = min(end // self.chunk_tokens, most)
            while at < stop:
                piece = _piece_at(child, at)
                if piece is None or not piece.ready:
                    return runs
                upto = min(piece.hi, stop)
                runs.append((piece, at, upto))
                at = upto
            edge = child
        return runs

    def missing(self, segments: Segments, at: int, upto: int) -> list[tuple[int, int]]:
        """Return which chunks of a text are neither here nor on their way, as runs [chunks]."""
        gaps: list[tuple[int, int]] = []
        edge: Edge | None = self.root
        end = 0
        for key, length in segments:
            if at >= upto:
                break
            if length <= 0:
                continue
            if edge is not None:
                edge = edge.children.get((end, key))
            end += length
            stop = min(end // self.chunk_tokens, upto)
            while at < stop:
                piece = None if edge is None else _piece_at(edge, at)
                if piece is not None:
                    at = min(piece.hi, stop)
                    continue
                to = stop
                if edge is not None:
                    for extent in edge.extents:
                        if at < extent.lo < to:
                            to = extent.lo
                if gaps and gaps[-1][1] == at:
                    gaps[-1] = (gaps[-1][0], to)
                else:
                    gaps.append((at, to))
                at = to
        return gaps

    # --- coming -----------------------------------------------------------------------------

    def reserve(self, segments: Segments | None, gaps: Sequence[tuple[int, int]]) -> Arrival:
        """Make room for chunks that come, evicting others; as many as fit, from the first on.

        Parameters
        ----------
        segments : sequence of (key, length) [tokens], or None
            None for a text unlike all others, whose chunks nobody will ever look for.
        gaps : sequence of (int, int) [chunks]
            As `missing` gives them.
        """
        if segments is not None and gaps:
            self.touch(segments, gaps[0][0])  # or room for the end would cost the beginning
        room = self.fresh + self.cached
        wanted = 0
        runs: list[tuple[int, int]] = []
        for lo, hi in gaps:
            take = min(hi - lo, room - wanted)
            if take <= 0:
                break
            runs.append((lo, lo + take))
            wanted += take
        if wanted > self.fresh:
            self._evict(wanted - self.fresh)
        self.fresh -= wanted
        self.arriving += wanted
        if not wanted:
            return Arrival(0, [])
        if segments is None:
            self._stamp += 1
            return Arrival(wanted, [Piece(None, 0, wanted, self._stamp)])
        return Arrival(wanted, self._lay_out(segments, runs))

    def _lay_out(self, segments: Segments, runs: Sequence[tuple[int, int]]) -> list[Piece]:
        pieces: list[Piece] = []
        path = walk(self.root, segments)
        self._stamp += 1
        for lo, hi in runs:
            at = lo
            for edge, end in path:
                stop = min(end // self.chunk_tokens, hi)
                if at < stop:
                    piece = Piece(edge, at, stop, self._stamp)
                    edge.extents.append(piece)
                    pieces.append(piece)
                    at = stop
        for edge, _ in path:
            edge.users -= 1  # the pieces keep the edges from here on
        if path:
            prune(path[-1][0])
        return pieces

    def publish(self, arrival: Arrival) -> None:
        """Let chunks be found that have come."""
        self.arriving -= arrival.chunks
        for piece in reversed(arrival.pieces):
            piece.ready = True
            if piece.edge is None:
                piece.edge = self._unfindable
            self._enqueue(piece)
        if self.fresh < self.spare_chunks:
            self._evict(self.spare_chunks - self.fresh)

    def cancel(self, arrival: Arrival) -> None:
        """Give up chunks that were to come."""
        self.arriving -= arrival.chunks
        self.fresh += arrival.chunks
        for piece in reversed(arrival.pieces):
            self._bury(piece)

    # --- reading ----------------------------------------------------------------------------

    def hold(self, runs: Sequence[Run]) -> list[Run]:
        """Keep chunks from eviction while they are read; `release` takes what this returns."""
        held: list[Run] = []
        for found, lo, hi in runs:
            piece = found
            while piece.hi <= lo and piece.rest is not None:  # split meanwhile
                rest = piece.rest
                assert isinstance(rest, Piece)
                piece = rest
            if piece.lo < lo:
                piece = self._split(piece, lo)
            if piece.hi > hi:
                self._split(piece, hi)
            if not piece.refs:
                piece.ticket = 0
                self.cached -= hi - lo
                self.held += hi - lo
            piece.refs += 1
            held.append((piece, lo, hi))
        return held

    def release(self, held: Sequence[Run]) -> None:
        """End reading: the chunks count as just used, the last of a text as the oldest of them."""
        for front, _, hi in reversed(held):
            parts: list[Piece] = []
            part: Extent | None = front
            while part is not None and part.lo < hi:
                assert isinstance(part, Piece)
                parts.append(part)
                part = part.rest
            for piece in reversed(parts):
                piece.refs -= 1
                piece.reads += 1
                if not piece.refs:
                    self.held -= piece.hi - piece.lo
                    self._enqueue(piece)

    def touch(self, segments: Segments, upto: int) -> None:
        """Count the leading chunks of a text as just used, as far as they are here."""
        for found, _, _ in reversed(self.find(segments, 0, upto)):
            if not found.refs:
                self.cached -= found.hi - found.lo
                self._enqueue(found)

    # --- leaving ----------------------------------------------------------------------------

    def _enqueue(self, piece: Piece, used: bool = True) -> None:
        self._stamp += 1
        piece.ticket = ticket = self._stamp
        if used:
            piece.used = ticket
        self.cached += piece.hi - piece.lo
        rank = piece.used
        if self._rank is not None:
            rank = self._rank(piece.reads, piece.used, piece.stamp)
        heappush(self._queue, (rank, ticket, piece))
        if len(self._queue) > 64 + 4 * self.cached:
            live = [entry for entry in self._queue if entry[2].ticket == entry[1]]
            self._queue = sorted(live)

    def _evict(self, chunks: int) -> None:
        """Forget the least of what nobody reads, the end of a run of chunks first."""
        queue = self._queue
        while chunks > 0:
            self._draw()
            if not queue:
                return
            _, ticket, piece = queue[0]
            if piece.ticket != ticket:
                heappop(queue)
                continue
            size = min(piece.hi - piece.lo, chunks)
            edge = piece.edge
            if self.on_evict is not None:
                known = edge if edge is not self._unfindable else None
                self.on_evict(known, piece.hi - size, piece.hi)
            self.evicted += size
            self.cached -= size
            self.fresh += size
            chunks -= size
            piece.hi -= size
            if piece.hi == piece.lo:
                heappop(queue)
                piece.ticket = 0
                self._bury(piece)

    def _draw(self) -> None:
        """See to it that who leaves next stands first in the queue."""

    def _bury(self, piece: Piece) -> None:
        edge = piece.edge
        piece.edge = None
        if edge is None or edge is self._unfindable:
            return
        edge.extents.remove(piece)
        if not edge.extents:
            prune(edge)

    def _split(self, piece: Piece, at: int) -> Piece:
        """Cut a piece in two at chunk `at`; the front keeps the object, the back is new."""
        back = Piece(piece.edge, at, piece.hi, piece.stamp)
        back.refs = piece.refs
        back.reads = piece.reads
        back.used = piece.used
        back.ready = True
        back.rest = piece.rest
        piece.rest = back
        piece.hi = at
        if piece.edge is not None:
            piece.edge.extents.append(back)
        if piece.ticket:
            self.cached -= back.hi - piece.lo  # both are counted once more on their way in
            self._enqueue(back, used=False)  # the end leaves first
            self._enqueue(piece, used=False)
        return back

    # --- proof ------------------------------------------------------------------------------

    def check(self) -> None:
        """Prove that fresh, cached, held and arriving chunks are all there are; InvariantError."""
        cached = held = arriving = 0
        edges = [self.root]
        while edges:
            edge = edges.pop()
            edges.extend(edge.children.values())
            spans: list[tuple[int, int]] = []
            for extent in edge.extents:
                assert isinstance(extent, Piece)
                size = extent.hi - extent.lo
                spans.append((extent.lo, extent.hi))
                if size <= 0 or (extent.refs > 0 or not extent.ready) == (extent.ticket > 0):
                    raise InvariantError("a piece of a tier is empty, lost or counted twice")
                if not extent.ready:
                    arriving += size
                elif extent.refs:
                    held += size
                else:
                    cached += size
            spans.sort()
            for (_, hi), (lo, _) in pairwise(spans):
                if lo < hi:
                    raise InvariantError("a tier holds a chunk twice")
        for _, ticket, piece in self._queue:
            if piece.ticket == ticket and piece.edge is self._unfindable:
                cached += piece.hi - piece.lo
        total = self.fresh + self.cached + self.held + self.arriving
        if (
            total != self.capacity
            or min(self.fresh, self.cached, self.held, self.arriving) < 0
            or (cached, held) != (self.cached, self.held)
            or arriving > self.arriving
        ):
            raise InvariantError(
                f"a tier of {self.capacity} chunks has {self.fresh} fresh, {self.cached} cached "
                f"({cached} found), {self.held} held ({held} found), {self.arriving} arriving"
            )


def _piece_at(edge: Edge, at: int) -> Piece | None:
    for extent in edge.extents:
        if extent.lo <= at < extent.hi:
            assert isinstance(extent, Piece)
            return extent
    return None


def segments_to(edge: Edge, tokens: int) -> list[tuple[int, int]]:
    """Return the text that leads to an edge and along it, `tokens` long in all."""
    parts: list[tuple[int, int]] = []
    end = tokens
    while edge.slot is not None:
        start, key = edge.slot
        parts.append((key, end - start))
        end = start
        if edge.parent is None:
            break
        edge = edge.parent
    parts.reverse()
    return parts
