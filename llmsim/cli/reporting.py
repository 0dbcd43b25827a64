"""`llmsim report`: the page of a plan's folder, written anew or printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmsim.cli.ending import exit_code_for_errors


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that `llmsim plan` wrote.")],
    pdf: Annotated[
        bool, typer.Option(help="Print it into report.pdf, too; needs Chromium or Chrome.")
    ] = False,
) -> None:
    """Write the provisioning report of a plan anew: what to buy, against what, and how sure.

    Example: llmsim report runs/chat-plan --pdf
    """
    with exit_code_for_errors():
        from llmsim.core.errors import OutputError
        from llmsim.planner.folder import load_plan
        from llmsim.planner.page import render_plan
        from llmsim.report.pdf import find_browser, needs_browser, print_pdf
        from llmsim.results.folder import REPORT

        if pdf and find_browser() is None:
            raise OutputError(needs_browser())
        page = folder / REPORT
        page.write_text(render_plan(load_plan(folder)), encoding="utf-8")
        typer.echo(str(page))
        if pdf:
            target = page.with_suffix(".pdf")
            print_pdf(page, target)
            typer.echo(str(target))
