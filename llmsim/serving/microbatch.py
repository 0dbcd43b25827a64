"""A micro-batch of a pipeline: who is in it, what it costs, and what is measured of it."""

from __future__ import annotations

from heapq import heapify, heappop

from llmsim.core.integers import rounded
from llmsim.costmodel.contract import PriceLine
from llmsim.results.timeline import TimelineData
from llmsim.serving.cohort import Cohort
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.meter import Meter
from llmsim.serving.request import Request
from llmsim.serving.step import Step
from llmsim.serving.stretch import Stretch


class SharedMeter(Meter):
    """The meter of one micro-batch's decodes, which writes into the log of its pipeline.

    Parameters
    ----------
    main : Meter
        Whose log it is; finished by the pipeline.
    """

    __slots__ = ()

    def __init__(self, main: Meter) -> None:
        super().__init__(main.slo)
        self._stage = main._stage
        self._log = main._log
        self._waits = main._waits
        self._waits_log = main._waits_log
        self._timeline = main._timeline
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

    def keep(self) -> None:
        """Keep what is logged of all micro-batches; called before anything runs."""
        self.kept = []
        for other in self.others:
            other.kept = self.kept

    def finish(self) -> TimelineData:
        """Return the timeline of all micro-batches; histogram and counts are complete then."""
        timeline = super().finish()
        for other in self.others:
            self.steps += other.steps
            self.peak_kv_blocks = max(self.peak_kv_blocks, other.peak_kv_blocks)
        return timeline


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
        When it comes out of the last stage; -1 while it is not in flight.
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
        self.lines: list[PriceLine] = []
        self.until_tokens = self.until_tick = 0
        self.fixed_uj = self.padded_uj = self.windowed_uj = 0.0

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
