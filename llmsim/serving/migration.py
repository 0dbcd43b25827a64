"""Running requests that change replicas: their KV is copied while they go on decoding.

KV is append-only, so what has been copied stays right while more appears. A *move* reserves blocks
at its target and copies in rounds, each of them what has appeared since the one before. When little
is left the request sits out: the step under way is its last at the source, the rest is copied, and
it joins the decodes at the target. Until then any round may find that the move has lost its reason
(the request ended, lost its KV, the target is full), and gives everything back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.results.changes import FleetChange
from llmsim.serving.clock import Clock
from llmsim.serving.decisions import MOVE_IN, MOVE_OUT
from llmsim.serving.flows import FLOW_PRIORITY, Flows
from llmsim.serving.handoff import Lease, TransferPrice
from llmsim.serving.request import FINISHING, LOADING, MOVING, Request
from llmsim.serving.wake import Wake

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """How running requests get from replica to replica.

    Parameters
    ----------
    prices : tuple of TransferPrice
        Of a transfer from a replica of each pool.
    port_bytes_per_s : tuple of float [bytes/s]
        Of one replica of each pool, one direction, all its GPUs together.
    drag_frac : tuple of float
        By how much one transfer lengthens the steps of a replica of each pool.
    rounds : int
        Copies made while the request goes on decoding, at most.
    last_blocks : int [blocks]
        When no more than these are left the request sits out until they are copied.
    handshake_ns : int [ns]
        What the two ends need to agree on the change, with the request sitting out.
    most_per_replica : int
        Moves that one replica takes part in at a time.
    """

    prices: tuple[TransferPrice, ...]
    port_bytes_per_s: tuple[float, ...]
    drag_frac: tuple[float, ...]
    rounds: int = 3
    last_blocks: int = 16
    handshake_ns: int = 1_000_000
    most_per_replica: int = 1


class Move:
    """One request on its way.

    Attributes
    ----------
    request : Request
    source, target : Replica
    preemptions : int
        Of the request, when the move began: one more and its KV is gone.
    copied : int [tokens]
        Whose KV has arrived at the target.
    copying : int [tokens]
        Whose KV will have arrived when the transfer under way has.
    round : int
        Copies made so far.
    reserved : int [blocks]
        At the target.
    lease : Lease or None
        The source's blocks, once the request has left it.
    left_ns : int [ns]
        When the last token before the change was out.
    void : str
        Why the move is off; empty while it is on.
    """

    __slots__ = (
        "copied",
        "copying",
        "lease",
        "left_ns",
        "preemptions",
        "request",
        "reserved",
        "round",
        "source",
        "target",
        "void",
    )

    def __init__(self, request: Request, source: Replica, target: Replica) -> None:
        self.request = request
        self.source = source
        self.target = target
        self.preemptions = request.preemptions
        self.copied = 0
        self.copying = 0
        self.round = 0
        self.reserved = 0
        self.lease: Lease | None = None
        self.left_ns = 0
        self.void = ""


class Migrations:
    """All moves of a run.

    Parameters
    ----------
    clock : Clock
    plan : MigrationPlan
    flows : Flows
        Whose resources ``2 i`` and ``2 i + 1`` are what leaves replica i and what comes in.
    replicas : sequence of Replica
    on_end : callable
        Called with (request, outcome, time) when a request's client leaves during the change.
    on_idle : callable
        Called when the last move under way has come to its end.
    told : callable
        Hears of every move that begins, ends or is called off.

    Attributes
    ----------
    under_way : dict of Request to Move
    strand : callable or None
        Called with a request whose replica failed while it was between two.
    freed : callable or None
        Called with both replicas of a move that has come to its end.
    """

    def __init__(
        self,
        clock: Clock,
        plan: MigrationPlan,
        flows: Flows,
        replicas: Sequence[Replica],
        on_end: Callable[[Request, str, int], None],
        on_idle: Callable[[], None],
        told: Callable[[FleetChange], None],
    ) -> None:
        self._clock = clock
        self._plan = plan
        self._flows = flows
        self._on_end = on_end
        self._on_idle = on_idle
        self._told = told
        self._busy = [0] * len(replicas)
        self.under_way: dict[Request, Move] = {}
        self.strand: Callable[[Request], None] | None = None
        self.freed: Callable[[Replica], None] | None = None
        for replica in replicas:
            for delivery in replica.port.deliveries():
                delivery.depart = self._departed
            replica.port.moves = self

    # --- asked for --------------------------------------------------------------------------

    def refusal(self, request: Request, source: Replica, target: Replica) -> str:
        """Say why a request cannot be moved now; empty if it can."""
        most = self._plan.most_per_replica
        if request.ended or request.replica is not source:
            return "gone"
        if not source.port.decodes(request) or request.first_token_ns > self._clock.now:
            return "not decoding"
        if request in self.under_way:
            return "moving already"
        if target is source:
            return "there already"
        if target.port.gives:
            return "nobody decodes there"
        if self._busy[source.index] >= most or self._busy[target.index] >= most:
            return "busy"
        if target.config.block_tokens != source.config.block_tokens:
            return "other KV blocks"
        if not target.port.can_ever_hold(request):
            return "too long there"
        return ""

    def start(self, request: Request, source: Replica, target: Replica) -> str:
        """Begin to move a decoding request, between the calls of an instant.

        Parameters
        ----------
        request : Request
        source, target : Replica

        Returns
        -------
        str
            Why it cannot be, or nothing.
        """
        reason = self.refusal(request, source, target)
        move = Move(request, source, target)
        if not reason and not self._reserve(move, source.port.computed_tokens(request)):
            reason = "target full"
        if reason:
            self._note("migrate-refused", move)
            return reason
        self.under_way[request] = move
        self._busy[source.index] += 1
        self._busy[target.index] += 1
        target.port.expected += 1
        self._note("migrate", move)
        self._copy(move)
        return ""

    # --- rounds -----------------------------------------------------------------------------

    def _copy(self, move: Move) -> None:
        """Copy what has appeared since the last round, or let the request sit out."""
        source = move.source
        size = source.config.block_tokens
        tokens = source.port.computed_tokens(move.request)
        left = -(-tokens // size) - move.copied // size
        if move.round >= self._plan.rounds or left <= self._plan.last_blocks:
            # until it has left, what is scheduled now, and a step more, will have run
            if not self._reserve(move, tokens + 2 * source.config.lookahead + 2):
                self._close(move, "target full")
                return
            source.port.let_depart(move.request)
            return
        if not self._reserve(move, tokens):
            self._close(move, "target full")
            return
        move.copying = tokens
        self._transfer(move, tokens, 0)

    def _transfer(self, move: Move, tokens: int, wait_ns: int) -> None:
        """Send the KV of a request up to `tokens` [tokens], `wait_ns` [ns] from now."""
        source, target = move.source, move.target
        price = self._plan.prices[source.pool]
        size = source.config.block_tokens
        blocks = -(-tokens // size) - move.copied // size
        amount = price.bytes_per_token * (tokens - move.copied)
        if not move.copied:
            amount += price.fixed_bytes
        self._drag(move, 1)
        self._flows.start(
            (2 * source.index, 2 * target.index + 1),
            amount,
            lambda _: self._copied(move),
            rank=move.request.view.index,
            lead_ns=price.lead_ns(blocks) + wait_ns,
        )

    def _copied(self, move: Move) -> None:
        self._drag(move, -1)
        if move.lease is not None:
            self._commit(move)
            return
        move.copied = move.copying
        move.round += 1
        request = move.request
        if move.void:
            self._close(move, move.void)
        elif request.ended:
            self._close(move, "ended")
        elif request.preemptions != move.preemptions or not move.source.port.decodes(request):
            self._close(move, "lost its KV")
        else:
            self._copy(move)

    def _drag(self, move: Move, more: int) -> None:
        drag_frac = self._plan.drag_frac
        move.source.port.carry(more, drag_frac[move.source.pool])
        move.target.port.carry(more, drag_frac[move.target.pool])

    # --- the change -------------------------------------------------------------------------

    def _departed(self, request: Request, ready_ns: int) -> None:
        """Take a request out of its source's batch, in a call there.

        Parameters
        ----------
        request : Request
        ready_ns : int [ns]
            When its last token at the source is out; -1 if it could not leave.
        """
        move = self.under_way[request]
        source = move.source
        if ready_ns < 0:
            reason = "ended" if request.ended or request.state == FINISHING else "lost its KV"
            # at this instant the replicas up to the source have had their call
            passed = move.target.turn <= source.turn
            wake = Wake(lambda _: self._close(move, reason, passed))
            self._clock.at(wake, FLOW_PRIORITY, self._clock.now)
            return
        path = request.path
        if path and path[-1][0].writer is request:
            path[-1][0].writer = None
        source.ledger.register(request, request.computed - source.config.lookahead)
        move.lease = Lease(source, request, self._flows, False)
        source.port.expected += 1
        source.decisions.extend((MOVE_OUT, request.view.index, self._clock.now))
        request.state = MOVING
        move.left_ns = ready_ns
        wake = Wake(lambda _: self._send_rest(move, request.computed))
        self._clock.at(wake, FLOW_PRIORITY, ready_ns)

    def _send_rest(self, move: Move, tokens: int) -> None:
        if move.request.ended or move.void:
            self._commit(move)
        else:
            self._transfer(move, tokens, self._plan.handshake_ns)

    def _commit(self, move: Move) -> None:
        """Let a request go on where its KV now is; where that is not possible, where it was."""
        request, source, target = move.request, move.source, move.target
        lease = move.lease
        if lease is None or request.ended or move.void:
            self._close(move, move.void or "ended")
            if not request.ended and self.strand is not None:
                request.recomputed += request.computed
                request.preemptions += 1
                request.computed = 0
                self.strand(request)
            return
        now = self._clock.now
        exact = -(-lease.tokens // target.config.block_tokens)
        if move.reserved < exact:
            raise InvariantError(f"request {request.view.index} outgrew what was kept for it")
        if move.reserved > exact:
            target.port.give_back(move.reserved - exact)
        move.reserved = 0
        self._free_source(move, lease)
        request.replica = target
        request.state = LOADING  # until there is a seat
        if source.board is not None and target.board is not None:
            source.board.change(source.slot, -1, now)
            target.board.change(target.slot, 1, now)
        target.decisions.extend((MOVE_IN, request.view.index, now))
        target.port.expected += 1
        target.port.kv_arrived(request, False)
        self._close(move, "")

    def drop(self, request: Request, outcome: str) -> None:
        """End a request whose client leaves while it changes replicas."""
        request.ended = True
        self._on_end(request, outcome, self._clock.now)

    def _free_source(self, move: Move, lease: Lease) -> None:
        move.source.port.book_kv()
        move.source.port.note_peak()
        move.source.port.take_back(lease)
        move.lease = None

    def fail(self, replica: Replica) -> None:
        """Call off all moves that a replica takes part in."""
        for move in self.under_way.values():
            if replica is move.source or replica is move.target:
                move.void = "a replica failed"

    # --- room and its return ----------------------------------------------------------------

    def _reserve(self, move: Move, tokens: int) -> bool:
        """Take blocks at the target for the KV of some tokens; what is reserved counts."""
        target = move.target
        more = -(-tokens // target.config.block_tokens) - move.reserved
        if more <= 0:
            return True
        target.port.book_kv()
        if more + target.config.watermark_blocks > target.ledger.free:
            return False
        target.ledger.take(more)
        move.reserved += more
        target.port.note_peak()
        target.cut()
        return True

    def _close(self, move: Move, reason: str, passed: bool = False) -> None:
        """End a move: done, or called off for a reason.

        Parameters
        ----------
        move : Move
        reason : str
            Empty when it is done.
        passed : bool
            The target's turn to be called at this instant has passed.
        """
        request, source, target = move.request, move.source, move.target
        del self.under_way[request]
        self._busy[source.index] -= 1
        self._busy[target.index] -= 1
        target.port.expected -= 1
        if move.reserved:
            target.port.give_back(move.reserved)
            target.port.room_made(passed)
        if move.lease is not None:
            self._free_source(move, move.lease)
        if reason:
            self._note(f"migrate-off: {reason}", move)
        else:
            self._note("migrated", move, self._clock.now - move.left_ns)
        if self.freed is not None:
            self.freed(source)
            self.freed(target)
        if not self.under_way:
            self._on_idle()

    def _note(self, what: str, move: Move, value: int = 0) -> None:
        source, target = move.source.index, move.target.index
        index = move.request.view.index
        self._told(FleetChange(self._clock.now, what, source, target, index, value))
