"""A replica's part in the tiers below its GPU: what it loads from there, and what it writes.

A prompt's beginning that lies in a tier and not on the GPU is *loaded*: blocks are taken, bytes
come over the links, and until then the request waits aside and its blocks are found by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llmsim.core.units import NS_PER_S
from llmsim.kvcache import Match
from llmsim.kvcache.store import Run
from llmsim.policies.tiering import LoadPolicy, LoadView
from llmsim.serving.decisions import DROP
from llmsim.serving.flows import Flow, Flows
from llmsim.serving.gate import Gate
from llmsim.serving.request import FETCHING, WAITING, Request
from llmsim.serving.storehouse import KvPlan, Reach
from llmsim.serving.writer import Writer

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica

Segments = tuple[tuple[int, int], ...]
Part = tuple[int, list[Run], int, int]
"""Tier, chunks there, first and last token that they give."""

COMPUTE: Final = 0
"""Nothing is worth loading."""
ASIDE: Final = 1
"""The request has left the line and waits for a load."""
STUCK: Final = 2
"""There is no room for what could be loaded."""
GATED: Final = 3
"""It can be computed while it is loaded: `begin` starts the load."""


class Load:
    """KV on its way to the GPU for one request.

    Attributes
    ----------
    request : Request
    tokens : int [tokens]
        Where the loaded prefix ends.
    flows : dict of Flow to (int, list)
        Transfers under way, with their tier and the chunks held there.
    gates : list of Gate
        Of the same, where a step waits for them layer by layer.
    waiters : list of Request
        Who waits for the same prefix.
    """

    __slots__ = ("began_ns", "flows", "gates", "request", "tokens", "waiters")

    def __init__(self, request: Request, tokens: int, began_ns: int) -> None:
        self.request = request
        self.tokens = tokens
        self.began_ns = began_ns
        self.flows: dict[Flow, tuple[int, list[Run]]] = {}
        self.gates: list[Gate] = []
        self.waiters: list[Request] = []


class Keeper:
    """Loads and writes of one replica.

    Parameters
    ----------
    replica : Replica
    plan : KvPlan
    policy : LoadPolicy
    flows : Flows
    reach : Reach
        The replica's ways to its tiers.
    on_end : callable
        Called with (request, outcome, time) when a request ends here.

    Attributes
    ----------
    loads : list of Load
        Under way.
    offered_tokens : int [tokens]
        Where the prefix ends that the latest request could load while it is computed.
    gave_up : set of int
        Who gave up what had been loaded, for another one, by number.
    plan : KvPlan
    flows : Flows
    reach : Reach
    writer : Writer
        What goes the other way.
    tiers : tuple of Tier
        From the nearest to the farthest.
    """

    def __init__(
        self,
        replica: Replica,
        plan: KvPlan,
        flows: Flows,
        reach: Reach,
        on_end: Callable[[Request, str, int], None],
    ) -> None:
        self._replica = replica
        self.plan = plan
        self.flows = flows
        self.reach = reach
        self.tiers = reach.tiers
        self._on_end = on_end
        self.policy: LoadPolicy = plan.load()
        self.by_layer = plan.by_layer
        self.loads: list[Load] = []
        self.offered_tokens = 0
        self.gave_up: set[int] = set()
        self._offered: list[Part] = []
        self.writer = Writer(replica, flows, reach)

    # --- loading ----------------------------------------------------------------------------

    def fetch(self, request: Request, match: Match, known: int) -> int:
        """Load what tiers know of a request at the head of the line, if that is worth it.

        Parameters
        ----------
        request : Request
        match : Match
            What the GPU has of it.
        known : int [tokens]

        Returns
        -------
        int
            `COMPUTE`, `ASIDE`, `STUCK`, or `GATED` with `offered_tokens`.
        """
        segments = request.view.segments
        if segments is None or request.view.index in self.gave_up:
            return COMPUTE
        draft = self._replica.draft
        hit = match.blocks * draft.block_tokens
        # by layer, who loads is running, and what comes is found with the rest of its KV
        joins = self.plan.joins_loads and not self.by_layer
        if joins and self.loads and request.path is not None:
            size = draft.block_tokens
            for load in self.loads:
                shared = min(_shared_tokens(request, load.request), load.tokens, known - 1)
                if shared // size * size > hit:
                    draft.line.pop()
                    request.state = FETCHING
                    load.waiters.append(request)
                    return ASIDE
        parts = self._lookup(request, segments, hit, known)
        if not parts or not self._worth(request, parts, hit, known):
            return COMPUTE
        tokens = parts[-1][3]
        if self.by_layer:
            self._offered = parts
            self.offered_tokens = tokens
            return GATED
        ledger = draft.ledger
        blocks = tokens // draft.block_tokens
        spared = match.unreferenced - match.blocks
        occupied = draft.running_set or draft.beside
        room = ledger.free - (draft.watermark_blocks if occupied else 0)
        whole = -(-known // draft.block_tokens) if draft.reserve_prompt else blocks
        if max(blocks, whole) + spared > room:
            return STUCK
        draft.line.pop()
        if match.blocks:
            ledger.hold(request, match)
        ledger.take(blocks - match.blocks)
        request.computed = tokens
        request.state = FETCHING
        self._start(request, parts, tokens)
        return ASIDE

    def begin(self, request: Request) -> None:
        """Start the load of a request that got in, and have its step wait for it."""
        self._start(request, self._offered, self.offered_tokens)

    def _lookup(self, request: Request, segments: Segments, hit: int, known: int) -> list[Part]:
        if request.generated:
            segments = (*segments, (-1 - request.view.index, request.generated))
        tiers = self.reach.tiers
        parts: list[Part] = []
        at = hit
        found = True
        while found:
            found = False
            for number, tier in enumerate(tiers):
                size = tier.plan.chunk_tokens
                runs = tier.store.find(segments, at // size, (known - 1) // size)
                if runs and runs[-1][2] * size > at:
                    upto = runs[-1][2] * size
                    parts.append((number, runs, at, upto))
                    at = upto
                    found = True
        return parts

    def _worth(self, request: Request, parts: list[Part], hit: int, known: int) -> bool:
        port = self._replica.port
        upto = parts[-1][3]
        load_s = 0.0
        for number, runs, lo, hi in parts:
            plan = self.reach.tiers[number].plan
            rate = plan.codec_bytes_per_s
            for resource in self.reach.into[number]:
                rate = min(rate, self.flows.share(resource))
            chunks = sum(stop - start for _, start, stop in runs)
            time_s = plan.lead_ns(chunks) / NS_PER_S + (hi - lo) * plan.bytes_per_token / rate
            load_s = max(load_s, time_s)
        whole = port.prompt_ns(known - hit, hit)
        rest = port.prompt_ns(known - upto, upto)
        return self.policy.loads(LoadView(upto - hit, hit, load_s, (whole - rest) / NS_PER_S))

    def load_s(self, tokens: int) -> float:
        """Return what a prefix would take to come from the nearest tier now [s], if it is there.

        Parameters
        ----------
        tokens : int [tokens]
        """
        plan = self.reach.tiers[0].plan
        rate = plan.codec_bytes_per_s
        for resource in self.reach.into[0]:
            rate = min(rate, self.flows.share(resource))
        lead_ns = plan.lead_ns(-(-tokens // plan.chunk_tokens))
        return lead_ns / NS_PER_S + tokens * plan.bytes_per_token / rate

    def _start(self, request: Request, parts: list[Part], tokens: int) -> None:
        self._replica.port.expected += 1
        load = Load(request, tokens, self._replica.clock.now)
        self.loads.append(load)
        held = [
            (number, self.reach.tiers[number].store.hold(runs), lo, hi)
            for number, runs, lo, hi in parts
        ]
        for number, runs, lo, hi in held:
            tier = self.reach.tiers[number]
            plan = tier.plan
            size = (hi - lo) * plan.bytes_per_token
            tier.loaded_tokens += hi - lo
            tier.read_bytes += size
            flow = self.flows.start(
                self.reach.into[number],
                size,
                lambda flow: self.came(load, flow),
                rank=request.view.index,
                lead_ns=plan.lead_ns(sum(stop - start for _, start, stop in runs)),
                cap_bytes_per_s=plan.codec_bytes_per_s,
                tracked=self.by_layer,
            )
            load.flows[flow] = (number, runs)
            if self.by_layer:
                gate = Gate(flow, size, self.plan.layers)
                load.gates.append(gate)
                self._replica.draft.gates.append(gate)

    def came(self, load: Load, flow: Flow) -> None:
        """Let go on who has waited for what has come."""
        number, runs = load.flows.pop(flow)
        self.reach.tiers[number].store.release(runs)
        replica = self._replica
        for gate in load.gates:
            if gate.flow is flow:
                gate.ended_ns = replica.clock.now
        if load.flows:
            return
        replica.port.expected -= 1
        self.loads.remove(load)
        if self.by_layer:
            replica.open_gate()
            return
        request = load.request
        replica.ledger.register(request, request.computed)
        request.fetched_blocks = request.computed // replica.draft.block_tokens
        self._line_up(load, True)

    def _line_up(self, load: Load, came: bool) -> None:
        """Return a request and who has waited with it to the front of the line."""
        replica = self._replica
        back = [waiter for waiter in load.waiters if not waiter.ended]
        if came:
            back.insert(0, load.request)
        for request in reversed(back):
            request.state = WAITING
            replica.line.push_back(request)
        if back:
            replica.look_again(load.began_ns == replica.clock.now)

    def drop(self, request: Request, outcome: str) -> None:
        """Let a request go whose client leaves while its KV is on its way."""
        replica = self._replica
        now = replica.clock.now
        request.ended = True
        for load in self.loads:
            if load.request is request:
                self._give_up(load)
                break
        if replica.draft.retainer is not None:
            replica.draft.retainer.left(request)
        replica.ledger.forget(request)
        if request.queued_ns < now:
            replica.meter.waited(request.queued_ns, now)
        replica.decisions.extend((DROP, request.view.index, now))
        self._on_end(request, outcome, now)

    def _give_up(self, load: Load) -> None:
        replica = self._replica
        self.loads.remove(load)
        for flow, (number, runs) in load.flows.items():
            self.flows.cancel(flow)
            self.reach.tiers[number].store.release(runs)
        replica.port.expected -= 1
        request = load.request
        replica.port.note_peak()
        replica.ledger.release(request, request.computed // replica.draft.block_tokens, 0)
        request.computed = 0
        self._line_up(load, False)
        replica.port.room_made()

    def leave_line(self, request: Request) -> None:
        """Give back the blocks of a request that waits with loaded KV and goes."""
        replica = self._replica
        replica.port.note_peak()
        replica.ledger.release(request, request.fetched_blocks, request.computed)
        request.fetched_blocks = request.computed = 0

    def relieve(self, head: Request | None = None) -> bool:
        """Free something where nobody else runs, nothing comes, and the head does not fit.

        The last in line that waits with loaded KV gives it up; it stays cached. Never the head
        itself, wherever it stands in a line of another order: it would load the same again. The
        head may also be the only one who runs, and has no room for its next tokens. Who gave up
        computes from then on: loading again, two could take each other's room for ever.
        """
        replica = self._replica
        running = replica.running - (head in replica.running_set)
        if running or replica.port.expected:
            return False
        for request in reversed(replica.line.requests()):
            if request.fetched_blocks and request is not head:
                self.gave_up.add(request.view.index)
                self.leave_line(request)
                return True
        return False


def _shared_tokens(one: Request, other: Request) -> int:
    """Return how long a prefix two requests have in common, as far as the GPU's ledger knows."""
    shared = 0
    for (edge, end), (edge2, end2) in zip(one.path or (), other.path or (), strict=False):
        if edge is not edge2:
            break
        shared = min(end, end2)
    return shared
