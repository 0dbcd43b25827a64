"""`llmsim report`: the page of a saved run or plan, written anew or printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.answering import print_json
from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.planner.several import Plans


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of `llmsim run` or `llmsim plan`.")],
    outlook: Annotated[
        bool,
        typer.Option(help="Plans: simulate the fleet at more, burstier, longer traffic first."),
    ] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Of each circumstance of the outlook.")] = 3,
    draws: Annotated[
        int, typer.Option(min=0, help="Of the operators' prices, for the outlook; 0: none.")
    ] = 10,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    pdf: Annotated[
        bool, typer.Option(help="Print it into report.pdf, too; needs Chromium or Chrome.")
    ] = False,
    perfetto: Annotated[
        Path | None,
        typer.Option(help="Runs: write a trace for ui.perfetto.dev, with steps if they were kept."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run's summary or the plan as JSON.")
    ] = False,
) -> None:
    """Write the report of a saved run or plan anew, and say again what came out.

    Example: llmsim report runs/first
    """
    with exit_code_for_errors():
        from llmsim.report.pdf import check_browser, print_pdf

        if pdf:
            check_browser()
        how = (seeds, draws, jobs) if outlook else None
        pages, told = _written(folder, how, perfetto, as_json)
        if as_json:
            print_json({"folder": folder} | told)
        for page in pages:
            if not as_json:
                typer.echo(str(page))
            if pdf:
                target = page.with_suffix(".pdf")
                print_pdf(page, target)
                if not as_json:
                    typer.echo(str(target))


def _written(
    folder: Path, outlook: tuple[int, int, int] | None, perfetto: Path | None, quiet: bool
) -> tuple[list[Path], dict[str, object]]:
    """Write the pages of whatever is in a folder; return them, and what they are about."""
    from llmsim.planner.folder import PLAN
    from llmsim.planner.several_folder import load_plans
    from llmsim.results.folder import META, REPORT

    page = folder / REPORT
    several = load_plans(folder)
    if several is None and not (folder / PLAN).exists() and (folder / META).exists():
        if outlook is not None:
            raise typer.BadParameter("an outlook is of a plan, and this is a run.")
        return [page], _run(folder, page, perfetto, quiet)
    if perfetto is not None:
        raise typer.BadParameter("a trace is of a run, and this is none.")
    if several is None:
        return [page], _plan(folder, page, outlook)
    told = _plans(several, folder, outlook)
    return [page, *(folder / model / REPORT for model in several.plans)], told


def _plans(several: Plans, folder: Path, outlook: tuple[int, int, int] | None) -> dict[str, object]:
    """Write the pages of plans of several models, and return these."""
    from llmsim.core.files import write_whole
    from llmsim.planner.several_folder import render_plans
    from llmsim.results.folder import REPORT

    write_whole(folder / REPORT, render_plans(several))
    for model in several.plans:
        _plan(folder / model, folder / model / REPORT, outlook)
    return several.as_json()


def _run(folder: Path, page: Path, perfetto: Path | None, quiet: bool) -> dict[str, object]:
    """Write the page of a run; print its summary unless `quiet`, and return it."""
    from llmsim.core.files import write_whole
    from llmsim.report.html import render_html
    from llmsim.report.terminal import print_summary
    from llmsim.results.result import Result

    result = Result.load(folder)
    write_whole(page, render_html(result))
    if perfetto is not None:
        from llmsim.report.perfetto import trace_lines

        write_whole(perfetto, trace_lines(result))
    if not quiet:
        print_summary(result)
    return result.evaluate().as_json()


def _plan(folder: Path, page: Path, outlook: tuple[int, int, int] | None) -> dict[str, object]:
    """Write the page of a plan, with an outlook by (seeds, draws, jobs), and return the plan."""
    from llmsim.core.files import write_whole
    from llmsim.planner.folder import add_outlook, load_plan
    from llmsim.planner.outlook import Outlook
    from llmsim.planner.page import render_plan
    from llmsim.study.executor import Executor

    plan = load_plan(folder)
    if outlook is not None:
        seeds, draws, jobs = outlook
        add_outlook(plan, folder, seeds, draws, Executor(jobs=jobs))
    else:
        write_whole(page, render_plan(plan, Outlook.load(folder)))
    return plan.as_json()
