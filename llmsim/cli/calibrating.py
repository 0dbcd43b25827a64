"""`llmsim calibrate`: fit a few factors to measured runs, and test them on runs never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmsim.cli.ending import exit_code_for_errors

if TYPE_CHECKING:
    from llmsim.fidelity.calibration import Bench
    from llmsim.fidelity.cases import Case


@dataclass(frozen=True, slots=True)
class CalibrateOrder:
    """What `llmsim calibrate` was asked for."""

    folder: Path
    engine: str
    gpu: str
    models: tuple[str, ...]
    sources: tuple[str, ...]
    most: int
    hold_out: bool
    out: Path
    jobs: int


def calibrate(
    where: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of measurements.")],
    engine: Annotated[str, typer.Option(help="The engine, such as vllm.")],
    gpu: Annotated[str, typer.Option(help="The GPU, as the measurements call it.")],
    model: Annotated[str, typer.Option(help="Models (model_key) to fit on; others stay unseen.")],
    source: Annotated[str, typer.Option(help="Sources to fit on.")] = "*",
    cases: Annotated[int, typer.Option(min=4, help="Most cases to fit on, drawn by hash.")] = 40,
    hold_out: Annotated[bool, typer.Option(help="Also fit without each model in turn.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("calibrations"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Fit factors of operator families and host terms of one engine on one GPU."""
    with exit_code_for_errors():
        models, sources = tuple(model.split(",")), tuple(source.split(","))
        order = CalibrateOrder(where, engine, gpu, models, sources, cases, hold_out, out, jobs)
        run_calibration(order)


def run_calibration(asked: CalibrateOrder) -> None:
    """Fit, print the split and the errors on both sides, write the file."""
    from llmsim.fidelity.calibration import Bench, fit, write_calibration
    from llmsim.fidelity.cases import read_cases
    from llmsim.fidelity.replay import cache_folder, default_store
    from llmsim.fidelity.requests import RequestFiles
    from llmsim.fidelity.sample import by_hash
    from llmsim.fidelity.validation import Selection

    everything = read_cases(asked.folder)
    own = Selection(engines=(asked.engine,), gpus=(asked.gpu,))
    pool = [case for case in everything if own.takes(case) and not case.text("disagg")]
    wanted = Selection(sources=asked.sources, models=asked.models)
    seen = by_hash([case for case in pool if wanted.takes(case)])[: asked.most]
    files = RequestFiles(asked.folder, cache_folder() / "traces", everything)
    bench = Bench({"kind": "roofline"}, files, default_store(), asked.jobs)
    found = fit(seen, bench, asked.engine, asked.gpu)
    typer.echo(f"fitted on {found.cases} cases of {', '.join(found.fitted_on)}; terms:")
    for name, value in found.terms.items():
        typer.echo(f"  {name}: {value:g}")
    typer.echo(f"TPOT median error there: {found.before.median:.1%} -> {found.after.median:.1%}")
    models = set(found.fitted_on)
    unseen = [case for case in pool if case.model_key not in models]
    if unseen:
        _print_unseen(unseen, bench, found.terms)
    if asked.hold_out:
        _print_hold_out(seen, bench, asked)
    typer.echo(f"written to {write_calibration(found, asked.out)}")


def _print_unseen(unseen: Sequence[Case], bench: Bench, terms: Mapping[str, float]) -> None:
    """Print the errors of models that the fit has not seen, plain and calibrated."""
    import math

    from llmsim.fidelity.calibration import log_errors
    from llmsim.fidelity.scores import errors_of

    plain = log_errors(bench.replay(unseen, {}))
    fitted = log_errors(bench.replay(unseen, terms))
    for model in sorted({case.model_key for case in unseen}):
        ids = {case.case_id for case in unseen if case.model_key == model}
        told = [
            errors_of([math.expm1(value) for key, value in side.items() if key[0] in ids])
            for side in (plain, fitted)
            if any(key[0] in ids for key in side)
        ]
        if len(told) == 2:
            before, after = told
            typer.echo(
                f"never seen, {model}: {before.count} cases, TPOT median error "
                f"{before.median:.1%} -> {after.median:.1%}"
            )


def _print_hold_out(seen: Sequence[Case], bench: Bench, asked: CalibrateOrder) -> None:
    from llmsim.fidelity.calibration import leave_one_out

    for model, (before, after) in leave_one_out(seen, bench, asked.engine, asked.gpu).items():
        typer.echo(
            f"left out, {model}: {before.count} cases, TPOT median error {before.median:.1%} -> "
            f"{after.median:.1%}"
        )
