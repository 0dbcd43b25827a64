"""From prefill to decode replicas: whose KV waits where, what moves over which link, and when.

A prompt that has been computed on a prefill replica leaves it as a request whose KV stays behind
under a *lease*. It is routed once more, to a decode replica, and waits in line there. When that
replica has room it takes the blocks and pulls the KV; the lease ends with the last byte, and the
request joins the decodes at the next call of the scheduler. So memory of the prefill replicas is
the buffer between the two, and a link that is too thin fills it.

Sent by layer, a request leaves when the last step of its prompt is launched, and the KV of a layer
goes while the next one is computed. A decode replica may also refuse: then the others are asked in
turn, and the request is held with its KV where it is until one of them has room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.core.units import NS_PER_S
from llmsim.kvcache import Holder
from llmsim.policies.routing import RoutingPolicy
from llmsim.serving.board import LoadBoard
from llmsim.serving.bylayer import LayerWay, call_back, go_by_layer
from llmsim.serving.clock import LAST_PRIORITY, Clock
from llmsim.serving.flows import FLOW_PRIORITY, Flow, Flows
from llmsim.serving.request import HANDED, LOADING, WAITING, Request
from llmsim.serving.wake import Wake

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class TransferPrice:
    """What it takes to move a request's KV from one replica to another.

    ``messages * message_s`` before the first byte, then bytes over the slower of the two ends,
    shared with whoever else uses them.

    Parameters
    ----------
    bytes_per_token : float [bytes/token]
        KV of a token, all layers, on all GPUs of a replica together.
    fixed_bytes : float [bytes]
        State that does not grow with the prompt.
    messages_per_block : float [messages/block]
        Messages per KV block on one GPU; GPUs send side by side.
    messages : float [messages]
        Messages whatever the length.
    message_s : float [s]
        Of one message.
    gathered_s_per_block : float [s/block]
        What copying a block at both ends takes, into one piece and out of it; GPUs side by side.
    """

    bytes_per_token: float
    fixed_bytes: float
    messages_per_block: float
    messages: float
    message_s: float
    gathered_s_per_block: float = 0.0

    def lead_ns(self, blocks: int) -> int:
        """Return what some blocks cost beside their way: messages and copies [ns]."""
        count = self.messages + self.messages_per_block * blocks
        return round((count * self.message_s + blocks * self.gathered_s_per_block) * NS_PER_S)


@dataclass(frozen=True, slots=True)
class HandoffPlan:
    """How requests get from prefill to decode replicas.

    Parameters
    ----------
    router : RoutingPolicy
        A fresh instance; chooses among the decode replicas.
    prices : tuple of TransferPrice
        Of a transfer to a replica of each pool.
    port_bytes_per_s : tuple of float [bytes/s]
        Of one replica of each pool, one direction, all its GPUs together.
    first_token_at_decode : bool
        The client gets the first token from the decode replica, not when it is computed.
    view_age_ns : int [ns]
    layers : tuple of int [layers]
        Of the model of each pool, where KV is sent layer by layer; empty where it is sent whole.
    refuses : bool
        Whether a decode replica without room refuses, instead of letting the request wait there.
    """

    router: RoutingPolicy
    prices: tuple[TransferPrice, ...]
    port_bytes_per_s: tuple[float, ...]
    first_token_at_decode: bool
    view_age_ns: int
    models: tuple[int, ...] = ()
    """Which model each pool serves; empty where there is one."""
    layers: tuple[int, ...] = ()
    refuses: bool = False


class Lease(Holder):
    """KV blocks that stay on a replica after their request has left it.

    Parameters
    ----------
    source : Replica
    request : Request
        Its bookkeeping of the source's ledger moves over to the lease.
    flows : Flows
        All transfers.
    with_token : bool
        The client gets the first token when the KV has arrived, and there is a seat to decode.

    Attributes
    ----------
    tokens, last_tokens : int [tokens]
        Whose KV the blocks hold, and how many of them the last step of the prompt computes.
    flow : Flow or None
        The transfer under way.
    begun_ns, due_ns : int [ns]
        When the request left, and when the step ends that computes the last of its KV; sent by
        layer, it leaves as that step begins.
    windows : list of (int, int) [ns]
        The same of each stage of a pipeline, by layer; empty where all layers are one stage.
    ways : list of LayerWay
        By layer, one for each stage.
    """

    __slots__ = (
        "begun_ns", "due_ns", "flow", "flows", "last_tokens", "source", "tokens", "ways",
        "windows", "with_token",
    )  # fmt: skip

    def __init__(self, source: Replica, request: Request, flows: Flows, with_token: bool) -> None:
        super().__init__()
        self.source = source
        self.flows = flows
        self.with_token = with_token
        self.tokens = self.last_tokens = request.computed
        self.path = request.path
        self.held = request.held
        self.held_blocks = request.held_blocks
        self.flow: Flow | None = None
        self.windows: list[tuple[int, int]] = []
        self.ways: list[LayerWay] = []
        self.due_ns = request.last_token_ns
        self.begun_ns = source.clock.now
        request.path = request.held = None
        request.held_blocks = 0

    def stop(self) -> None:
        """Cancel what is under way."""
        if self.flow is not None:
            self.flows.cancel(self.flow)
        for way in self.ways:
            if way.flow is not None:
                self.flows.cancel(way.flow)

    def abandon(self, request: Request) -> None:
        """Give up the KV that a request has left behind, and the token that is on the way."""
        request.lease = None
        self.stop()
        now = self.source.clock.now
        if self.with_token or request.first_token_ns > now:
            request.first_token_ns = request.last_token_ns = -1
            request.generated = 0
            self.source.meter.log(now, now, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0)
        self.source.port.take_back(self)


def _call(end: Callable[[], None]) -> None:
    end()


class Handoff:
    """The second half of a request's way through the fleet.

    Parameters
    ----------
    clock : Clock
    plan : HandoffPlan
    targets : sequence of Replica
        Those that decode, in the order of the router's indices.
    board : LoadBoard
        Of the targets.
    on_drop : callable
        Called with (request, outcome, time) when a request's client leaves on the way.
    flows : Flows
        Whose resources ``2 i`` and ``2 i + 1`` are what leaves replica i and what comes in.

    Attributes
    ----------
    everywhere : bool
        Whether any replica may get any request: roles change.
    view : LoadBoard
        What the router sees; `board` where that is the same.
    held : deque of (Request, Lease)
        Whom nobody decodes now.
    came_from : dict of int to int
        The replica that has handed over each request that has not ended.
    refuses : bool
        Whether a replica may say no.
    refusals, holds : int
        How often one said no, and a request was held.
    elsewhere : callable or None
        Returns the target that takes a request for which the router has chosen another, by its
        index; -1 if there is none now.
    freed : callable or None
        Called with a replica that has got back the KV blocks of a request which has left.
    hold_end : callable
        Called with 1 and -1 around a time in which the run may not end yet.
    aside : callable
        Calls something in which a request ends outside any call of a scheduler.
    """

    def __init__(
        self,
        clock: Clock,
        plan: HandoffPlan,
        targets: Sequence[Replica],
        board: LoadBoard,
        on_drop: Callable[[Request, str, int], None],
        flows: Flows,
    ) -> None:
        self._clock = clock
        self._prices = plan.prices
        self._first_token_at_decode = plan.first_token_at_decode
        self._targets = targets
        self._board = board
        self._choose = plan.router.choose
        self._on_drop = on_drop
        self._flows = flows
        # the smallest pool of a model counts: the router may choose any
        self._longest_tokens: dict[int, int] = {}
        self._room_tokens: dict[int, int] = {}
        self._models = plan.models
        self._layers = plan.layers
        self.refuses = plan.refuses
        self._release = Wake(self._try_held)
        self._closing = Wake(self._let_end)
        self._open_until_ns = 0
        self.came_from: dict[int, int] = {}
        self.refusals = self.holds = 0
        self.called: Callable[[Replica, int], bool] | None = None
        for target in targets:
            model, config = self._model_of(target), target.config
            room, longest = config.kv_blocks * config.block_tokens, config.max_model_len
            self._room_tokens[model] = min(room, self._room_tokens.get(model, room))
            self._longest_tokens[model] = min(longest, self._longest_tokens.get(model, longest))
        self.routes: list[int] = []
        self.everywhere = False
        self.view = board
        self.held: deque[tuple[Request, Lease]] = deque()
        self.elsewhere: Callable[[int], int] | None = None
        self.freed: Callable[[Replica], None] | None = None
        self.aside: Callable[[Callable[[], None]], None] = _call
        self.hold_end: Callable[[int], None] = lambda change: None

    def _model_of(self, replica: Replica) -> int:
        return self._models[replica.pool] if self._models else 0

    def longest_tokens(self, source: Replica) -> int:
        """Return the longest prompt plus output that all who decode for a replica take [tokens]."""
        return self._longest_tokens[self._model_of(source)]

    def can_ever_hold(self, request: Request) -> bool:
        """Whether every decode replica, empty, has the KV blocks that a request needs."""
        return request.prompt + request.output - 1 <= self._room_tokens[request.view.model]

    def offer(self, request: Request, source: Replica) -> None:
        """Take a request off a prefill replica, during a call there, as of the end of its step.

        Parameters
        ----------
        request : Request
        source : Replica
        """
        # who was decoding when it lost its KV has had its first token
        with_token = self._first_token_at_decode and request.generated == 1
        lease = Lease(source, request, self._flows, with_token)
        if self._layers:
            lease.last_tokens = source.port.step_tokens(request)
            lease.windows = source.port.windows
        request.lease = lease
        request.state = HANDED
        self.came_from[request.view.index] = source.index
        # by layer, its way begins as the step does in which the first layer will be ready
        due = self._clock.now if self._layers else lease.due_ns
        passed = source.turn if due <= self._clock.now else -1  # up to it, all have had their call
        if self._layers:
            self._hold_for(lease)
        if request.generated >= request.output:  # nobody knows until the step has run
            ran = Wake(lambda _: self._last_token_out(request, lease))
            self._clock.at(ran, FLOW_PRIORITY, lease.due_ns)
        wake = Wake(lambda _: self._route(request, lease, passed))
        self._clock.at(wake, FLOW_PRIORITY, due)

    def _hold_for(self, lease: Lease) -> None:
        """Let the run not end, whatever becomes of a request, before its last step is noted."""
        self._open_until_ns = max(self._open_until_ns, lease.due_ns)
        if not self._closing.due:  # else it is held, for as long as that takes
            self.hold_end(1)
            self._clock.at(self._closing, LAST_PRIORITY, self._open_until_ns)

    def _let_end(self, _: Wake) -> None:
        """Let the run end, unless somebody has left whose last step ends later."""
        if self._open_until_ns > self._clock.now:
            self._clock.at(self._closing, LAST_PRIORITY, self._open_until_ns)
        else:
            self.hold_end(-1)

    def _last_token_out(self, request: Request, lease: Lease) -> None:
        """Call a request back whose first token is the only one, as the next calls begin."""
        if not request.ended:
            self.came_from.pop(request.view.index)
            self.aside(lambda: call_back(request, lease))
            if self.freed is not None:
                self.freed(lease.source)

    def route_again(self, request: Request, lease: Lease) -> None:
        """Route a request once more whose target takes it no longer; it has left its line."""
        request.state = HANDED
        wake = Wake(lambda _: self._route(request, lease, -1))
        self._clock.at(wake, FLOW_PRIORITY, self._clock.now)

    def something_freed(self) -> None:
        """Try those who were refused again, as soon as the call under way is through."""
        now = self._clock.now
        if self.refuses and (not self._release.due or self._release.time_ns != now):
            self._clock.at(self._release, FLOW_PRIORITY, now)

    def _try_held(self, _: Wake) -> None:
        held = self.held
        while held:
            request, lease = held[0]
            if not request.ended and not self._send(request, lease, self._chosen(request), -1):
                return
            held.popleft()

    def try_held(self) -> None:
        """Route those again whom nobody could decode."""
        held = self.held
        self.held = deque()
        for request, lease in held:
            if not request.ended:
                self.route_again(request, lease)

    def _chosen(self, request: Request) -> int:
        """Ask the router."""
        chosen = self._choose(request.view)
        self.routes.append(chosen)
        return chosen

    def _route(self, request: Request, lease: Lease, passed: int) -> None:
        if request.ended:
            return
        chosen = self._chosen(request)
        if self.elsewhere is not None:
            chosen = self.elsewhere(chosen)
            if chosen < 0:
                self._hold(request, lease)
                return
            self.routes.append(chosen)
        waits = self.refuses and bool(self.held)
        if waits or not self._send(request, lease, chosen, passed):
            self._hold(request, lease)

    def _hold(self, request: Request, lease: Lease) -> None:
        self.holds += 1
        self.held.append((request, lease))

    def _send(self, request: Request, lease: Lease, chosen: int, passed: int) -> bool:
        """Put a request in the line of the target chosen, or of one that does not refuse it.

        Returns
        -------
        bool
            Whether somebody takes it.
        """
        now = self._clock.now
        if self.refuses:
            chosen = self._taker(chosen, lease)
            if chosen < 0:
                return False
            self.routes.append(chosen)
        target = self._targets[chosen]
        if target.ranks is not None:
            here = target.ranks is lease.source.ranks  # where it is, it need not be copied
            target = lease.source if here else target.ranks.choose()
        if target is lease.source and lease.due_ns > now:
            wake = Wake(lambda _: self._route(request, lease, -1))
            self._clock.at(wake, FLOW_PRIORITY, lease.due_ns)
            return True
        source = request.replica
        if source is not None and lease.due_ns > now:  # it still takes a step there
            gone = Wake(lambda _: None if request.replica is source else self._left(source))
            self._clock.at(gone, FLOW_PRIORITY, lease.due_ns)
        elif source is not None:
            self._left(source)
        self._board.change(chosen, 1, now)
        called = target.turn <= passed
        if self.called is not None and self.called(target, now):
            called = True
        if target is lease.source:
            target.port.keep(request, lease, called)
            return True
        request.state = WAITING
        request.queued_ns = now
        target.enqueue(request, called)
        return True

    def _left(self, source: Replica) -> None:
        """Note that a request is on its source no more."""
        if source.board is not None:
            source.board.change(source.slot, -1, self._clock.now)

    def _taker(self, first: int, lease: Lease) -> int:
        """Return the first target from `first` on, in a circle, that has room; or -1."""
        targets = self._targets
        for step in range(len(targets)):
            chosen = (first + step) % len(targets)
            if targets[chosen].port.has_room(lease.tokens):
                return chosen
            self.refusals += 1
        return -1

    def pull(self, request: Request, target: Replica, hit_tokens: int, blocks: int) -> None:
        """Start to move a request's KV to the replica that has made room for it.

        Parameters
        ----------
        request : Request
        target : Replica
        hit_tokens : int [tokens]
            At the target already.
        blocks : int [blocks]
            To move.
        """
        lease = request.lease
        if lease is None:
            raise InvariantError(f"request {request.view.index} has left no KV behind")
        request.state = LOADING
        began = self._clock.now
        price = self._prices[target.pool]
        size = price.bytes_per_token * (lease.tokens - hit_tokens) + price.fixed_bytes

        lead_ns = price.lead_ns(blocks)
        path = (2 * lease.source.index, 2 * target.index + 1)
        rank = request.view.index

        def arrived(_: Flow) -> None:
            lease.source.port.take_back(lease)
            request.lease = None
            target.port.kv_arrived(request, began == self._clock.now, lease.with_token)
            if self.freed is not None:
                self.freed(lease.source)

        layers = self._layers[lease.source.pool] if self._layers else 1
        if layers == 1 or lease.due_ns <= began:
            lead_ns += max(0, lease.due_ns - began)
            lease.flow = self._flows.start(path, size, arrived, rank=rank, lead_ns=lead_ns)
            return
        # what the steps before the last one have computed need not wait for any layer
        there = max(0, lease.tokens - lease.last_tokens - hit_tokens)
        whole = min(blocks, there // target.config.block_tokens)
        sent = price.bytes_per_token * whole * target.config.block_tokens
        first_ns = -1
        if whole:
            first_ns, lead_ns = price.lead_ns(whole), price.lead_ns(blocks - whole)
        go_by_layer(
            lease, self._clock, path, rank, layers, sent, first_ns, size - sent, lead_ns, arrived
        )

    def drop(self, request: Request, outcome: str) -> None:
        """End a request whose client leaves while its KV is left somewhere or on its way."""
        request.ended = True
        lease = request.lease
        if lease is not None:
            lease.abandon(request)
            if self.freed is not None:
                self.freed(lease.source)
        self._on_drop(request, outcome, self._clock.now)
