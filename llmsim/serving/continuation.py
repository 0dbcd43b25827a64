"""What comes after a call has ended: the next calls of its program, each sent in its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import simpy

from llmsim.policies.views import ProgramView, RequestView
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.request import Request
from llmsim.serving.wake import Wake
from llmsim.workload.programs import CallEnd, NextCall, Programs

if TYPE_CHECKING:
    from llmsim.serving.fleet import Fleet


class Continuation:
    """Programs in flight, as the front of the fleet sees them.

    Parameters
    ----------
    clock : Clock
    fleet : Fleet
        Takes in the calls that are sent.
    programs : Programs

    Attributes
    ----------
    owed : int
        Calls that have a cause already and are still to be sent.
    """

    __slots__ = ("_clock", "_fleet", "_programs", "owed")

    def __init__(self, clock: Clock, fleet: Fleet, programs: Programs) -> None:
        self._clock = clock
        self._fleet = fleet
        self._programs = programs
        self.owed = 0

    def labels(self, view: RequestView) -> tuple[int, int]:
        """Return what a call's row says besides: its turn, and whether its program ends with it."""
        program = view.program
        turn = program.turn if program is not None else 0
        return turn, int(self._programs.is_final(view.session, turn))

    def ended(self, request: Request, served: bool, time_ns: int) -> bool:
        """Let what follows a call follow it; return whether its program goes on.

        Parameters
        ----------
        request : Request
        served : bool
            It got all of its tokens.
        time_ns : int [ns]
            When it ended.
        """
        view = request.view
        program = view.program
        if program is None:
            return False
        done = CallEnd(
            view.index,
            view.session,
            program.turn,
            request.prompt,
            request.generated,
            view.segments,
            view.client,
            view.priority,
            served,
        )
        calls = self._programs.next_calls(done)
        for call in calls:
            self.owed += 1
            self._send_later(call, program, time_ns)
        return len(calls) > 0

    def _send_later(self, call: NextCall, before: ProgramView, time_ns: int) -> None:
        began_ns, promise = before.arrival_ns, before.promise

        def send(_: simpy.Event) -> None:
            self.owed -= 1
            self._fleet.take_in_call(call, ProgramView(began_ns, call.turn, promise))

        self._clock.at(Wake(send), ARRIVAL_PRIORITY, time_ns + call.after_ns)
