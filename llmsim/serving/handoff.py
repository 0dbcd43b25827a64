"""From prefill to decode replicas: whose KV waits where, what moves over which link, and when.

A prompt that has been computed on a prefill replica leaves it as a request whose KV stays behind
under a *lease*. It is routed once more, to a decode replica, and waits in line there. When that
replica has room it takes the blocks and pulls the KV; the lease ends with the last byte, and the
request joins the decodes at the next call of the scheduler. So memory of the prefill replicas is
the buffer between the two, and a link that is too thin fills it.
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
from llmsim.serving.clock import Clock
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
    """

    bytes_per_token: float
    fixed_bytes: float
    messages_per_block: float
    messages: float
    message_s: float

    def lead_ns(self, blocks: int) -> int:
        """Return what the messages for some blocks cost [ns]."""
        count = self.messages + self.messages_per_block * blocks
        return round(count * self.message_s * NS_PER_S)


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
        The client gets the first token when the KV has arrived, not when it is computed.
    view_age_ns : int [ns]
    """

    router: RoutingPolicy
    prices: tuple[TransferPrice, ...]
    port_bytes_per_s: tuple[float, ...]
    first_token_at_decode: bool
    view_age_ns: int
    models: tuple[int, ...] = ()
    """Which model each pool serves; empty where there is one."""


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
        The client gets the first token when the KV has arrived.

    Attributes
    ----------
    tokens : int [tokens]
        Whose KV the blocks hold.
    flow : Flow or None
        The transfer under way.
    """

    __slots__ = ("flow", "flows", "source", "tokens", "with_token")

    def __init__(self, source: Replica, request: Request, flows: Flows, with_token: bool) -> None:
        super().__init__()
        self.source = source
        self.flows = flows
        self.with_token = with_token
        self.tokens = request.computed
        self.path = request.path
        self.held = request.held
        self.held_blocks = request.held_blocks
        self.flow: Flow | None = None
        request.path = request.held = None
        request.held_blocks = 0

    def abandon(self, request: Request) -> None:
        """Give up the KV that a request has left behind, and the token that is on the way."""
        request.lease = None
        if self.flow is not None:
            self.flows.cancel(self.flow)
        now = self.source.clock.now
        if self.with_token or request.first_token_ns > now:
            request.first_token_ns = request.last_token_ns = -1
            request.generated = 0
            self.source.meter.log((now, now, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0))
        self.source.port.take_back(self)


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
    elsewhere : callable or None
        Returns the target that takes a request for which the router has chosen another, by its
        index; -1 if there is none now.
    freed : callable or None
        Called with a replica that has got back the KV blocks of a request which has left.
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
        request.lease = lease
        request.state = HANDED
        due = request.last_token_ns
        # at this instant the replicas up to this one have had their call
        passed = source.turn if due <= self._clock.now else -1
        wake = Wake(lambda _: self._route(request, lease, passed))
        self._clock.at(wake, FLOW_PRIORITY, due)

    def route_again(self, request: Request, lease: Lease) -> None:
        """Route a request once more whose target takes it no longer; it has left its line."""
        request.state = HANDED
        wake = Wake(lambda _: self._route(request, lease, -1))
        self._clock.at(wake, FLOW_PRIORITY, self._clock.now)

    def try_held(self) -> None:
        """Route those again whom nobody could decode."""
        held = self.held
        self.held = deque()
        for request, lease in held:
            if not request.ended:
                self.route_again(request, lease)

    def _route(self, request: Request, lease: Lease, passed: int) -> None:
        if request.ended:
            return
        now = self._clock.now
        chosen = self._choose(request.view)
        self.routes.append(chosen)
        if self.elsewhere is not None:
            chosen = self.elsewhere(chosen)
            if chosen < 0:
                self.held.append((request, lease))
                return
            self.routes.append(chosen)
        target = self._targets[chosen]
        if target.ranks is not None:
            target = target.ranks.choose()
        source = request.replica
        if source is not None and source.board is not None:
            source.board.change(source.slot, -1, now)
        self._board.change(chosen, 1, now)
        if target is lease.source:
            target.port.keep(request, lease, target.turn <= passed)
            return
        request.state = WAITING
        request.queued_ns = now
        target.enqueue(request, target.turn <= passed)

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

        def arrived(_: Flow) -> None:
            now = self._clock.now
            lease.source.port.take_back(lease)
            request.lease = None
            if lease.with_token:
                request.first_token_ns = request.last_token_ns = now
            target.port.kv_arrived(request, began == now)
            if self.freed is not None:
                self.freed(lease.source)

        lease.flow = self._flows.start(
            (2 * lease.source.index, 2 * target.index + 1),
            size,
            arrived,
            rank=request.view.index,
            lead_ns=price.lead_ns(blocks),
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
