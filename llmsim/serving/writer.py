"""What a replica writes to the tiers below its GPU.

A request's KV is written when its prompt is computed or when it ends, one write to a tier at a
time in order of asking; its blocks stay on the GPU until they have been read. What has come to one
tier is written on to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmsim.kvcache import Holder
from llmsim.kvcache.content import Edge
from llmsim.kvcache.store import Arrival, Run, segments_to
from llmsim.policies.views import RequestView
from llmsim.serving.flows import Flow, Flows
from llmsim.serving.request import Request
from llmsim.serving.storehouse import Reach, Tier

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica

Segments = tuple[tuple[int, int], ...]


class Keep(Holder):
    """GPU blocks that stay after their request has ended, until they have been written.

    Attributes
    ----------
    view : RequestView
        Whose they were.
    blocks : int [blocks]
    tokens : int [tokens]
    """

    __slots__ = ("blocks", "tokens", "view")

    def __init__(self, request: Request, blocks: int) -> None:
        super().__init__()
        self.view: RequestView = request.view
        self.blocks = blocks
        self.tokens = request.computed
        self.path = request.path
        self.held = request.held
        self.held_blocks = request.held_blocks
        request.path = request.held = None
        request.held_blocks = 0


class Write:
    """KV to be written to a tier.

    Attributes
    ----------
    tier : int
    segments : tuple of (int, int) [tokens], or None
        Which text; None for one unlike all others.
    lo, hi : int [tokens]
        What of it is at hand.
    due_ns : int [ns]
        Not before.
    keep : Keep or None
        GPU blocks to give back when it is done.
    held : list
        Chunks held in the tier above, which are read.
    """

    __slots__ = ("due_ns", "held", "hi", "keep", "lo", "segments", "tier")

    def __init__(self, tier: int, segments: Segments | None, lo: int, hi: int) -> None:
        self.tier = tier
        self.segments = segments
        self.lo = lo
        self.hi = hi
        self.due_ns = 0
        self.keep: Keep | None = None
        self.held: list[Run] = []


class Sending:
    """A write under way.

    Attributes
    ----------
    write : Write
    arrival : Arrival
        Its room in the tier.
    flow : Flow or None
    """

    __slots__ = ("arrival", "flow", "write")

    def __init__(self, write: Write, arrival: Arrival) -> None:
        self.write = write
        self.arrival = arrival
        self.flow: Flow | None = None


class Writer:
    """Writes of one replica.

    Parameters
    ----------
    replica : Replica
    flows : Flows
    reach : Reach
        The replica's ways to its tiers.

    Attributes
    ----------
    keeps : dict of Keep
        GPU blocks that wait to be written.
    queues : list of deque of Write
        What waits for its turn, by tier.
    sendings : list of Sending or None
        What is written to each tier now.
    """

    def __init__(self, replica: Replica, flows: Flows, reach: Reach) -> None:
        self._replica = replica
        self._flows = flows
        self.reach = reach
        self.queues: list[deque[Write]] = [deque() for _ in reach.tiers]
        self.sendings: list[Sending | None] = [None] * len(reach.tiers)
        self.keeps: dict[Keep, None] = {}
        self._through = reach.tiers[0].plan.write == "through"
        for number, tier in enumerate(reach.tiers):
            below = number + 1
            if below < len(reach.tiers) and reach.tiers[below].plan.write == "evict":
                tier.store.on_evict = self._spill(below)

    def computed(self, request: Request) -> None:
        """Write a prompt that has just been computed."""
        segments = request.view.segments
        if self._through and segments is not None:
            write = Write(0, segments, 0, request.computed)
            if self._gaps(write):
                write.due_ns = request.last_token_ns
                self._ask(write)

    def finished(self, request: Request) -> bool:
        """Write the KV of a request that ends; return whether its blocks stay until then."""
        replica = self._replica
        segments = request.view.segments
        if segments is not None:
            segments = (*segments, (-1 - request.view.index, request.generated))
        write = Write(0, segments, 0, request.computed)
        if not self._gaps(write):
            return False
        replica.ledger.register(request, request.computed)
        path = request.path
        if path and path[-1][0].writer is request:
            path[-1][0].writer = None
        keep = Keep(request, -(-request.computed // replica.draft.block_tokens))
        self.keeps[keep] = None
        replica.port.expected += 1
        write.keep = keep
        write.due_ns = request.last_token_ns
        self._ask(write)
        return True

    def _gaps(self, write: Write) -> list[tuple[int, int]]:
        """Return which chunks of what is at hand the tier lacks."""
        tier = self.reach.tiers[write.tier]
        size = tier.plan.chunk_tokens
        lo, hi = -(-write.lo // size), write.hi // size
        if hi <= lo:
            return []
        return [(lo, hi)] if write.segments is None else tier.store.missing(write.segments, lo, hi)

    def _ask(self, write: Write) -> None:
        self.queues[write.tier].append(write)
        if self.sendings[write.tier] is None:
            self._next(write.tier)

    def _next(self, number: int) -> None:
        """Start the next write to a tier that has something to write."""
        queue = self.queues[number]
        self.sendings[number] = None
        while queue and self.sendings[number] is None:
            write = queue.popleft()
            tier = self.reach.tiers[number]
            arrival = self._room(tier, write)
            if not arrival.chunks:
                self._done(write)
                continue
            sending = self.sendings[number] = Sending(write, arrival)
            self._send(tier, sending)

    def _room(self, tier: Tier, write: Write) -> Arrival:
        gaps = self._gaps(write)
        arrival = tier.store.reserve(write.segments, gaps)
        tier.refused_chunks += sum(hi - lo for lo, hi in gaps) - arrival.chunks
        return arrival

    def _send(self, tier: Tier, sending: Sending) -> None:
        plan, write, chunks = tier.plan, sending.write, sending.arrival.chunks
        size = chunks * plan.chunk_tokens * plan.bytes_per_token
        tier.written_bytes += size
        path = self.reach.down[write.tier]
        if write.tier:
            self.reach.tiers[write.tier - 1].read_bytes += size
        now = self._replica.clock.now
        sending.flow = self._flows.start(
            path,
            size,
            lambda _: self.landed(sending),
            rank=self._replica.index,
            lead_ns=max(0, write.due_ns - now) + plan.lead_ns(chunks),
            cap_bytes_per_s=plan.codec_bytes_per_s,
        )

    def landed(self, sending: Sending) -> None:
        """Let what has come be found, and go on with the next."""
        write = sending.write
        self.reach.tiers[write.tier].store.publish(sending.arrival)
        self._pass_on(write)
        self._done(write)
        self._next(write.tier)

    def _done(self, write: Write) -> None:
        if write.held:
            self.reach.tiers[write.tier - 1].store.release(write.held)
        keep = write.keep
        if keep is None:
            return
        replica = self._replica
        del self.keeps[keep]
        replica.port.expected -= 1
        replica.port.note_peak()
        replica.ledger.retire(keep, keep.blocks, keep.tokens)
        replica.port.room_made()

    def _pass_on(self, write: Write) -> None:
        """Write what has come to one tier on to the next."""
        below = write.tier + 1
        tiers = self.reach.tiers
        if below == len(tiers) or tiers[below].plan.write == "evict":
            return
        above = tiers[below - 1]
        size = above.plan.chunk_tokens
        more = Write(below, write.segments, write.lo, write.hi // size * size)
        gaps = self._gaps(more)
        if not gaps:
            return
        if write.segments is not None:
            more.lo = gaps[0][0] * tiers[below].plan.chunk_tokens
            found = above.store.find(write.segments, more.lo // size, write.hi // size)
            if not found:
                return
            more.hi = found[-1][2] * size
            more.held = above.store.hold(found)
        self._ask(more)

    def _spill(self, below: int) -> Callable[[Edge | None, int, int], None]:
        """Return what takes in what the tier above `below` forgets, through a staging buffer."""
        size = self.reach.tiers[below - 1].plan.chunk_tokens

        def spill(edge: Edge | None, lo: int, hi: int) -> None:
            lo, hi = lo * size, hi * size
            if edge is None:
                lo, hi = 0, hi - lo
            segments = None if edge is None else tuple(segments_to(edge, hi))
            write = Write(below, segments, lo, hi)
            if self._gaps(write):
                self._ask(write)

        return spill
