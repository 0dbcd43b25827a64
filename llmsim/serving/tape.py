"""Token times on request: when every tick of a cohort ended, and whose ticks they were.

All members of a cohort get a token at the end of each tick, so a run's token times are one number
per tick and replica, and for every request the ticks between its joining and its leaving. Only a
run that is asked for token times writes this down.
"""

from __future__ import annotations

import numpy as np

from llmsim.costmodel.contract import StepCost
from llmsim.results.tokens import TokenTimes
from llmsim.serving.cohort import Cohort
from llmsim.serving.overhang import OverhangCohort, OverhangPrice, asks_for_overhang
from llmsim.serving.request import Request
from llmsim.serving.stretch import Stretch


class Tape:
    """Ends of ticks by replica, and the ticks of every request.

    Parameters
    ----------
    replicas : int
    """

    __slots__ = ("_ends", "_spans")

    def __init__(self, replicas: int) -> None:
        self._ends: list[list[int]] = [[] for _ in range(replicas)]
        # request -> (replica or -1, first tick or time of a lone token, tick after the last)
        self._spans: dict[int, list[tuple[int, int, int]]] = {}

    def alone(self, request: Request, end_ns: int) -> None:
        """Note a token that comes with the last of a prompt [ns]."""
        self._spans.setdefault(request.view.index, []).append((-1, end_ns, 0))

    def joined(self, replica: int, request: Request, tick: int) -> None:
        """Note that a request has a token in every tick from here on."""
        self._spans.setdefault(request.view.index, []).append((replica, tick, -1))

    def left(self, request: Request, tick: int) -> None:
        """Note that a request has no token from this tick on."""
        spans = self._spans[request.view.index]
        replica, first, _ = spans[-1]
        spans[-1] = (replica, first, tick)

    def ran(self, replica: int, stretch: Stretch, merged: int, end_ns: int) -> None:
        """Note the ends of a cohort's next ticks, before it is told that they have run.

        Parameters
        ----------
        replica : int
        stretch : Stretch
        merged : int
            Ticks of the stretch that have run; 0 for a step of its own kind, of one tick.
        end_ns : int [ns]
            When the last of them ended.
        """
        ends = self._ends[replica]
        for tick in range(1, merged):
            ends.append(stretch.end_ns(tick))
        if merged:
            stretch.end_ns(merged)  # leaves its sums where they were
        ends.append(end_ns)

    def times(self) -> TokenTimes:
        """Return when every token came out; of clients that left, tokens too that they missed."""
        ends = [np.array(each, dtype=np.int64) for each in self._ends]
        requests, parts = [], []
        for request in sorted(self._spans):
            for replica, first, stop in self._spans[request]:
                if replica < 0:
                    part = np.array([first], dtype=np.int64)
                else:
                    part = ends[replica][first : stop if stop >= 0 else None]
                parts.append(part)
                requests.append(np.full(len(part), request, dtype=np.int64))
        if not parts:
            return TokenTimes(np.empty(0, np.int64), np.empty(0, np.int64))
        return TokenTimes(np.concatenate(requests), np.concatenate(parts))


class TapedCohort(OverhangCohort):
    """A cohort that says who joins and who leaves.

    Parameters
    ----------
    tape : Tape
    replica : int
        Index of the cohort's replica.
    tile, block_tokens, window : int [tokens]
        As for `Cohort`.
    """

    __slots__ = ("_replica", "_tape")

    def __init__(self, tape: Tape, replica: int, tile: int, block_tokens: int, window: int) -> None:
        super().__init__(tile, block_tokens, window)
        self._tape = tape
        self._replica = replica

    def join(self, request: Request) -> None:
        """Take in a request, and note it."""
        super().join(request)
        self._tape.joined(self._replica, request, self.tick)

    def leave(self, request: Request) -> None:
        """Let a member go, and note it."""
        super().leave(request)
        self._tape.left(request, self.tick)


def cohort_for(
    tape: Tape | None, replica: int, cost: StepCost, block_tokens: int
) -> tuple[Cohort, StepCost]:
    """Return a replica's cohort, one that writes on the tape if there is one, and its price."""
    tile, window = cost.context_tile, cost.window_tokens
    uneven = asks_for_overhang(cost)
    if tape is None and uneven is None:
        return Cohort(tile, block_tokens, window), cost
    cohort = OverhangCohort(tile, block_tokens, window)
    if tape is not None:
        cohort = TapedCohort(tape, replica, tile, block_tokens, window)
    return cohort, cost if uneven is None else OverhangPrice(uneven, cohort)
