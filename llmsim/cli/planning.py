"""`llmsim plan`: the cheapest fleet that keeps a promise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llmsim.cli.answering import print_json
from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.planner.plan import Plan
    from llmsim.planner.several import Plans

NOT_PROVEN = 1
"""Exit code where no fleet that was simulated kept the promise."""


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
        from llmsim.planner.plan import Plan
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
        if isinstance(found, Plan):
            _save(found, folder, force, pdf)
        else:
            _save_all(found, folder, force, pdf)
        if as_json:
            print_json({"folder": folder} | found.as_json())
        else:
            _print(found, folder, explain)
    if found.outcome == "not proven":
        raise typer.Exit(NOT_PROVEN)


def _check(folder: Path, force: bool, pdf: bool) -> None:
    """Raise before the long work if its result could not be written."""
    from llmsim.report.pdf import check_browser
    from llmsim.results.folder import check_free

    check_free(folder, force)
    if pdf:
        check_browser()


def _save(found: Plan, folder: Path, force: bool, pdf: bool) -> None:
    """Write a plan's folder, and print its report if that is wanted."""
    from llmsim.planner.folder import save_plan
    from llmsim.report.pdf import print_pdf
    from llmsim.results.folder import REPORT

    save_plan(found, folder, force)
    if pdf:
        print_pdf(folder / REPORT, (folder / REPORT).with_suffix(".pdf"))


def _save_all(found: Plans, folder: Path, force: bool, pdf: bool) -> None:
    """Write the folder of plans of several models, and print their reports if that is wanted."""
    from llmsim.planner.several_folder import save_plans
    from llmsim.report.pdf import print_pdf
    from llmsim.results.folder import REPORT

    save_plans(found, folder, force)
    for page in (folder, *(folder / model for model in found.plans)) if pdf else ():
        print_pdf(page / REPORT, (page / REPORT).with_suffix(".pdf"))


def _print(found: Plan | Plans, folder: Path, explain: bool) -> None:
    """Print what was found, and why each configuration was not bought if that is wanted."""
    from llmsim.cli.plan_tables import print_losers, print_plan, print_plans
    from llmsim.planner.plan import Plan

    if isinstance(found, Plan):
        print_plan(found, folder)
        plans = {"": found}
    else:
        print_plans(found, folder)
        plans = found.plans
    for model, each in plans.items() if explain else ():
        if model:
            typer.echo(f"{model}:")
        print_losers(each)
