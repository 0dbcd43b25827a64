"""`llmsim run` and `llmsim check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmsim.cli.answering import print_json
from llmsim.cli.ending import INTERRUPTED
from llmsim.core.errors import Fault, InputError, ModelDoesNotFitError
from llmsim.core.files import check_target
from llmsim.scenario import Scenario, parse_assignments
from llmsim.scenario.checks import prove

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What `llmsim run` was told.

    Parameters
    ----------
    scenario : str
        A file or a shipped name.
    assignments : tuple of str
        Texts of ``--set``.
    seed : int or None
    out : Path or None
    force, quiet, as_json : bool
    draws : int
        Runs under other prices of the operators; 0 for none.
    perfetto : Path or None
        Where a trace for Perfetto goes.
    """

    scenario: str
    assignments: tuple[str, ...]
    seed: int | None
    out: Path | None
    force: bool
    quiet: bool
    as_json: bool
    draws: int = 0
    perfetto: Path | None = None


def run_scenario(order: RunOrder) -> int:
    """Simulate, save and print; return the exit code.

    Raises
    ------
    ScenarioError
        With everything that is wrong with the scenario.
    OutputError
        If the run folder is taken; raised before anything is simulated.
    """
    overrides = parse_assignments(order.assignments)
    if order.seed is not None:
        overrides["seed"] = order.seed
    if order.perfetto is not None:
        overrides["record.steps"] = True
    scenario = Scenario.load(order.scenario, overrides)
    folder = order.out or default_folder(scenario.name)

    from llmsim.results.folder import check_free

    check_free(folder, order.force)
    if order.perfetto is not None:
        check_target(order.perfetto)
    from llmsim import api

    with progress_bar(scenario.name, quiet=order.quiet or order.as_json) as progress:
        result = api.run(scenario, out=folder, force=order.force, progress=progress)
    if order.perfetto is not None:
        from llmsim.core.files import write_whole
        from llmsim.report.perfetto import trace_lines

        write_whole(order.perfetto, trace_lines(result))
    if order.as_json:
        told = {"scenario": scenario.name, "folder": str(folder), "digest": result.digest}
        print_json(told | result.evaluate().as_json())
    elif order.quiet:
        typer.echo(str(folder))
    else:
        from llmsim.report.terminal import print_summary

        print_summary(result, folder)
    if order.draws and not result.facts.interrupted:
        from llmsim.cli.studying import draw_and_print

        draw_and_print(scenario, order.draws, folder, order.quiet or order.as_json)
    if result.facts.interrupted:
        typer.echo("Interrupted: the result covers the run up to that point.", err=True)
        return INTERRUPTED
    return 0


def default_folder(name: str) -> Path:
    """Return a run folder in the current directory that does not exist yet.

    Parameters
    ----------
    name : str
        Name of the scenario.
    """
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder, number = Path("runs") / stem, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder


@contextmanager
def progress_bar(name: str, quiet: bool, unit: str = "requests") -> Iterator[Progress | None]:
    """Give a callable that draws progress on standard error; None where nobody would see it.

    Parameters
    ----------
    name : str
        What to write in front of the bar.
    quiet : bool
    unit : str
        What is counted.
    """
    with _bars(quiet, left=True) as bars:
        if bars is None:
            yield None
            return
        task = bars.add_task(name, total=None, count="")

        def show(done: int, total: int | None) -> None:
            count = f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"
            bars.update(task, completed=done, total=total, count=count)

        yield show


@contextmanager
def stage_bars(quiet: bool) -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Give a callable that draws a bar for each thing that is done; None where nobody looks.

    It is called with what is being done, how much of it is done, how much there is or None.
    """
    with _bars(quiet, left=False) as bars:
        if bars is None:
            yield None
            return
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, whole: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=whole, count="")
            count = f"{done:,}" if whole is None else f"{done:,} of {whole:,}"
            bars.update(tasks[what], completed=done, total=whole, count=count)

        yield show


@contextmanager
def _bars(quiet: bool, left: bool) -> Iterator[Bars | None]:
    """Give bars on standard error, with the time left or without; None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    ]
    if left:
        columns += [TextColumn("left"), TimeLeft()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield bars


def check_scenarios(
    scenarios: Sequence[str], assignments: Sequence[str], as_json: bool = False
) -> bool:
    """Say of each scenario whether it is right; return whether all are.

    Parameters
    ----------
    scenarios : sequence of str
        Files or shipped names.
    assignments : sequence of str
        Texts of ``--set``, applied to each.
    as_json : bool
    """
    overrides = parse_assignments(tuple(assignments))
    told: list[dict[str, object]] = []
    for named in scenarios:
        try:
            scenario = Scenario.load(named, overrides)
            prove(scenario)
        except InputError as error:
            typer.echo(str(error), err=True)
            told.append({"scenario": named, "right": False, "faults": error.faults})
        except ModelDoesNotFitError as error:
            typer.echo(f"1 problem in {named}:\n  {error}", err=True)
            told.append({"scenario": named, "right": False, "faults": [Fault("", "", str(error))]})
        else:
            about = describe(scenario)
            told.append({"scenario": named, "right": True, "about": about})
            if not as_json:
                typer.echo(f"ok  {named}  {about}")
    if as_json:
        print_json(told)
    return all(each["right"] for each in told)


def describe(scenario: Scenario) -> str:
    """Return one line that says what is simulated."""
    traffic = scenario.traffic
    source = traffic.trace or traffic.arrivals
    fleet = ", ".join(
        f"{pool.replicas} x {pool.plan.gpus} {pool.gpu}"
        if pool.plan.gpus > 1
        else f"{pool.replicas} {pool.gpu}"
        for pool in scenario.fleet.pools.values()
        if pool.gpus
    )
    return f"{scenario.model} on {fleet}; {source.kind if source else 'no'} traffic"
