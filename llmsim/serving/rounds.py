"""Micro-batches of decodes that go round and round a pipeline before its scheduler must look again.

What one tick of one micro-batch takes is a maximum and a sum per station; what it costs its cohort,
the KV ledger and its draft is worked out once for all ticks that went by. Times, and what is logged
of each tick, are those of one tick after another, to the nanosecond.
"""

from __future__ import annotations

from collections import deque

from llmsim.core.integers import rounded
from llmsim.serving.microbatch import Slot


class Station:
    """When a station of a pipeline has served what is launched [ns]."""

    __slots__ = ("free_ns",)

    def __init__(self) -> None:
        self.free_ns = 0


class Rider:
    """A micro-batch that goes round.

    Attributes
    ----------
    slot : Slot
    tick, began : int
        Of its cohort: now, and when it set out.
    until : int
        Tick at which it must be looked at.
    padded, windowed : int [tokens]
        Context sums of its next tick.
    end_ns : int [ns]
        When it comes out.
    times : list of int (stations,) [ns]
        What each station takes for it, at these sums.
    priced : int
        Tick from which on these hold.
    active_uj : int [uJ]
        Of a tick at these sums.
    running : int [requests]
        On its replica, while it is planned.
    """

    __slots__ = (
        "active_uj", "began", "end_ns", "padded", "priced", "running", "slot", "tick", "times",
        "until", "windowed",
    )  # fmt: skip

    def __init__(self, slot: Slot, repeats: bool) -> None:
        cohort, draft = slot.cohort, slot.draft
        self.slot = slot
        self.tick = self.began = self.priced = tick = cohort.tick
        self.padded, self.windowed = cohort.padded, cohort.windowed
        self.end_ns = slot.end_ns
        self.running = draft.beside + len(draft.running_set)
        self.active_uj = 0
        self.times: list[int] = []
        self.until = tick
        if repeats and cohort.padded <= slot.until_tokens:
            self.until = min(cohort.due, slot.until_tick, cohort.next_saturation())
            self.price()

    def price(self) -> None:
        """Work out what its next tick takes at each station."""
        slot, padded, windowed = self.slot, self.padded, self.windowed
        self.times = slot.station_ns(padded, windowed)
        self.active_uj = rounded(
            slot.fixed_uj + slot.padded_uj * padded + slot.windowed_uj * windowed
        )

    def step(self, busy_ns: list[int]) -> None:
        """Have had a tick: contexts have grown, and may be priced anew."""
        cohort = self.slot.cohort
        step = self.tick - self.began + 1
        grown = cohort.growth_at(step)
        widened = cohort.windowed_growth_at(step)
        self.tick += 1
        if grown or widened:
            self.work(busy_ns)
            self.padded += grown
            self.windowed += widened
            if self.padded > self.slot.until_tokens:
                self.until = self.tick
            else:
                self.price()

    def work(self, busy_ns: list[int]) -> None:
        """Let stations have worked for the ticks since it was priced [ns]."""
        ticks = self.tick - self.priced
        self.priced = self.tick
        if ticks:
            for station, takes in enumerate(self.times):
                busy_ns[station] += ticks * takes

    def arrive(self, busy_ns: list[int]) -> None:
        """Let its micro-batch be where it is."""
        ticks = self.tick - self.began
        if ticks:
            self.work(busy_ns)
            slot = self.slot
            cohort = slot.cohort
            slot.end_ns = slot.draft.tick_end_ns = self.end_ns
            cohort.advance(ticks, self.padded - cohort.padded)


class Rounds:
    """What goes round in a pipeline, while it goes round.

    Parameters
    ----------
    stations : int
    block_tokens : int [tokens]
        Per KV block.
    quiet : bool
        Nobody will read what is measured.

    Attributes
    ----------
    now : int [ns]
        When the next micro-batch comes out.
    last_ns : int [ns]
        When the latest one has entered again.
    out_ns : int [ns]
        When all that are in flight will have come out.
    gap_ns : int [ns]
        From when the latest one entered to when it will come out: about a round.
    in_flight_ns : int [ns]
        For how long some were in flight that have entered in these rounds.
    blocks : int [blocks]
        Taken for them.
    """

    __slots__ = (
        "_block_tokens", "_quiet", "_stations", "blocks", "gap_ns", "in_flight_ns", "last_ns",
        "now", "out_ns",
    )  # fmt: skip

    def __init__(self, stations: int, block_tokens: int, quiet: bool) -> None:
        self._stations = [Station() for _ in range(stations)]
        self._block_tokens = block_tokens
        self._quiet = quiet
        self.now = self.last_ns = self.out_ns = self.gap_ns = self.in_flight_ns = self.blocks = 0

    def pays(self, flying: deque[Slot], changes: int, for_ns: int) -> bool:
        """Whether there may be more than a round to go before something else comes in `for_ns`."""
        if 2 * self.gap_ns >= for_ns:
            return False
        for slot in flying:
            cohort = slot.cohort
            next_tick = cohort.tick + 1
            if slot.seen != changes or cohort.due <= next_tick or slot.until_tick <= next_tick:
                return False
        return True

    def run(
        self,
        flying: deque[Slot],
        changes: int,
        until_ns: int,
        blocks: tuple[int, int],
        times_ns: tuple[list[int], list[int]],
    ) -> int:
        """Let micro-batches go round as long as the scheduler would plan them again.

        Parameters
        ----------
        flying : deque of Slot
            In the order in which they come out; the first does so now, and is turned to be last as
            often as somebody has entered again.
        changes : int
            That the scheduler must know of.
        until_ns : int [ns]
            When something else in the world comes next.
        blocks : (int, int) [blocks]
            KV blocks in use, and free ones.
        times_ns : (list of int, list of int) (stations,) [ns]
            When each station is free, and how long it has worked; kept up to date.

        Returns
        -------
        int
            How many entered again.
        """
        free_ns, busy_ns = times_ns
        for number, station in enumerate(self._stations):
            station.free_ns = free_ns[number]
        riders = [Rider(slot, slot.seen == changes) for slot in flying]
        entered = self._turn(riders, until_ns, blocks, busy_ns)
        if entered:
            for rider in riders:
                rider.arrive(busy_ns)
            flying.rotate(-entered)
            for number, station in enumerate(self._stations):
                free_ns[number] = station.free_ns
        return entered

    def _turn(
        self, riders: list[Rider], until_ns: int, blocks: tuple[int, int], busy_ns: list[int]
    ) -> int:
        """Let one after another enter; see `run`."""
        size, quiet, stations = self._block_tokens, self._quiet, self._stations
        used, room = blocks
        entered = place = taken = 0
        now = self.now
        while True:
            rider = riders[place]
            tick = rider.tick
            if tick >= rider.until:
                break
            need = rider.slot.cohort.block_ring[tick % size]
            if need:
                if taken + need > room:
                    break
                taken += need
            time = now
            times = rider.times
            for number in range(len(times)):
                station = stations[number]
                if station.free_ns > time:
                    time = station.free_ns
                time += times[number]
                station.free_ns = time
            rider.end_ns = time
            if not quiet:
                self._note(rider, now, time, used + taken)
            self.out_ns = time
            rider.step(busy_ns)
            self.last_ns = now
            entered += 1
            place += 1
            if place == len(riders):
                place = 0
            now = riders[place].end_ns
            if now >= until_ns:
                break
        if entered:
            self.gap_ns = self.out_ns - self.last_ns
        self.now = now
        self.blocks = taken
        return entered

    def _note(self, rider: Rider, now: int, end: int, used: int) -> None:
        """Measure a tick that is entered now and comes out at `end` [ns]."""
        slot = rider.slot
        gap = end - now
        meter = slot.meter
        if gap > meter.slo:
            meter.over += 1
        meter.ticked(rider.tick, gap)
        front = self.out_ns if self.out_ns > now else now
        self.in_flight_ns += end - front
        count, uj = slot.cohort.count, rider.active_uj
        meter.log(front, end, 1, count, rider.running, used, used, 0, 0, gap, gap, uj)
