"""`llmsim plan`: the cheapest fleet that keeps a promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llmsim.cli.answering import print_json
from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmsim.planner.outlook import Outlook
    from llmsim.planner.plan import Plan
    from llmsim.planner.several import Plans
    from llmsim.planner.work import Tell
    from llmsim.study.executor import Executor

NOT_PROVEN = 1
"""Exit code where no fleet that was simulated kept the promise."""

UNSHOWN = ("not proven", "not simulated")
"""Outcomes of which there is nothing to look ahead from."""


def plan(
    file: Annotated[
        str, typer.Argument(metavar="PLAN", help="A plan file, or the name of a shipped one.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value. The value is YAML."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of the plan. Default: runs/<name>-<time>."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a folder that is not empty.")] = False,
    explain: Annotated[
        bool, typer.Option(help="Say of every configuration why it was not bought.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option(help="Show by simulation that the fleet keeps the promise.")
    ] = True,
    outlook: Annotated[
        bool, typer.Option(help="For the report, simulate it at more, burstier, longer traffic.")
    ] = True,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    executor: Annotated[str, typer.Option(help="Where to simulate: local, dask or ray.")] = "local",
    scheduler: Annotated[
        str | None,
        typer.Option(help="Of the cluster: tcp://host:8786 of Dask, host:6379 of Ray."),
    ] = None,
    pdf: Annotated[
        bool, typer.Option(help="Print the report into report.pdf, too; needs Chromium or Chrome.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Find the cheapest fleet that keeps a promise to given traffic, for one model or several.

    Example: llmsim plan chat --set slo.ttft_s=1 --explain
    """
    with exit_code_for_errors():
        from llmsim.api import plan as plan_one
        from llmsim.cli.running import default_folder, stage_bars
        from llmsim.planner.reading import read_plan
        from llmsim.planner.several import plan_several
        from llmsim.planner.several_reading import read_several
        from llmsim.scenario import parse_assignments
        from llmsim.study.executor import Executor, Kind

        overrides = parse_assignments(set_ or [])
        several = read_several(file, overrides)
        name = read_plan(file, overrides).keys.name if several is None else several.name
        folder = out or default_folder(name)
        _check(folder, force, pdf)
        where = Executor(cast(Kind, executor), jobs, scheduler)
        with stage_bars(quiet=as_json) as progress:
            call = plan_one if several is None else plan_several
            found = call(file, overrides, simulate=simulate, executor=where, progress=progress)
            _save(found, folder, force)
            outlooks = _look(found, folder, where, progress) if outlook else {}
        if pdf:
            _print_pages(found, folder)
        _answer(found, folder, explain, outlooks, as_json)
    if found.outcome == "not proven":
        raise typer.Exit(NOT_PROVEN)


def _check(folder: Path, force: bool, pdf: bool) -> None:
    """Raise before the long work if its result could not be written."""
    from llmsim.report.pdf import check_browser
    from llmsim.results.folder import check_free

    check_free(folder, force)
    if pdf:
        check_browser()


def _save(found: Plan | Plans, folder: Path, force: bool) -> None:
    """Write the folder of a plan, or of plans of several models."""
    from llmsim.planner.folder import save_plan
    from llmsim.planner.plan import Plan
    from llmsim.planner.several_folder import save_plans

    if isinstance(found, Plan):
        save_plan(found, folder, force)
    else:
        save_plans(found, folder, force)


def _by_model(found: Plan | Plans) -> dict[str, Plan]:
    """Return each plan by its folder within that of all."""
    from llmsim.planner.plan import Plan

    return {"": found} if isinstance(found, Plan) else dict(found.plans)


def _look(
    found: Plan | Plans, folder: Path, where: Executor, progress: Tell | None
) -> dict[str, Outlook]:
    """Simulate every fleet that was shown to do under other circumstances; by model."""
    from llmsim.planner.folder import add_outlook

    return {
        model: add_outlook(each, folder / model, executor=where, tell=progress)
        for model, each in _by_model(found).items()
        if each.outcome not in UNSHOWN
    }


def _print_pages(found: Plan | Plans, folder: Path) -> None:
    """Print the reports of a plan's folder, by a browser."""
    from llmsim.report.pdf import print_pdf
    from llmsim.results.folder import REPORT

    for part in dict.fromkeys(("", *_by_model(found))):
        page = folder / part / REPORT
        print_pdf(page, page.with_suffix(".pdf"))


def _answer(
    found: Plan | Plans,
    folder: Path,
    explain: bool,
    outlooks: Mapping[str, Outlook],
    as_json: bool,
) -> None:
    """Print what was found, and why each configuration was not bought if that is wanted."""
    if as_json:
        print_json({"folder": folder} | found.as_json())
        return
    from llmsim.cli.plan_tables import print_losers, print_outlook, print_plan, print_plans
    from llmsim.planner.plan import Plan

    if isinstance(found, Plan):
        print_plan(found, folder)
    else:
        print_plans(found, folder)
    plans = _by_model(found)
    for model, each in outlooks.items():
        print_outlook(each, plans[model], model)
    for model, plan_of_it in plans.items() if explain else ():
        if model:
            typer.echo(f"{model}:")
        print_losers(plan_of_it)
