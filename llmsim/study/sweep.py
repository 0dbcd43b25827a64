"""A sweep: one scenario at many points of its fields, each simulated, the best among them found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from llmsim.core.errors import Fault, InputError, ModelDoesNotFitError, ScenarioError, nearest
from llmsim.scenario import Scenario
from llmsim.study.axes import OVER, Axis, all_points, settle_whole
from llmsim.study.executor import Executor, open_workers
from llmsim.study.goal import Goal
from llmsim.study.points import Point, PointStore, simulate_point
from llmsim.study.swept import Drawer, Row, Sweep

Report = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class SweepOrder:
    """What to simulate, and what to look for.

    Parameters
    ----------
    base : Scenario
        Its seed also draws the points.
    axes : sequence of Axis
    goal : Goal
    samples : int
        Points drawn where an axis is drawn from.
    seeds : tuple of int
        Each point is simulated under each; empty for the scenario's own.
    executor : Executor
    store : PointStore
        Keeps the runs, so that a sweep that was stopped goes on.
    """

    base: Scenario
    axes: Sequence[Axis]
    goal: Goal
    samples: int = 1
    seeds: tuple[int, ...] = ()
    executor: Executor = field(default_factory=Executor)
    store: PointStore = field(default_factory=lambda: PointStore(None))


def run_sweep(
    order: SweepOrder, report: Report | None = None, drawer: Drawer | None = None
) -> Sweep:
    """Simulate every point of a sweep under every seed.

    Parameters
    ----------
    order : SweepOrder
    report : callable, optional
        Called with (runs done, runs in all).
    drawer : Drawer, optional
        Makes pages and pictures of the result.

    Returns
    -------
    Sweep
        After Ctrl-C with what was done; `Sweep.interrupted` says so.

    Raises
    ------
    InputError
        If a value can stand in no point of the sweep, a metric of the goal is a number in no run,
        or a trace is wrong; lists every fault.
    """
    _check_promises(order)
    axes = settle_whole(order.axes, order.base)
    if order.seeds and any(axis.path == "seed" for axis in axes):
        fault = Fault("", "seeds", "go with every point, but seed is swept.", "Leave one out.")
        raise InputError("sweep", [fault])
    changes = all_points(axes, order.samples, order.base.seed)
    made = [_changed(order.base, change) for change in changes]
    faults = _wrong_values(axes, changes, made, order.base)
    if faults:
        raise InputError("sweep", faults)
    seeds = order.seeds or (order.base.seed,)
    rows = [
        Row(change, (None,) * len(seeds), _told(each) if isinstance(each, ScenarioError) else "")
        for change, each in zip(changes, made, strict=True)
    ]
    tasks = [
        (number, at, each.override({"seed": seed}) if order.seeds else each)
        for number, each in enumerate(made)
        if isinstance(each, Scenario)
        for at, seed in enumerate(seeds)
    ]
    interrupted = _simulate(order, tasks, rows, report)
    if interrupted and not any(row.done for row in rows):
        raise KeyboardInterrupt
    sweep = Sweep(
        order.base, tuple(axes), seeds, order.goal, tuple(rows), order.samples, interrupted, drawer
    )
    _check_metrics(sweep)
    return sweep


def _simulate(
    order: SweepOrder,
    tasks: Sequence[tuple[int, int, Scenario]],
    rows: list[Row],
    report: Report | None,
) -> bool:
    """Fill the rows as runs end; return whether Ctrl-C came first."""
    done = 0

    def enter(task: int, made: Point | str) -> None:
        nonlocal done
        number, at, _ = tasks[task]
        rows[number] = rows[number].entered(at, made)
        done += 1
        if report is not None:
            report(done, len(tasks))

    try:
        left = []
        for task, (_, _, scenario) in enumerate(tasks):
            place = order.store.place(scenario)
            kept = order.store.read(place)
            if kept is None:
                left.append((task, place))
            else:
                enter(task, kept)
        with open_workers(order.executor) as workers:
            asked = [(tasks[task][2],) for task, _ in left]
            with closing(workers.completed(try_point, asked)) as ended:
                for index, made in ended:
                    task, place = left[index]
                    if isinstance(made, Point):
                        order.store.write(place, made)
                    enter(task, made)
    except KeyboardInterrupt:
        return True
    return False


def try_point(scenario: Scenario) -> Point | str:
    """Simulate a scenario; where its model does not fit its GPUs, return why."""
    try:
        return simulate_point(scenario)
    except ModelDoesNotFitError as error:
        return str(error)


def _changed(base: Scenario, change: Mapping[str, Any]) -> Scenario | ScenarioError:
    try:
        return base.override(change)
    except ScenarioError as error:
        return error


def _told(error: ScenarioError) -> str:
    return "; ".join(f"{fault.path}: {fault.message}" for fault in error.faults)


def _wrong_values(
    axes: Sequence[Axis],
    changes: Sequence[Mapping[str, Any]],
    made: Sequence[Scenario | ScenarioError],
    base: Scenario,
) -> list[Fault]:
    """Return the faults of values that no point can have.

    A listed value that the scenario refuses in every point is a mistake, and so is a sweep without
    any point; a pair of values that do not go together is a point that cannot be.
    """
    errors = [each for each in made if isinstance(each, ScenarioError)]
    groups = [errors] if len(errors) == len(made) else []
    for axis in axes:
        for value in axis.values:
            ours = [
                each
                for change, each in zip(changes, made, strict=True)
                if change[axis.path] is value or repr(change[axis.path]) == repr(value)
            ]
            if ours and all(isinstance(each, ScenarioError) for each in ours):
                groups.append([each for each in ours if isinstance(each, ScenarioError)])
    found: dict[tuple[str, str], Fault] = {}
    for group in groups:
        for fault in group[0].faults:
            found.setdefault((fault.path, fault.message), _placed(fault, axes, base))
    return list(found.values())


def _placed(fault: Fault, axes: Sequence[Axis], base: Scenario) -> Fault:
    """Return a fault of an override where the axis was written, with the nearest right path."""
    near = [a for a in axes if a.path.startswith(fault.path) or fault.path.startswith(a.path)]
    place = near[0].place if near else OVER
    hint = fault.hint
    # a pool is named by the path, a GPU or a model by the value
    if fault.message.startswith(("unknown key", "unknown pool")) and not hint.startswith("Did"):
        hint = f"{_meant(near[0].path if near else fault.path, base)}{hint}"
    elif fault.message.startswith("unknown key") and near:
        hint = _meant(near[0].path, base) or hint
    return replace(fault, where=place, hint=hint)


def _meant(path: str, base: Scenario) -> str:
    """Return which path with the same last word a scenario has."""
    paths = list(_paths(base.resolved(), ""))
    last = path.rsplit(".", 1)[-1]
    same = [each for each in paths if each.rsplit(".", 1)[-1] == last]
    if not same:
        return ""
    hint = nearest(path, same)
    meant = hint[: hint.index("?") + 1] if hint.startswith("Did") else f"Did you mean '{same[0]}'?"
    return f"{meant} "


def _paths(data: Mapping[str, Any], before: str) -> list[str]:
    found = []
    for key, value in data.items():
        found.append(f"{before}{key}")
        if isinstance(value, Mapping):
            found += _paths(value, f"{before}{key}.")
    return found


def _check_promises(order: SweepOrder) -> None:
    """Raise if the goal is about objectives that neither the scenario nor an axis sets."""
    swept = any(axis.path.split(".")[0] == "slo" for axis in order.axes)
    if swept or order.base.slo.objectives().is_set:
        return
    faults = [
        Fault("", name, "needs an objective, and the scenario sets none.", "Set slo.ttft_s, say.")
        for name in order.goal.metrics
        if name.startswith(("slo_", "goodput"))
    ]
    if faults:
        raise InputError("sweep", faults)


def _check_metrics(sweep: Sweep) -> None:
    """Raise if a metric of the goal is a number in no run, though some have ended."""
    ended = [point for row in sweep.rows for point in row.points if point is not None]
    faults = [
        Fault(
            "", name, "is a number in no run of this sweep.", "docs/metrics.md says which have it."
        )
        for name in sweep.goal.metrics
        if ended and not any(math.isfinite(each.values.get(name, math.nan)) for each in ended)
    ]
    if faults:
        raise InputError("sweep", faults)
