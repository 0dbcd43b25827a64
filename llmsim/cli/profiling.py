"""`llmsim profile`: measure a device, with progress shown; other commands join its group."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import INTERRUPTED, WRONG_INPUT, exit_code_for_errors
from llmsim.cli.helping import Group

profile_app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    help="Measure what kernels cost on a device, and look after such profiles.\n\n"
    "Example: llmsim profile --device cpu --quick --out my-cpu",
    invoke_without_command=True,
)
MISSING = "llmsim profile needs torch and the kernels: pip install 'llmsim[profile]'"


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """Options of `llmsim profile`, as given."""

    device: str
    quick: bool
    budget_s: float
    model: str
    blocks: tuple[int, ...]
    out: Path | None
    as_json: bool = False


@profile_app.callback()
def profile(
    context: typer.Context,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, cpu. Default: the first GPU.")] = "",
    quick: Annotated[
        bool, typer.Option(help="The main blocks, thinned: laid out for 90 s.")
    ] = False,
    budget: Annotated[float, typer.Option(min=1, help="Stop after this many seconds.")] = 480.0,
    model: Annotated[
        str, typer.Option(help="Also the exact shapes of this model: a card or a config.json.")
    ] = "",
    block: Annotated[
        list[int] | None, typer.Option(help="Only this block of the grid (may be repeated).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Profile folder; an unfinished one is continued."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what kernels cost on this device; write rows.csv and meta.json as it goes."""
    if context.invoked_subcommand is not None:
        return
    with exit_code_for_errors():
        options = ProfileOptions(device, quick, budget, model, tuple(block or ()), out, as_json)
        code = measure(options)
    raise typer.Exit(code)


def measure(options: ProfileOptions) -> int:
    """Run the profiler and print what came of it; return the exit code."""
    try:
        importlib.import_module("torch")
        profiler = importlib.import_module("llmsim_kernels.profiler.run")
    except ImportError:
        typer.echo(MISSING, err=True)
        return WRONG_INPUT
    order = profiler.ProfileOrder(
        device=options.device,
        quick=options.quick,
        budget_s=options.budget_s,
        model=options.model,
        blocks=options.blocks,
        out=options.out,
    )
    with _Progress() as progress:
        outcome = profiler.run_profile(order, progress)
    fits = None if outcome.meta.state == "failed" else _fits(outcome.folder)
    if options.as_json:
        told = {"folder": outcome.folder, "cut": outcome.cut, "meta": outcome.meta, "fits": fits}
        print_json(told)
    else:
        for line in (*profiler.summary_lines(outcome), *_fit_lines(fits)):
            typer.echo(line)
    return INTERRUPTED if outcome.cut == "interrupted" else 0 if not outcome.cut else WRONG_INPUT


def _fits(folder: Path) -> Mapping[str, Any]:
    """Fit a profile, and return what came of it by kernel."""
    from llmsim.costmodel.measured.fitting import fit_profile

    return fit_profile(folder)


def _fit_lines(fits: Mapping[str, Any] | None) -> list[str]:
    """Return a line per kernel with its error on shapes never fitted."""
    if fits is None:
        return ["fit       none: a profile whose ceilings drifted this far is not used"]
    lines = []
    for name, entry in fits.items():
        unseen = entry.get("holdout")
        errors = "no unseen shapes"
        if unseen:
            errors = "unseen shapes off by {:.1%} (median), {:.1%} (p90), bias {:+.1%}".format(
                *(float(unseen[figure]) for figure in ("median", "p90", "bias"))
            )
        lines.append(f"fit       {name}: {entry['rows']} rows, {errors}")
    return lines or ["fit       none: no operator has rows enough"]


class _Progress:
    """A bar over the rows, and every doubt above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("ceilings", total=None)

    def __enter__(self) -> _Progress:
        return self  # the bar starts with the first row: a wrong order shows none

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def planned(self, rows: int) -> None:
        """Set the length of the bar."""
        self._bar.update(self._task, total=rows, completed=0)

    def measured(self, spec: Any, status: str) -> None:
        """Move on by a row."""
        self._bar.start()
        words = f"block {spec.block} {spec.key['op']}"
        self._bar.update(self._task, description=f"{words:<28}", advance=1 if spec.block else 0)

    def noted(self, text: str) -> None:
        """Print a doubt."""
        self._bar.console.print(f"note: {text}", highlight=False)
