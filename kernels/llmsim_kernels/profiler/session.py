"""Measures rows one after the other: resumes, keeps to the budget, keeps what it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from llmsim.specs.profile_rows import read_rows, row_key, write_rows
from llmsim_kernels.profiler.blocks import BLOCKS, ceilings
from llmsim_kernels.profiler.plan import Chosen, Plan, choose
from llmsim_kernels.profiler.spec import Device, DeviceLostError, Effort, RowFault, RowSpec

_END_RESERVE_S = 15.0
"""Of the budget, kept for the last ceilings."""


class Watcher(Protocol):
    """Sees a run advance."""

    def planned(self, rows: int) -> None:
        """Say how many rows there are to measure, those of an earlier run left out."""
        ...

    def measured(self, spec: RowSpec, status: str) -> None:
        """Say that a row is done."""
        ...

    def noted(self, text: str) -> None:
        """Say something that the reader of the profile should know."""
        ...


class Silent:
    """A watcher that says nothing."""

    def planned(self, rows: int) -> None:
        """Say nothing."""

    def measured(self, spec: RowSpec, status: str) -> None:
        """Say nothing."""

    def noted(self, text: str) -> None:
        """Say nothing."""


@dataclass
class Session:
    """One run of the profiler on one device, into one rows file.

    Parameters
    ----------
    device : Device
    path : Path
        ``rows.csv``; rows in it are not measured again.
    effort : Effort
    budget_s : float [s]
    watcher : Watcher
    clock : callable
        Seconds, for the budget.

    Attributes
    ----------
    done : dict
        Rows of this and earlier runs by key.
    notes : list of str
        Doubts, each once.
    cut : str
        Why the run ended early; empty if it did not.
    missing : int [rows]
        Planned rows that were not measured.
    """

    device: Device
    path: Path
    effort: Effort = field(default_factory=Effort)
    budget_s: float = 480.0
    watcher: Watcher = field(default_factory=Silent)
    clock: Callable[[], float] = time.monotonic
    done: dict[tuple[str, ...], Mapping[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cut: str = ""
    missing: int = 0
    resumed: int = 0

    def __post_init__(self) -> None:
        self._began = self.clock()
        if self.path.exists():
            table = read_rows(self.path)
            for index in range(len(table)):
                row = table.row(index)
                self.done[row_key(row)] = row
            self.resumed = len(table)

    def note(self, text: str) -> None:
        """Keep a doubt, once."""
        if text not in self.notes:
            self.notes.append(text)
            self.watcher.noted(text)

    def opening(self, plan: Plan) -> None:
        """Measure the first ceilings; the grids are cut by what they say."""
        for warning in self.device.warnings():
            self.note(warning)
        if self._round() == 0:
            with self._kept():
                self._measure_all(list(ceilings.rows(plan)))
        if self.cut:
            self.note(self.cut)

    def body(self, plan: Plan, numbers: Sequence[int]) -> None:
        """Measure the rows of some blocks, and the ceilings again in the middle and at the end.

        Parameters
        ----------
        plan : Plan
        numbers : sequence of int
            Blocks, in the order in which they run.
        """
        wanted = [BLOCKS[number] for number in numbers if number != 0]
        chosen = choose(wanted, plan)
        todo = [spec for spec in chosen.rows if row_key(spec.key) not in self.done]
        self._explain(chosen, plan)
        self.watcher.planned(len(todo))
        if not todo:
            return
        half = len(todo) // 2
        # a run that goes on with an earlier one has ceilings of its own: start2, middle2, end2
        again = str(self._round() + 1) if self.resumed else ""
        with self._kept():
            if again:
                self._measure_all(list(ceilings.at(plan, f"start{again}")))
            left = self._measure_all(todo[:half])
            if not left:
                self._measure_all(list(ceilings.at(plan, f"middle{again}")))
                left = self._measure_all(todo[half:])
            else:
                left += len(todo) - half
            self.missing = left
        if self.cut:
            self.missing = sum(row_key(spec.key) not in self.done for spec in todo)
            self.note(f"{self.cut}; {self.missing} rows were not measured")
            return
        if self.missing:
            self.note(f"the budget of {self.budget_s:.0f} s ended; {self.missing} rows are missing")
        with self._kept():
            for spec in ceilings.at(plan, f"end{again}"):
                self._measure(spec)
        for warning in self.device.warnings():
            self.note(warning)

    def _round(self) -> int:
        """Return how many runs have measured into this folder, by their first ceilings."""
        starts = f"{ceilings.COPY}.{ceilings.MOMENTS[0]}"
        return sum(str(row.get("variant", "")).startswith(starts) for row in self.done.values())

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """End the run, not the program, when the user stops it or the device is gone."""
        try:
            yield
        except KeyboardInterrupt:
            self.cut = "interrupted"
        except DeviceLostError as error:
            self.cut = f"the device was lost: {error}"

    def _explain(self, chosen: Chosen, plan: Plan) -> None:
        if chosen.too_long:
            limit = plan.row_limit_s
            self.note(f"{chosen.too_long} grid points left out: above {limit:g} s a call here")

    def _measure_all(self, specs: Iterable[RowSpec]) -> int:
        """Measure rows that are not there yet; return how many the budget left over."""
        rest = [spec for spec in specs if row_key(spec.key) not in self.done]
        for index, spec in enumerate(rest):
            if self.clock() - self._began > max(0.0, self.budget_s - _END_RESERVE_S):
                return len(rest) - index
            self._measure(spec)
        return 0

    def _measure(self, spec: RowSpec) -> None:
        row = dict(spec.key)
        row["flops"], row["moved_bytes"] = spec.flops, spec.moved_bytes
        row["split"] = "holdout" if spec.holdout else "fit"
        row["status"] = "ok"
        try:
            timing = self.device.time(spec, self.effort)
        except RowFault as fault:
            row["status"], row["note"] = fault.status, fault.note
        else:
            row["t_median_us"] = round(timing.median_s * 1e6, 5)
            row["t_min_us"] = round(timing.min_s * 1e6, 5)
            row["t_mad_us"] = round(timing.mad_s * 1e6, 5)
            row["repeats"] = timing.repeats
            seen = self.device.sensors()
            row["sm_clock_mhz"], row["mem_clock_mhz"] = seen.sm_clock_mhz, seen.mem_clock_mhz
            row["power_w"] = seen.power_w if timing.power_w is None else timing.power_w
            if seen.throttled:
                self.note(f"clocks were held down: {', '.join(seen.throttled)}")
        row["ts"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_rows(self.path, [row], append=True)
        self.done[row_key(row)] = row
        self.watcher.measured(spec, str(row["status"]))
