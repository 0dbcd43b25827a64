"""`llmsim report`: the page of a plan's folder, written anew or printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmsim.cli.ending import exit_code_for_errors


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `llmsim plan` wrote.")],
    outlook: Annotated[
        bool,
        typer.Option(help="Simulate the fleet at more, burstier and longer traffic first."),
    ] = False,
    seeds: Annotated[int, typer.Option(min=2, help="Of each circumstance of the outlook.")] = 3,
    draws: Annotated[
        int, typer.Option(min=0, help="Of the operators' prices, for the outlook; 0: none.")
    ] = 10,
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one per core.")] = -1,
    pdf: Annotated[
        bool, typer.Option(help="Print it into report.pdf, too; needs Chromium or Chrome.")
    ] = False,
) -> None:
    """Write the provisioning report of a plan anew: what to buy, against what, and how sure.

    Example: llmsim report runs/chat-plan --outlook --pdf
    """
    with exit_code_for_errors():
        from llmsim.planner.folder import load_plan
        from llmsim.planner.outlook import Outlook, look_ahead
        from llmsim.planner.page import render_plan
        from llmsim.report.pdf import check_browser, print_pdf
        from llmsim.results.folder import REPORT

        if pdf:
            check_browser()
        plan, page = load_plan(folder), folder / REPORT
        if outlook:
            look_ahead(plan, seeds, draws, jobs).save(folder)
        page.write_text(render_plan(plan, Outlook.load(folder)), encoding="utf-8")
        typer.echo(str(page))
        if pdf:
            target = page.with_suffix(".pdf")
            print_pdf(page, target)
            typer.echo(str(target))
