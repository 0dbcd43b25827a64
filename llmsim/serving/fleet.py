"""The front of the fleet: arrivals come in, are routed, and leave as rows."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import simpy

from llmsim.core.errors import InvariantError
from llmsim.core.integers import packed
from llmsim.policies.routing import RoutingPolicy
from llmsim.policies.views import ProgramView, RequestView
from llmsim.results.columns import OUTCOMES
from llmsim.results.store import GATHER_ROWS, RequestSink
from llmsim.serving.beliefs import Beliefs
from llmsim.serving.board import LoadBoard
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.continuation import Continuation
from llmsim.serving.decision import Decision
from llmsim.serving.encoding import Encoding
from llmsim.serving.frontend import FrontEnd
from llmsim.serving.gateway import Gateway
from llmsim.serving.handoff import Handoff
from llmsim.serving.labels import ClientRules, Labels
from llmsim.serving.life import Life
from llmsim.serving.migration import Move
from llmsim.serving.replica import Replica
from llmsim.serving.request import FETCHING, WAITING, Request
from llmsim.serving.rerouting import Rerouting
from llmsim.serving.roles import Roles
from llmsim.serving.wake import Wake
from llmsim.workload.chunk import ClosedLoop, RequestChunk, Workload
from llmsim.workload.programs import NextCall

OUTCOME_CODE = {name: code for code, name in enumerate(OUTCOMES)}

_HASH_EVERY: Final = 1_024  # ended requests: few, so that decisions waiting stay in the cache
_TELL_EVERY: Final = 8_192  # ended requests


class Fleet:
    """Arrivals, routing, departures.

    Parameters
    ----------
    clock : Clock
    workload : Workload
    router : RoutingPolicy
        Started with the board by the caller.
    board : LoadBoard
    clients : ClientRules
    sink : RequestSink
    progress : callable or None
        Called now and then with (requests ended, total or None).
    """

    def __init__(
        self,
        clock: Clock,
        workload: Workload,
        router: RoutingPolicy,
        board: LoadBoard,
        clients: ClientRules,
        sink: RequestSink,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        self.clock = clock
        self.replicas: list[Replica] = []
        self.doors: list[Replica] = []
        self.handoff: Handoff | None = None
        self.gateway: Gateway | None = None
        self.life: Life | None = None
        self.beliefs: Beliefs | None = None
        self.decision: Decision | None = None
        self.encoding: Encoding | None = None
        self.rerouting: Rerouting | None = None
        self.roles: Roles | None = None
        self.under_way: dict[Request, Move] = {}  # between two replicas; the run waits for them
        self.done = clock.env.event()
        self.arrived = self.ended = self.truncated = self.closing = 0
        self.stopped = False
        self._caller_ns = self._caller = -1  # the latest call in which one ended, and whose it was
        self.last_end_ns = 0
        self._choose = router.choose
        self.board = board
        self._timeout_ns = clients.timeout_ns
        self._labels = Labels(clients)
        self._has_classes = len(clients.classes) > 0
        self._sink = sink
        self._rows = sink.rows
        self._progress = progress
        self._total = workload.total
        self._live: set[Request] = set()
        self._timeouts: deque[Request] = deque()
        self._timeout_pending = False
        self._loop: ClosedLoop | None = workload.closed_loop
        self._front: FrontEnd | None = None
        if self._loop is not None and self._loop.has_front_end:
            self._front = FrontEnd(clock, self._send_next, self._loop)
        programs = workload.programs
        self._continuation = None if programs is None else Continuation(clock, self, programs)
        self._chunks: Iterator[RequestChunk] = workload.chunks()
        self._at = self._size = 0
        self._exhausted = False
        self._routes: list[int] = []
        self._route_hash = hashlib.blake2b(digest_size=16)
        self._replica_hashes: list[hashlib.blake2b] = []
        self._arrival = Wake(self._arrive)

    # --- arrivals ---------------------------------------------------------------------------

    def start(self, replicas: list[Replica], doors: list[Replica]) -> None:
        """Schedule the first arrival (of every slot, in a closed loop).

        Parameters
        ----------
        replicas : list of Replica
        doors : list of Replica
            Those that take arrivals, in the order of the router's indices.
        """
        self.replicas = replicas
        self.doors = doors
        self._replica_hashes = [hashlib.blake2b(digest_size=16) for _ in replicas]
        if not self._next_chunk():
            self._exhausted = True
            self.done.succeed()
            return
        if self._loop is None:
            self.clock.at(self._arrival, ARRIVAL_PRIORITY, self._arrivals[0])
        else:
            for _ in range(self._loop.in_flight):
                self._send_at(0)

    def _next_chunk(self) -> bool:
        chunk = next(self._chunks, None)
        while chunk is not None and not len(chunk):
            chunk = next(self._chunks, None)
        if chunk is None:
            return False
        # lists of Python ints: indexing a NumPy array costs several times as much
        self._arrivals: list[int] = chunk.arrival_ns.tolist()
        self._prompts: list[int] = chunk.prompt_tokens.tolist()
        self._outputs: list[int] = chunk.output_tokens.tolist()
        self._sessions: list[int] = chunk.session.tolist()
        self._clients: list[int] = chunk.client.tolist()
        self._priorities: list[int] = chunk.priority.tolist()
        self._failed: list[bool] | None = chunk.failed.tolist() if chunk.failed.any() else None
        aborts = chunk.abort_ns
        self._aborts: list[int] | None = aborts.tolist() if (aborts >= 0).any() else None
        self._segments = chunk.segments
        self._labelled = self._labels.read(chunk)
        if self.beliefs is not None:
            self.beliefs.read(chunk)
        self._at, self._size = 0, len(chunk)
        return True

    def _at_time(self, time_ns: int, callback: Callable[[simpy.Event], None]) -> None:
        self.clock.at(Wake(callback), ARRIVAL_PRIORITY, time_ns)

    def _arrive(self, _: simpy.Event) -> None:
        """Take in everything that arrives now, then wait for the next."""
        now = self.clock.now
        arrivals = self._arrivals
        while True:
            self._admit(now)
            at = self._at = self._at + 1
            if at >= self._size:
                if not self._next_chunk():
                    self._exhausted = True
                    self.check_done()
                    return
                arrivals = self._arrivals
                at = 0
            if arrivals[at] > now:
                self.clock.at(self._arrival, ARRIVAL_PRIORITY, arrivals[at])
                return

    def _admit(self, now: int) -> Request | None:
        """Route the request at the cursor."""
        at = self._at
        index = self.arrived
        self.arrived = index + 1
        segments = self._segments
        view = RequestView(
            index,
            now,
            self._prompts[at],
            self._sessions[at],
            self._clients[at],
            self._priorities[at],
            segments[at] if segments is not None else None,
        )
        if self._continuation is not None:
            view.program = ProgramView(now, 0)
        if self._labelled:
            self._labels.tell(view, at)
        if self.beliefs is not None:
            self.beliefs.tell(view, at)
        request = Request(view, self._outputs[at])
        if self._failed is not None and self._failed[at]:
            self._row(request, "provider_failed", now)
            return None
        if not self._take_in(request, now):
            return None
        if self._aborts is not None and self._aborts[at] >= 0:
            self._at_time(now + self._aborts[at], lambda _: self._abort(request))
        return request

    def take_in_call(self, call: NextCall, program: ProgramView) -> None:
        """Route a call that another call has brought about."""
        now = self.clock.now
        index = self.arrived
        self.arrived = index + 1
        view = RequestView(
            index,
            now,
            call.prompt_tokens,
            call.program,
            call.client,
            call.priority,
            call.segments,
            program,
        )
        view.promise = program.promise
        if self.beliefs is not None:
            self.beliefs.tell_call(view, call)
        if not self._take_in(Request(view, call.output_tokens), now) and self._loop is not None:
            self._send_at(now + self._loop.think_ns)

    def _take_in(self, request: Request, now: int) -> bool:
        """Route a request; return whether somebody takes it."""
        view = request.view
        encoding = self.encoding if view.images else None
        if encoding is None:
            chosen = self.chosen(request)
            replica = self.doors[chosen]
        else:
            chosen = encoding.choose(view)
            replica = encoding.doors[chosen]
        if replica.ranks is not None and self.gateway is None:
            replica = replica.ranks.choose()
        refusal = self._refusal(request, replica)
        if refusal is not None:
            request.replica = replica
            self._row(request, refusal, now)
            return False
        self._live.add(request)
        if encoding is not None:
            encoding.send(request, chosen, replica)
        elif self.decision is not None:
            self.decision.send(request, chosen, replica)
        elif self.gateway is None:
            self.put(request, chosen, replica)
        elif self.gateway.held or not self.send(request, chosen):
            self.gateway.hold(request)
        if self.rerouting is not None:
            self._routes += self.rerouting.carry_out()
        if self._timeout_ns:
            self._watch_timeout(request)
        return True

    def chosen(self, request: Request) -> int:
        """Ask the router of arrivals."""
        chosen = self._choose(request.view)
        self._routes.append(chosen)
        return chosen

    # --- through the gateway ----------------------------------------------------------------

    def send(self, request: Request, chosen: int = -1) -> bool:
        """Give a request to a replica that takes it; return whether there is one.

        Parameters
        ----------
        request : Request
        chosen : int
            The router's choice; -1 to ask for it.
        """
        if self.gateway is None:
            raise InvariantError("nothing is held where there is no gateway")
        if chosen < 0:
            chosen = self.chosen(request)
        slot = self.gateway.door(chosen)
        if slot < 0:
            return False
        self._routes.append(slot)
        self.put(request, slot, self.gateway.behind(slot))
        return True

    def put(self, request: Request, slot: int, replica: Replica) -> None:
        """Put a request in the line of a replica; its place on the board is `slot`."""
        self.board.change(slot, 1, self.clock.now)
        replica.enqueue(request, self.called(replica, self.clock.now))

    def set_adrift(self, request: Request) -> None:
        """Note that a request is on no replica for the time being."""
        replica = request.replica
        if replica is not None and replica.board is not None:
            replica.board.change(replica.slot, -1, self.clock.now)
        request.replica = None
        request.state = WAITING

    def requeue(self, request: Request) -> None:
        """Route a request again that its replica has not begun, or has lost."""
        if request.ended or self.gateway is None:
            return
        if request.replica is not None:
            self.set_adrift(request)
        request.queued_ns = self.clock.now
        if self.gateway.held or not self.send(request):
            self.gateway.hold(request)

    def leave_unserved(self, request: Request, outcome: str) -> None:
        """End a request that is on no replica."""
        now = self.clock.now
        request.ended = True
        self._live.discard(request)
        follow = self._continuation
        goes_on = follow is not None and follow.ended(request, False, now)
        self._row(request, outcome, now)
        if self._loop is not None and not goes_on:
            self._send_at(now + self._loop.think_ns)

    def _refusal(self, request: Request, replica: Replica) -> str | None:
        """Say why a replica cannot take a request; clip an output that would be too long."""
        port = replica.port
        room = port.longest_tokens() - request.prompt
        if room < 1:
            return "rejected"
        if request.output > room:
            request.output = room
            self.truncated += 1
        return None if port.can_ever_hold(request) else "unservable"

    # --- clients ----------------------------------------------------------------------------

    def _send_at(self, ready_ns: int) -> None:
        """Send a slot's next request, through the front end where there is one."""
        if self._front is None:
            self._at_time(ready_ns, self._send_next)
        else:
            self._front.expect(ready_ns)

    def _send_next(self, _: simpy.Event) -> None:
        """Send the next request of a slot of the closed loop."""
        while not self._exhausted:
            request = self._admit(self.clock.now)
            self._at += 1
            if self._at >= self._size and not self._next_chunk():
                self._exhausted = True
                self.check_done()
            if request is not None:
                return

    def _watch_timeout(self, request: Request) -> None:
        # all clients wait equally long, so they give up in order: one pending event serves all
        self._timeouts.append(request)
        if not self._timeout_pending:
            self._timeout_pending = True
            self._at_time(request.arrival_ns + self._timeout_ns, self._time_out)

    def _time_out(self, _: simpy.Event) -> None:
        now = self.clock.now
        line = self._timeouts
        while line and (line[0].ended or line[0].arrival_ns + self._timeout_ns <= now):
            request = line.popleft()
            if not request.ended:
                self._drop(request, "timed_out")
        self._timeout_pending = bool(line)
        if line:
            self._at_time(line[0].arrival_ns + self._timeout_ns, self._time_out)

    def _abort(self, request: Request) -> None:
        if not request.ended:
            self._drop(request, "aborted")

    def _drop(self, request: Request, outcome: str) -> None:
        replica = request.replica
        if replica is None:
            self.leave_unserved(request, outcome)
            return
        called = self.called(replica, self.clock.now)
        self.aside(lambda: replica.drop(request, outcome, called))  # it may end in the line

    def aside(self, end: Callable[[], None]) -> None:
        """Let a request end outside any call of a scheduler."""
        caller = self._caller_ns, self._caller
        end()
        self._caller_ns, self._caller = caller

    def called(self, replica: Replica, now: int) -> bool:
        """Whether a replica's turn at this instant has passed.

        Clients come before all calls of an instant, but not one that such a call has set free.
        """
        return now == self._caller_ns and replica.turn <= self._caller

    # --- departures -------------------------------------------------------------------------

    def on_end(self, request: Request, outcome: str, time_ns: int) -> None:
        """Record a request that ended on a replica."""
        replica = request.replica
        if replica is None or replica.board is None:
            raise InvariantError(f"request {request.view.index} ended nowhere")
        replica.board.change(replica.slot, -1, time_ns)
        self._caller_ns = time_ns
        self._caller = replica.turn
        self._live.discard(request)
        if self.beliefs is not None and outcome == "finished":
            self.beliefs.ended(request.view, request.generated)
        follow = self._continuation
        goes_on = follow is not None and follow.ended(request, outcome == "finished", time_ns)
        self._row(request, outcome, time_ns)
        if self.gateway is not None:
            self.gateway.something_freed()
            if self.life is not None:
                self.life.look_soon(replica)
            if self.roles is not None:
                self.roles.look_soon(replica)
        if self.handoff is not None and self.handoff.held:
            self.handoff.something_freed()
        if self._loop is not None and not goes_on:
            self._send_at(time_ns + self._loop.think_ns)

    def _row(self, request: Request, outcome: str, time_ns: int) -> None:
        view = request.view
        replica = request.replica
        rows = self._rows
        if request.last_token_ns > time_ns:
            time_ns = request.last_token_ns  # it was on the way when the client left the line
        row: tuple[int, ...] = (
            view.index, replica.pool if replica is not None else -1,
            replica.index if replica is not None else -1, OUTCOME_CODE[outcome],
            request.arrival_ns, request.scheduled_ns, request.first_token_ns, time_ns,
            view.prompt_tokens, request.generated, request.cached_tokens, request.preemptions,
            request.recomputed, request.itl_max_ns, request.itl_over, view.session, view.client,
            view.priority
        )  # fmt: skip
        if self._has_classes:
            row += (view.promise.number,)
        if self._continuation is not None:
            row += self._continuation.labels(view)
        if self._sink.handoff:
            row += (-1 if self.handoff is None else self.handoff.came_from.pop(view.index, -1),)
        rows.append(row)
        request.ended = True
        self.ended += 1
        if time_ns > self.last_end_ns:
            self.last_end_ns = time_ns
        if len(rows) >= GATHER_ROWS:
            self._sink.gather()
        if self.ended % _HASH_EVERY == 0:
            self._hash()
            if self._progress is not None and self.ended % _TELL_EVERY == 0:
                self._progress(self.ended, self._total)
        if self._exhausted:
            self.check_done()

    def check_done(self) -> None:
        """End the run if everybody who will ever come has ended."""
        if not self._exhausted or self.closing or self.ended != self.arrived or self.done.triggered:
            return
        if not self.under_way and (self._continuation is None or not self._continuation.owed):
            self.done.succeed()

    def _hash(self) -> None:
        for replica, digest in zip(self.replicas, self._replica_hashes, strict=True):
            digest.update(packed(replica.decisions))
            replica.decisions.clear()
        if self.handoff is not None:
            self._routes += self.handoff.routes
            self.handoff.routes.clear()
        self._route_hash.update(packed(self._routes))
        self._routes.clear()

    def stop(self) -> None:
        """End the run at the next event; may be called from a signal handler."""
        if not self.done.triggered:
            self.stopped = True
            self.done.succeed()

    def digest(self) -> str:
        """Return the hash over all decisions so far."""
        self._hash()
        whole = self._route_hash.copy()
        for part in self._replica_hashes:
            whole.update(part.digest())
        return whole.hexdigest()

    def close(self) -> None:
        """Record whoever is still here when the run stops early."""
        now = self.clock.now
        for request in sorted(self._live, key=lambda live: live.view.index):
            outcome = "queued_at_end" if request.state in (WAITING, FETCHING) else "running_at_end"
            self._row(request, outcome, now)
        self._live.clear()
