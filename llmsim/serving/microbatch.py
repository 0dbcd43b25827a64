"""A micro-batch of a pipeline: who is in it, what it costs, and what is measured of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop

from llmsim.core.integers import rounded
from llmsim.costmodel.contract import PriceLine, StagedCost
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.results.timeline import TimelineData
from llmsim.serving.cohort import FOREVER, Cohort
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.gate import Gate
from llmsim.serving.logbook import Logbook
from llmsim.serving.meter import Meter
from llmsim.serving.request import Request
from llmsim.serving.step import Step
from llmsim.serving.stretch import Stretch


class SharedMeter(Meter):
    """The meter of one micro-batch's decodes, which writes down what is its pipeline's.

    Parameters
    ----------
    main : Meter
        The pipeline's.
    """

    __slots__ = ()

    def __init__(self, main: Meter) -> None:
        super().__init__(main.slo)
        self.follow(main)

    def follow(self, main: Meter) -> None:
        """Write into the book that the pipeline's meter writes into, as if it were that one."""
        self._book = main._book
        self._number = main._number
        self.itl = main.itl


class PipelineMeter(Meter):
    """The meter of a pipeline, and of its first micro-batch's decodes.

    Attributes
    ----------
    others : list of SharedMeter
        Of the other micro-batches.
    """

    __slots__ = ("others",)

    def __init__(self, itl_slo_ns: int) -> None:
        super().__init__(itl_slo_ns)
        self.others: list[SharedMeter] = []

    def part(self, number: int) -> Meter:
        """Return the meter of a micro-batch, the first of which is this one."""
        if not number:
            return self
        self.others.append(SharedMeter(self))
        return self.others[-1]

    def finish(self) -> TimelineData:
        """Return the timeline; see `Meter`."""
        for other in self.others:
            if other.together > 0:
                self.together += other.together
                other.together = 0
        return super().finish()

    def write_in(self, book: Logbook) -> None:
        """Write into another book from now on, all micro-batches."""
        super().write_in(book)
        for other in self.others:
            other.follow(self)


class SlotCohort(Cohort):
    """A cohort whose members may go on in another one: nothing here points to who has left.

    A heap entry of who left is told by its tick elsewhere, which in another cohort may be the same.
    """

    __slots__ = ()

    def leave(self, request: Request) -> None:
        """Let a member go, and forget it."""
        super().leave(request)
        self._finishes = [entry for entry in self._finishes if entry[3] is not request]
        heapify(self._finishes)
        if self._saturations:
            self._saturations = [entry for entry in self._saturations if entry[2] is not request]
            heapify(self._saturations)
        self.due = self._next_finish()

    def pop_finished(self) -> Request:
        """Remove and return the next member that has all its tokens scheduled: it goes nowhere."""
        request = heappop(self._finishes)[3]
        super().leave(request)
        return request


class Way:
    """What a micro-batch takes on its way through a pipeline, and what it waits for.

    Attributes
    ----------
    enters_ns : int [ns]
        When it was sent.
    front_ns : int [ns]
        When nobody before it is in flight any more; known when its way is settled.
    times : list of int (stations,) [ns]
        That each station works for it; empty where that goes by its slot's lines, at once.
    count : int [requests]
        Who decodes.
    rows : int [rows]
        Through the head.
    active_uj : int [uJ]
    used_blocks, running : int
        KV blocks and requests of the replica as it was sent.
    gates : tuple of Gate
        Transfers that its stages wait for.
    """

    __slots__ = (
        "active_uj", "count", "enters_ns", "front_ns", "gates", "rows", "running", "times",
        "used_blocks",
    )  # fmt: skip

    def __init__(
        self,
        enters_ns: int,
        times: list[int],
        count: int,
        rows: int,
        active_uj: int,
        used_blocks: int,
        running: int,
    ) -> None:
        self.enters_ns = self.front_ns = enters_ns
        self.times = times
        self.count = count
        self.rows = rows
        self.active_uj = active_uj
        self.used_blocks = used_blocks
        self.running = running
        self.gates: tuple[Gate, ...] = ()

    def copied(self, gates: tuple[Gate, ...]) -> Way:
        """Return the same, not settled yet, with other gates."""
        copy = Way(
            self.enters_ns, self.times, self.count, self.rows, self.active_uj, self.used_blocks,
            self.running,
        )  # fmt: skip
        copy.gates = gates
        return copy

    def waits(self) -> bool:
        """Whether something has yet to come."""
        for gate in self.gates:  # noqa: SIM110  # not through a generator
            if gate.ended_ns < 0:
                return True
        return False


class Slot:
    """A micro-batch that may be in flight, and the decodes that go with it.

    Attributes
    ----------
    draft : Draft
        What it computes; of the running requests it knows its own.
    delivery : Delivery
    step : Step
    meter : Meter
    end_ns : int [ns]
        When it comes out of the last stage; -1 while it is not in flight, `FOREVER` while that is
        not known: it waits for KV, or is behind one that does.
    way : Way
        Its latest.
    seen : int
        Changes that the scheduler knew of when it planned decodes alone here; -1 if it did not.
    until_tick : int
        Tick at which it must be planned again whatever happens.
    lines : list of PriceLine (stations,)
        What its decodes cost at each station.
    until_tokens : int [tokens]
        Largest padded context sum that the lines hold for.
    fixed_uj, padded_uj, windowed_uj : float [uJ], [uJ/token]
        Energy above idle: at no context, per padded, per windowed token.
    """

    __slots__ = (
        "_timed_padded",
        "_timed_windowed",
        "_times",
        "cohort",
        "delivery",
        "draft",
        "end_ns",
        "fixed_uj",
        "lines",
        "meter",
        "padded_uj",
        "seen",
        "step",
        "stretch",
        "until_tick",
        "until_tokens",
        "way",
        "windowed_uj",
    )

    def __init__(self, draft: Draft, delivery: Delivery, step: Step, stretch: Stretch) -> None:
        self.draft = draft
        self.cohort = draft.cohort
        self.delivery = delivery
        self.step = step
        self.stretch = stretch
        self.meter = draft.meter
        self.end_ns = -1
        self.seen = -1
        self.way = Way(0, [], 0, 0, 0, 0, 0)
        self.lines: list[PriceLine] = []
        self._times: list[int] = []  # by the lines, at the context sums that were last asked for
        self._timed_padded = self._timed_windowed = -1
        self.until_tokens = self.until_tick = 0
        self.fixed_uj = self.padded_uj = self.windowed_uj = 0.0

    @property
    def completing(self) -> list[Request]:
        """Whose prompts end with this micro-batch, be it settled or not."""
        if self.end_ns < FOREVER:
            return self.delivery.completing
        return [one for one, tokens, past in self.draft.chunks if past + tokens == _known(one)]

    def price(self, cost: StagedCost, energies: Sequence[ActiveEnergy]) -> None:
        """Fix what its decodes cost at each station."""
        count = self.cohort.count
        self.lines = cost.station_lines(count, self.cohort.padded)
        self._timed_padded = -1
        self.until_tokens = min(line.until_tokens for line in self.lines)
        terms = [energy.decode_terms(count) for energy in energies]
        self.fixed_uj = math.fsum(one[0] for one in terms)
        self.padded_uj = math.fsum(one[1] for one in terms)
        self.windowed_uj = math.fsum(one[2] for one in terms)

    def station_ns(self, padded: int, windowed: int) -> list[int]:
        """Return what its decodes alone take at each station, at some context sums [ns]."""
        if padded != self._timed_padded or windowed != self._timed_windowed:
            self._timed_padded, self._timed_windowed = padded, windowed
            self._times = [
                rounded(line.base_ns + line.per_token_ns * padded + line.per_windowed_ns * windowed)
                for line in self.lines
            ]
        return self._times

    def windows(self, free_ns: list[int], stage_of: list[int]) -> list[tuple[int, int]]:
        """Return when each stage works on it [ns]: its way was settled last.

        Parameters
        ----------
        free_ns : list of int (stations,) [ns]
            When it has left each station.
        stage_of : list of int (stations,)
            -1 for stations that are none.
        """
        times = self.way.times
        stages = [place for place, stage in enumerate(stage_of) if stage >= 0]
        ends = [free_ns[place] for place in stages]
        ends[-1] = self.end_ns  # nobody decodes before there is a first token
        return [
            (free_ns[place] - times[place], end) for place, end in zip(stages, ends, strict=True)
        ]

    def emit(self) -> None:
        """Note which prompts give a token when it comes out."""
        for request, tokens, past in self.draft.chunks:
            if past + tokens == _known(request):
                self.delivery.emit_first(request, self.end_ns)

    def account(self) -> None:
        """Let its decodes have their tokens, and log it: its way is settled."""
        draft, cohort, way, end = self.draft, self.cohort, self.way, self.end_ns
        count = members = way.count
        total = 0
        for _, tokens, _ in draft.chunks:
            total += tokens
        logits = way.rows - count
        gap = end - way.enters_ns if count else 0
        if count:
            if draft.late:
                logits += self.delivery.tick_unevenly(count, way.front_ns, end, gap)
                members = 0
            else:
                self.tick(gap)
            cohort.padded_sum(1)
            cohort.advance(1, cohort.grown)
            draft.tick_end_ns = end
            self.delivery.unticked.clear()
        self.meter.log(
            way.front_ns, end, 1 if count else 0, members, way.running, way.used_blocks,
            way.used_blocks, total, logits, gap, gap, way.active_uj,
        )  # fmt: skip

    def tick(self, gap_ns: int) -> None:
        """Note the gap that everybody who decodes here has before the next token [ns]."""
        meter = self.meter
        if gap_ns > meter.slo:
            meter.over += 1
        meter.ticked(self.cohort.tick, gap_ns)

    def active_uj(self) -> int:
        """Return the energy above idle of the next decodes [uJ]."""
        cohort = self.cohort
        return rounded(
            self.fixed_uj + self.padded_uj * cohort.padded + self.windowed_uj * cohort.windowed
        )


def _known(request: Request) -> int:
    """Return the tokens whose KV a request needs before its next one [tokens]."""
    return request.prompt + request.generated
