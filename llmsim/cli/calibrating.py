"""`llmsim calibrate`: fit a few factors to measured steps and runs, and test them on others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.fidelity.calibration import Calibration, Prior, Runs
    from llmsim.fidelity.cases import Case
    from llmsim.fidelity.steps import StepFile


@dataclass(frozen=True, slots=True)
class CalibrateOrder:
    """What `llmsim calibrate` was asked for."""

    folder: Path
    engine: str
    gpu: str
    models: tuple[str, ...]
    sources: tuple[str, ...]
    most: int
    out: Path
    jobs: int
    others: Path | None = None
    profiles: Path | None = None


def calibrate(
    where: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of measurements.")],
    engine: Annotated[str, typer.Option(help="The engine, such as vllm.")],
    gpu: Annotated[str, typer.Option(help="The GPU: a card's name or alias.")],
    model: Annotated[str, typer.Option(help="Models (model_key) to fit on.")] = "*",
    source: Annotated[
        str, typer.Option(help="Sources to fit on; default: those of the headline.")
    ] = "",
    cases: Annotated[
        int, typer.Option(min=1, help="Most cases of one model, drawn by hash of their ids.")
    ] = 20,
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
) -> None:
    """Fit factors of operator families and of the host, for one engine on one GPU.

    Measured steps come first, then whole runs; each model is also left out in turn, and predicted
    by the others.
    """
    with exit_code_for_errors():
        models = tuple(model.split(","))
        sources = tuple(source.split(",")) if source else ()
        run_calibration(
            CalibrateOrder(where, engine, gpu, models, sources, cases, out, jobs, others, profiles)
        )


def run_calibration(asked: CalibrateOrder) -> None:
    """Fit, print the split and the errors on both sides, write the file."""
    from llmsim.fidelity.calibration import Provenance, Runs, fit, write_calibration
    from llmsim.fidelity.cases import read_cases
    from llmsim.fidelity.profiles import MEASURED, read_profiles
    from llmsim.fidelity.replay import cache_folder, default_store
    from llmsim.fidelity.requests import RequestFiles
    from llmsim.fidelity.scenarios import card_of
    from llmsim.fidelity.steps import read_steps, steps_of

    gpu = card_of(asked.gpu)
    name = f"{asked.engine} on {gpu}"
    everything = read_cases(asked.folder)
    chosen = choose(everything, asked)
    step_files = steps_of(read_steps(asked.folder), asked.engine, gpu)
    prior, told, found = _fit_steps(step_files, name)
    if chosen:
        files = RequestFiles(asked.folder, cache_folder() / "traces", everything)
        tables = read_profiles(asked.profiles) if asked.profiles is not None else ()
        cost = {"kind": MEASURED if tables else "roofline"}
        runs = Runs(chosen, cost, files, default_store(), asked.jobs, profiles=tables)
        found = fit(runs, prior, name)
        told.append(_words(chosen, found))
        print_calibration(found)
        if asked.others is not None:
            _print_transfer(runs, asked.others, asked.engine, gpu)
    if found is None:
        typer.echo(f"nothing was measured of {name}", err=True)
        raise typer.Exit(2)
    origin = Provenance(asked.engine, gpu, "; ".join(told))
    typer.echo(f"written to {write_calibration(found, origin, asked.out)}")


def _print_transfer(runs: Runs, folder: Path, engine: str, gpu: str) -> None:
    """Print the errors of a GPU's runs by the factors of the engine's other GPUs."""
    import math

    from llmsim.fidelity.calibration import of_other_gpus, read_calibrations
    from llmsim.fidelity.scores import errors_of

    terms = of_other_gpus(read_calibrations(folder), engine, gpu)
    if not terms:
        typer.echo(f"{folder} holds no calibration of {engine} on another GPU", err=True)
        return
    plain, held = (
        errors_of([math.expm1(x) for x in runs.errors(each).values()]) for each in ({}, terms)
    )
    typer.echo(
        f"  by {engine}'s other GPUs, {plain.count}: median error {plain.median:.1%} -> "
        f"{held.median:.1%}"
    )


def choose(cases: Sequence[Case], asked: CalibrateOrder) -> list[Case]:
    """Return the cases to fit on: of every model the same number at most, drawn by hash.

    Parameters
    ----------
    cases : sequence of Case
    asked : CalibrateOrder
    """
    from llmsim.fidelity.sample import by_hash
    from llmsim.fidelity.scenarios import card_of
    from llmsim.fidelity.validation import Selection

    wanted = Selection(
        sources=asked.sources,
        engines=(asked.engine,),
        models=asked.models,
        headline=not asked.sources,
    )
    gpu = card_of(asked.gpu)
    by_model = defaultdict(list)
    for case in cases:
        if wanted.takes(case) and card_of(case.text("gpu")) == gpu and not case.text("disagg"):
            by_model[case.model_key].append(case)
    return [case for side in by_model.values() for case in by_hash(side)[: asked.most]]


def _fit_steps(
    files: Sequence[StepFile], name: str
) -> tuple[Prior | None, list[str], Calibration | None]:
    """Fit single steps on every other layout; print what the layouts between them say."""
    import math

    from llmsim.fidelity.calibration import after_steps, fit
    from llmsim.fidelity.scores import errors_of
    from llmsim.fidelity.steps import Steps

    prior, found = None, None
    told: list[str] = []
    for file in files:
        evidence = Steps(file, step_card(file))
        layouts = sorted({step.layout for step in file.steps})
        seen = evidence.of(layouts[::2])
        found = fit(seen, prior, f"{name}, steps")
        prior = after_steps(found, file.model)
        # Groups of steps are layouts of one model: a run of that model is not to be predicted.
        found = replace(found, without={file.model: {}}, count={file.model: len(seen.file.steps)})
        typer.echo(f"steps of {file.model}, fitted on {', '.join(layouts[::2])}:")
        print_calibration(found)
        words = (
            f"{len(seen.file.steps)} steps of {file.model} on {file.engine} {file.version}, "
            f"{', '.join(layouts[::2])}"
        )
        held = evidence.of(layouts[1::2])
        if held.file.steps:
            plain, fitted = (
                errors_of([math.expm1(x) for x in held.errors(terms).values()])
                for terms in ({}, found.terms)
            )
            words += (
                f": on {plain.count} of {', '.join(layouts[1::2])}, never fitted, median error "
                f"{plain.median:.1%} -> {fitted.median:.1%}"
            )
        typer.echo(words)
        told.append(words)
    return prior, told, found


def step_card(file: StepFile) -> str:
    """Return the engine card of the version that a file of steps names.

    Parameters
    ----------
    file : StepFile
    """
    from llmsim.fidelity.assumptions import assume
    from llmsim.fidelity.cases import Case

    fields = {"engine": file.engine, "engine_version": file.version, "gpu": file.gpu}
    return str(assume(Case("steps", "A", fields, {})).engine["version"])


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


def _words(cases: Sequence[Case], found: Calibration) -> str:
    """Say what a fit to runs has seen."""
    sources = sorted({case.text("source") for case in cases})
    versions = sorted({case.text("engine_version") or "not recorded" for case in cases})
    counts = ", ".join(f"{model} {count}" for model, count in sorted(found.count.items()))
    return (
        f"mean TPOT of runs ({counts}), versions {', '.join(versions)}, sources "
        f"{', '.join(sources)}"
    )
