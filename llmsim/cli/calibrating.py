"""`llmsim calibrate`: fit a few factors to measured steps and runs, and test them on others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.answering import JsonOption, print_json
from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.fidelity.calibrating import CalibrateOrder, Fitted
    from llmsim.fidelity.calibration import Calibration
    from llmsim.fidelity.scores import Errors


def calibrate(
    where: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of measurements.")],
    engine: Annotated[str, typer.Option(help="The engine, such as vllm.")],
    gpu: Annotated[str, typer.Option(help="The GPU: a card's name or alias.")],
    model: Annotated[str, typer.Option(help="Models (model_key) to fit on.")] = "*",
    source: Annotated[
        str, typer.Option(help="Sources to fit on; default: those of the headline.")
    ] = "",
    cases: Annotated[
        int, typer.Option(min=1, help="Most cases of one group, drawn by hash of their ids.")
    ] = 20,
    leave_out: Annotated[
        str,
        typer.Option(
            help="What is left out in turn: a model, or a layout: one precision and split of it."
        ),
    ] = "model",
    out: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("calibrations"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    others: Annotated[
        Path | None,
        typer.Option(help="Also predict by the mean of this engine's other GPUs in this folder."),
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(help="Folder of kernel tables to price with, where they have the GPU."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit factors of operator families and of the host, for one engine on one GPU.

    Measured steps come first, then whole runs; each model, or each layout of one, is also left out
    in turn, and predicted by the others.

    Example: llmsim calibrate measured --engine vllm --gpu h100-sxm --out mine.yaml
    """
    with exit_code_for_errors():
        from llmsim.fidelity.calibrating import CalibrateOrder, group_named

        models = tuple(model.split(","))
        sources = tuple(source.split(",")) if source else ()
        by = group_named(leave_out)
        order = CalibrateOrder(where, engine, gpu, models, sources, cases, jobs, profiles, by)
        run_calibration(order, out, others, as_json)


def run_calibration(
    order: CalibrateOrder, out: Path, others: Path | None = None, as_json: bool = False
) -> None:
    """Fit, print the split and the errors on both sides, write the file.

    Parameters
    ----------
    order : CalibrateOrder
    out : Path
        Folder for the file.
    others : Path or None
        Cards of the engine on other GPUs, to be tried on the runs.
    as_json : bool
    """
    from llmsim.fidelity.calibrating import calibrate as fitted

    done = fitted(order, None if as_json else print_fitted)
    transfer = None
    if others is not None and done.runs is not None:
        transfer = done.by_other_gpus(others)
        if not as_json:
            _print_transfer(transfer, order.engine, others)
    path = done.write(out)
    if not as_json:
        typer.echo(f"written to {path}")
        return
    document = {
        "path": path,
        "engine": done.engine,
        "gpu": done.gpu,
        "terms": done.terms,
        "fits": [_document(each) for each in done.fits],
    }
    if transfer is not None:
        document["by_other_gpus"] = {"before": transfer[0], "after": transfer[1]}
    print_json(document)


def _document(each: Fitted) -> dict[str, object]:
    """Return a fit as it is printed, as numbers."""
    found = each.found
    return {
        "title": each.title,
        "source": each.source,
        "terms": found.terms,
        "in_sample": {"before": found.before, "after": found.after},
        "never_seen": {"before": found.unseen_before, "after": found.unseen_after},
    }


def print_fitted(each: Fitted) -> None:
    """Print one fit, and for steps what it is worth on those it has not seen."""
    of_runs = each.title == "runs"
    if not of_runs:
        typer.echo(f"{each.title}:")
    print_calibration(each.found)
    if not of_runs:
        typer.echo(each.source)


def _print_transfer(errors: tuple[Errors, Errors] | None, engine: str, folder: Path) -> None:
    """Print the errors of a GPU's runs by the factors of the engine's other GPUs."""
    if errors is None:
        typer.echo(f"{folder} holds no calibration of {engine} on another GPU", err=True)
        return
    plain, held = errors
    typer.echo(
        f"  by {engine}'s other GPUs, {plain.count}: median error {plain.median:.1%} -> "
        f"{held.median:.1%}"
    )


def print_calibration(found: Calibration) -> None:
    """Print factors, and errors on both sides of the split."""
    for name, value in found.terms.items():
        typer.echo(f"  {name}: {value:g}")
    before, after = found.before, found.after
    typer.echo(
        f"  in sample, {before.count}: median error {before.median:.1%} -> {after.median:.1%}"
    )
    if found.unseen_before is not None and found.unseen_after is not None:
        plain, held = found.unseen_before, found.unseen_after
        typer.echo(
            f"  each group by the others, {plain.count}: median error {plain.median:.1%} -> "
            f"{held.median:.1%}"
        )
        if held.median > plain.median:
            typer.echo("  it makes groups never seen worse: not worth using", err=True)
