"""`llmsim validate` and `llmsim calibrate` as calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsim.core.paths import find_data

if TYPE_CHECKING:
    from llmsim.fidelity.calibrating import Calibrated
    from llmsim.fidelity.validation import Report
    from llmsim.specs import CalibrationCard

Progress = Callable[[int, int | None], None]


def validate(
    folder: str | Path,
    *,
    sources: Sequence[str] = (),
    engines: Sequence[str] = (),
    gpus: Sequence[str] = (),
    models: Sequence[str] = (),
    grades: Sequence[str] = ("A", "B"),
    headline: bool = False,
    disaggregated: bool = False,
    cost: Mapping[str, Any] | str = "roofline",
    calibrations: str | Path | None = None,
    profiles: str | Path | None = None,
    jobs: int = 1,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Replay measured serving runs and say how wrong the simulator is.

    Parameters
    ----------
    folder : str or Path
        Holds ``e2e.csv`` or ``e2e.csv.gz``: a row per case, metric and statistic.
    sources, engines, gpus, models : sequence of str
        Globs over the columns source, engine, gpu and model_key; empty takes all.
    grades : sequence of str
        Qualities to take.
    headline : bool
        Only sources whose layout, lengths and load are known; vLLM and TensorRT-LLM, aggregated.
    disaggregated : bool
        Only cases with prefill and decode on GPUs of their own.
    cost : mapping or str
        The ``cost`` component of every pool, or its kind.
    calibrations : str or Path, optional
        Folder of files that `llmsim calibrate` wrote, or ``"shipped"``.
    profiles : str or Path, optional
        Folder of imported kernel tables, which ``cost="measured"`` takes by GPU and engine.
    jobs : int
        Processes.
    fresh : bool
        Do not use results kept from earlier runs.
    progress : callable, optional
        Called with (simulations done, simulations in all).

    Returns
    -------
    Report
        ``.table()`` has a row per case and statistic, ``.summary(by)`` one per group and metric.

    Raises
    ------
    InputError
        If the folder, the selection, the calibration or the profiles are wrong.
    """
    from llmsim.fidelity.validation import Selection, order_of
    from llmsim.fidelity.validation import validate as replay

    chosen = Selection(
        *(tuple(sources), tuple(engines), tuple(gpus), tuple(models), tuple(grades)),
        headline,
        disaggregated,
    )
    component = {"kind": cost} if isinstance(cost, str) else dict(cost)
    order = order_of(
        Path(folder),
        chosen,
        component,
        _calibrations(calibrations),
        Path(profiles) if profiles is not None else None,
        jobs,
        fresh,
    )
    return replay(order, progress)


def calibrate(
    folder: str | Path,
    *,
    engine: str,
    gpu: str,
    models: Sequence[str] = (),
    sources: Sequence[str] = (),
    most: int = 20,
    profiles: str | Path | None = None,
    leave_out: str = "model",
    jobs: int = 1,
) -> Calibrated:
    """Fit a few factors to measured steps and runs of one engine on one GPU.

    Parameters
    ----------
    folder : str or Path
        Measurements, as for `validate`; single steps in ``steps/``.
    engine, gpu : str
        Engine as the measurements call it, such as ``"vllm"``; a GPU card's name or alias.
    models : sequence of str
        Globs over model_key; empty takes all. The runs of a model are predicted by the others.
    sources : sequence of str
        Globs over sources; empty takes those of the headline.
    most : int
        Most cases of one group, drawn by hash of their ids.
    profiles : str or Path, optional
        Folder of imported kernel tables to price with.
    leave_out : {"model", "layout"}
        A group, which the others predict in turn: all runs of a model, or those of one precision
        and split of it over GPUs.
    jobs : int
        Processes.

    Returns
    -------
    Calibrated
        ``.terms``; ``.fits`` with errors on both sides of the split; ``.write(folder)``.

    Raises
    ------
    InputError
        If nothing was measured of them, or a factor leaves [0.6, 1.7].
    """
    from llmsim.fidelity.calibrating import CalibrateOrder, group_named
    from llmsim.fidelity.calibrating import calibrate as fit

    tables = Path(profiles) if profiles is not None else None
    by = group_named(leave_out)
    order = CalibrateOrder(
        Path(folder), engine, gpu, tuple(models), tuple(sources), most, jobs, tables, by
    )
    return fit(order)


def _calibrations(folder: str | Path | None) -> Mapping[tuple[str, str], CalibrationCard]:
    from llmsim.fidelity.calibration import read_calibrations, worth_using

    if str(folder) == "shipped":
        folder = find_data("profiles", "calibrations")
    return {} if folder is None else worth_using(read_calibrations(Path(folder)))
