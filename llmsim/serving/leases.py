"""KV that stays on the GPU after its call has ended, for the next call of its program: pins.

A pin is one more holder of the blocks that a call leaves behind, so that nobody can overwrite
them. It ends when its time is up, when the next call runs, or when it must give way. Its end is an
event that frees blocks like any other; a merged stretch is cut by it only if somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Final

from llmsim.core.units import NS_PER_S, seconds_to_ns
from llmsim.kvcache import Holder, Match, PrefixLedger
from llmsim.policies.estimation import ToolTimeEstimator
from llmsim.policies.retention import CallView, PinView, RetentionPolicy
from llmsim.results.facts import PinFacts
from llmsim.serving.beliefs import ToolBeliefs
from llmsim.serving.clock import CALL_PRIORITY, FOREVER
from llmsim.serving.queue import UrgencyQueue
from llmsim.serving.request import Request
from llmsim.serving.wake import Wake
from llmsim.workload.programs import Programs

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica

EXPIRY_PRIORITY: Final = CALL_PRIORITY - 1
"""After all that arrives at the same instant: who comes when a pin ends is still in time."""


class Pin(Holder):
    """Blocks kept for a program that is elsewhere.

    Attributes
    ----------
    session : int
    program_ns, began_ns, ends_ns : int [ns]
        When its program began, when it itself began, and when it ends; `FOREVER` if never.
    order : int
        Of pinning on its replica.
    claimed : Request or None
        The next call, once it has come; until it runs the pin does not end by time.
    """

    __slots__ = ("began_ns", "claimed", "ends_ns", "order", "program_ns", "session")

    def __init__(self, request: Request, began_ns: int, ends_ns: int, order: int) -> None:
        super().__init__()
        view = request.view
        self.session = view.session
        self.program_ns = view.arrival_ns if view.program is None else view.program.arrival_ns
        self.began_ns = began_ns
        self.ends_ns = ends_ns
        self.order = order
        self.claimed: Request | None = None


class Retainer:
    """The pins of one replica.

    Parameters
    ----------
    replica : Replica
        Whose ledger caches prefixes.
    ledger : PrefixLedger
    policy : RetentionPolicy
    tool : callable or None
        Returns the name of the tool that a call's answer asks for, by (program, turn), empty where
        it asks for none; None where programs have no tools, and no answer tells that it is the
        last.
    beliefs : ToolBeliefs or None
        What is believed of tools' times.

    Attributes
    ----------
    pins : dict of int to Pin
        By session.
    """

    def __init__(
        self,
        replica: Replica,
        ledger: PrefixLedger,
        policy: RetentionPolicy,
        tool: Callable[[int, int], str] | None,
        beliefs: ToolBeliefs | None = None,
    ) -> None:
        self._replica = replica
        self._ledger = ledger
        self._policy = policy
        self._tool = tool
        self._beliefs = beliefs
        self.pins: dict[int, Pin] = {}
        self._away: dict[int, tuple[str, int]] = {}  # tool, and since when [ns]
        self._due: list[tuple[int, int, Pin]] = []  # a heap of (end, order, pin)
        self._first: list[tuple[int, int, Pin]] = []  # (-rank, -order, pin): who gives way
        self._made = self._kept = self._expired = self._gave_way = self._left = 0
        self._block_ns = 0
        self._alarm = Wake(self._expire)

    # --- a call ends ------------------------------------------------------------------------

    def ended(self, request: Request) -> None:
        """Pin what a call that has ended leaves behind, if it is worth it; it holds it still."""
        view = request.view
        program = view.program
        if program is None or view.segments is None:
            return
        tool = "" if self._tool is None else self._tool(view.session, program.turn)
        if self._tool is not None and not tool:
            self._policy.ended(program.turn + 1)
            return
        end_ns = request.last_token_ns
        if self._tool is not None:
            self._away[view.session] = (tool, end_ns)
        size = self._ledger.block_tokens
        tokens = request.computed // size * size
        if not tokens:
            return
        replica = self._replica
        rebuild_s = replica.port.prompt_ns(tokens, 0) / NS_PER_S
        keeper = replica.draft.keeper
        if keeper is not None:
            rebuild_s = min(rebuild_s, keeper.load_s(tokens))
        pauses_s: Sequence[float] | None = None
        if self._beliefs is not None:
            pauses_s = self._beliefs.pauses_s(tool, view.session, program.turn)
        call = CallView(program.arrival_ns, program.turn, tool, tokens, rebuild_s, pauses_s)
        hold_s = self._policy.hold_s(call)
        ends_ns = FOREVER if hold_s == inf else end_ns + seconds_to_ns(hold_s)
        now = replica.clock.now
        if ends_ns <= now:
            return
        old = self.pins.get(view.session)
        if old is not None:  # it has been elsewhere, and come back in the middle of a call
            self._left += 1
            self._release(old)
        self._made += 1
        pin = Pin(request, now, ends_ns, self._made)
        self._ledger.fork(request, pin, request.computed)
        self.pins[pin.session] = pin
        rank = self._policy.rank(PinView(pin.program_ns, ends_ns))
        if len(self._first) > 2 * len(self.pins) + 64:  # mostly of pins that are gone
            self._first = [entry for entry in self._first if entry[2].held is not None]
            heapify(self._first)
        heappush(self._first, (-rank, -pin.order, pin))
        if ends_ns < FOREVER:
            heappush(self._due, (ends_ns, pin.order, pin))
            self._set_alarm()

    def _set_alarm(self) -> None:
        """Be woken when the first pin ends whose next call has not come."""
        due = self._due
        while due and (due[0][2].claimed is not None or due[0][2].held is None):
            heappop(due)
        if due and (not self._alarm.due or self._alarm.time_ns != due[0][0]):
            self._replica.clock.at(self._alarm, EXPIRY_PRIORITY, due[0][0])

    def _expire(self, _: Wake) -> None:
        """Release the pins whose time is up."""
        now = self._replica.clock.now
        due = self._due
        freed = False
        while due and due[0][0] <= now:
            pin = heappop(due)[2]
            if pin.held is not None and pin.claimed is None:
                self._expired += 1
                self._release(pin)
                freed = True
        self._set_alarm()
        if freed:
            self._replica.port.room_made()

    def _release(self, pin: Pin) -> None:
        del self.pins[pin.session]
        replica = self._replica
        blocks = pin.held_blocks
        self._block_ns += blocks * (replica.clock.now - pin.began_ns)
        replica.port.note_peak()
        self._ledger.release(pin, blocks, 0)
        self._ledger.forget(pin)
        request = pin.claimed
        if request is not None and request.view.program is not None:
            request.view.program.kept = False

    # --- the next call ----------------------------------------------------------------------

    def came(self, request: Request) -> None:
        """Note that a call has come here; called before it gets its place in the line."""
        view = request.view
        program = view.program
        if program is None:
            return
        away = self._away.pop(view.session, None)
        if away is not None:
            pause_s = (request.arrival_ns - away[1]) / NS_PER_S
            self._policy.returned(away[0], pause_s)
            if self._beliefs is not None:
                self._beliefs.learn(away[0], pause_s)
        pin = self.pins.get(view.session)
        if pin is not None:
            pin.claimed = request
            program.kept = True

    def admitted(self, request: Request) -> None:
        """Release the pin of a call that runs now, and holds what it has found itself."""
        program = request.view.program
        if program is None:
            return
        if request.scheduled_ns < 0:
            waited_ns = max(0, self._replica.draft.now - request.queued_ns)
            self._policy.admitted(waited_ns / NS_PER_S)
        if program.kept:
            self._kept += 1
            self._release(self.pins[request.view.session])

    def left(self, request: Request) -> None:
        """Release the pin of a call that leaves the line and will not run here."""
        program = request.view.program
        if program is not None and program.kept:
            self._left += 1
            self._release(self.pins[request.view.session])
            self._replica.port.room_made()

    # --- giving way -------------------------------------------------------------------------

    def relieve(self, blocks: int, match: Match) -> bool:
        """Release a pin for the head of the line, if it is time for that.

        Parameters
        ----------
        blocks : int [blocks]
            What the head needs in all.
        match : Match
            What it has found.

        Returns
        -------
        bool
            Whether there is more room now.
        """
        replica, draft = self._replica, self._replica.draft
        others = len(replica.running_set) > 0 or draft.beside > 0
        aside = draft.watermark_blocks if others else 0
        if blocks + match.unreferenced - match.blocks <= self._ledger.free - aside:
            return False  # it is not memory that it lacks
        if self._policy.gives_way != "admission" and (others or replica.port.expected):
            return False
        return self._give_way()

    def make_room(self) -> bool:
        """Release a pin before a running request loses its KV, if the policy wants that."""
        return self._policy.gives_way != "deadlock" and self._give_way()

    def unblock(self) -> bool:
        """Release a pin, whatever the policy wants, where nothing else would get any further."""
        return self._give_way()

    def _give_way(self) -> bool:
        first = self._first
        while first and first[0][2].held is None:
            heappop(first)
        if not first:
            return False
        pin = heappop(first)[2]
        self._gave_way += 1
        self._release(pin)
        request, line = pin.claimed, self._replica.line
        if request is not None and isinstance(line, UrgencyQueue):
            line.remove(request)  # it has lost its privilege
            line.push(request)
        return True

    def drop_all(self) -> None:
        """Release everything: the replica's KV is gone, or the run is over."""
        for pin in list(self.pins.values()):
            self._left += 1
            self._release(pin)

    def facts(self) -> PinFacts:
        """Return what became of the pins."""
        return PinFacts(
            self._made, self._kept, self._expired, self._gave_way, self._left, self._block_ns
        )


def keep_pins(
    retention: Sequence[Callable[[], RetentionPolicy] | None],
    replicas: Sequence[Replica],
    programs: Programs | None,
    tool_times: Callable[[], ToolTimeEstimator] | None,
    seed: int,
) -> None:
    """Let replicas pin KV for programs between two of their calls, where a pool wants that.

    Parameters
    ----------
    retention : sequence of callable or None
        Of each pool: returns a fresh policy.
    replicas : sequence of Replica
    programs : Programs or None
    tool_times : callable or None
        Returns a fresh estimator of tool times.
    seed : int
        The scenario's.
    """
    if programs is None:
        return
    names = _Tools(programs) if programs.tools else None
    for replica in replicas:
        policy, ledger = retention[replica.pool], replica.ledger
        if policy is not None and isinstance(ledger, PrefixLedger):
            believed = None if tool_times is None else ToolBeliefs(tool_times(), programs, seed)
            named = None if names is None else names.of
            retainer = Retainer(replica, ledger, policy(), named, believed)
            for draft in replica.port.drafts():
                draft.retainer = retainer


class _Tools:
    """Names of the tools that answers ask for."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def of(self, program: int, turn: int) -> str:
        """Return the name, empty where none is asked for."""
        number = self._programs.tool(program, turn)
        return self._programs.tools[number] if number >= 0 else ""
