"""`llmsim validate --engine reference`: a real engine on this machine against its simulation."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmsim.cli.answering import print_json
from llmsim.cli.ending import WRONG_INPUT
from llmsim.core.errors import Fault, InputError

if TYPE_CHECKING:
    from llmsim.fidelity.reference import ReferenceReport

MISSING = "llmsim validate --engine reference needs torch: pip install 'llmsim[profile]'"

DEFAULT_MODEL = "llama-3.2-1b"
"""Small enough for any GPU; on a CPU name a smaller one."""


@dataclass(frozen=True, slots=True)
class ReferenceOrder:
    """What was asked for.

    Parameters
    ----------
    trace : Path or None
    minutes : float [min]
    model, gpu : str
        Cards or paths; `gpu` empty for the card of the device, measured on a CPU.
    device : str
        ``cpu``, ``cuda:0``; empty for the first GPU, or the CPU where there is none.
    offline : bool
        Everybody arrives at time 0.
    cost : mapping
    out : Path
    runs : Path or None
        Folder of runs that are kept: they are compared, and the engine does not run.
    docs : Path or None
        Page for the tables of kept runs.
    as_json : bool
    """

    trace: Path | None
    minutes: float
    model: str
    gpu: str
    device: str
    offline: bool
    cost: Mapping[str, Any]
    out: Path
    runs: Path | None = None
    docs: Path | None = None
    as_json: bool = False


def check_reference(order: ReferenceOrder) -> None:
    """Run the engine, simulate the same, print the differences, write both down.

    Raises
    ------
    InputError
        If no trace is given, or no card stands for the device.
    """
    if order.runs is not None:
        _check_runs(order, order.runs)
        return
    try:
        importlib.import_module("torch")
        engine = importlib.import_module("llmsim_kernels.engine.replay")
    except ImportError:
        typer.echo(MISSING, err=True)
        raise typer.Exit(WRONG_INPUT) from None
    from llmsim.fidelity.measuredrun import read_run
    from llmsim.fidelity.reference import compare_run
    from llmsim.specs import load_model

    model = load_model(order.model or DEFAULT_MODEL)
    rows = _trace(order, engine)
    here = importlib.import_module("llmsim_kernels.engine.here")
    gpu = order.gpu or here.card_here(order.device, order.out)
    if not gpu:
        raise InputError("llmsim validate", [Fault("", "--gpu", "no card stands for this GPU.")])
    settings = importlib.import_module("llmsim_kernels.engine.scheduler").EngineSettings()
    longest = min(settings.max_model_len, model.max_context_tokens or settings.max_model_len)
    settings = replace(settings, max_model_len=longest)
    typer.echo(f"serving {len(rows)} requests of up to {order.minutes:g} min ...", err=True)
    engine.run_reference(
        rows,
        model,
        settings,
        device=order.device,
        minutes=order.minutes,
        offline=order.offline,
        out=order.out,
    )
    run = read_run(order.out)
    name = order.model or DEFAULT_MODEL
    report = compare_run(run, name, gpu, order.cost, order.out / "reference_trace.jsonl")
    if order.as_json:
        print_json(_document(report))
    else:
        print_reference(report)
    typer.echo(f"written to {order.out}", err=True)


def _trace(order: ReferenceOrder, engine: Any) -> list[Any]:
    if order.trace is None:
        fault = Fault("", "--trace", "is missing: what the engine is to serve.")
        raise InputError("llmsim validate --engine reference", [fault])
    from llmsim.fidelity.measuredrun import known_trace

    rows = known_trace(order.trace, order.minutes)
    if rows is not None:
        return [engine.TraceRequest(*row) for row in rows]
    found: list[Any] = importlib.import_module("llmsim_kernels.engine.__main__").read_trace(
        order.trace
    )
    return found


def _document(report: ReferenceReport) -> dict[str, object]:
    """Return what `print_reference` prints, as numbers."""
    return {
        "steps": len(report.run.steps),
        "same_decisions": report.same_decisions,
        "difference": report.difference,
        "step_errors": report.step_errors,
        "line": report.line,
        "requests": {
            name: {"measured": one, "predicted": two, "errors": report.request_errors[name]}
            for name, (one, two) in report.means.items()
        },
        "warnings": report.warnings,
    }


def print_reference(report: ReferenceReport) -> None:
    """Print decisions, steps and requests, measured beside predicted."""
    from llmsim.cli.looking import print_rows
    from llmsim.fidelity.tables import told

    steps = len(report.run.steps)
    typer.echo(f"decisions: {report.same_decisions} of {steps} steps the same")
    if report.difference:
        typer.echo(report.difference)
    typer.echo("errors: median / P90 / worst of absolute ones (signed median), percent\n")
    head = ("steps", "count", "measured s", "predicted s", "error of a step")
    rows = [
        (
            each.phase,
            str(each.errors.count),
            f"{each.measured_s:.4g}",
            f"{each.predicted_s:.4g}",
            told(each.errors),
        )
        for each in report.step_errors
    ]
    print_rows([head, *rows])
    line = report.line
    if line is not None:
        typer.echo(
            f"\nmeasured = {1e3 * line.constant_s:.3g} ms + {line.factor:.3g} x predicted, from the"
            f" first half of the steps; error of the second half: {told(line.errors)}"
        )
    typer.echo("")
    means = [
        (name, f"{one:.4g}", f"{two:.4g}", told(report.request_errors[name]))
        for name, (one, two) in report.means.items()
    ]
    print_rows([("requests", "measured mean s", "predicted", "error of a request"), *means])
    for warning in report.warnings:
        typer.echo(f"note: {warning}", err=True)


def _check_runs(order: ReferenceOrder, where: Path) -> None:
    """Compare the runs of the reference engine in a folder with their simulation.

    Raises
    ------
    InputError
        If there are none, or it is not told which GPU they were made on.
    """
    import tempfile

    from llmsim.cli.looking import print_rows
    from llmsim.costmodel.measured.profile import find_profile
    from llmsim.fidelity import runpages as pages
    from llmsim.fidelity.measuredruns import compare_runs
    from llmsim.specs.profile_meta import read_meta

    model, card, cost, docs = order.model, order.gpu, order.cost, order.docs
    if not card and "profile" in cost:
        card = str(read_meta(find_profile(str(cost["profile"]))).device.get("gpu_card", ""))
    if not card:
        raise InputError("llmsim validate", [Fault("", "--gpu", "no card is named.")])
    with tempfile.TemporaryDirectory() as scratch:
        found = compare_runs(where, model or DEFAULT_RUN_MODEL, card, cost, Path(scratch))
    if order.as_json:
        print_json(found)
    else:
        typer.echo(f"{found.gpu}, priced with {pages.told_cost(found.cost)}\n")
        for table in (pages.step_table(found), pages.run_table(found), pages.noise_table(found)):
            print_rows(table)
            typer.echo("")
    if docs is not None:
        pages.write_page(docs, found)
        typer.echo(f"written to {docs}", err=True)


DEFAULT_RUN_MODEL = "llama-3.1-8b"
"""What the runs that are shipped were made with."""
