"""A calibration from a folder of measurements: single steps first, then whole runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.fidelity.assumptions import assume
from llmsim.fidelity.calibration import (
    GROUPS,
    Calibration,
    GroupedBy,
    Prior,
    Provenance,
    Runs,
    after_steps,
    fit,
    of_other_gpus,
    read_calibrations,
    write_calibration,
)
from llmsim.fidelity.cases import Case, read_cases
from llmsim.fidelity.profiles import MEASURED, read_profiles
from llmsim.fidelity.replay import cache_folder, default_store
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.sample import by_hash
from llmsim.fidelity.scenarios import card_of
from llmsim.fidelity.scores import Errors, errors_of
from llmsim.fidelity.steps import StepFile, Steps, read_steps, steps_of
from llmsim.fidelity.validation import Selection


@dataclass(frozen=True, slots=True)
class CalibrateOrder:
    """What is to be calibrated, and on what.

    Parameters
    ----------
    folder : Path
        Measurements, in the tidy format.
    engine : str
        As measurements call it, such as ``vllm``.
    gpu : str
        A card's name or alias.
    models : tuple of str
        Globs over model_key; empty takes all.
    sources : tuple of str
        Globs over sources; empty takes those of the headline.
    most : int
        Most cases of one group, drawn by hash of their ids.
    jobs : int
        Processes.
    profiles : Path or None
        Folder of kernel tables to price with, where they have the GPU.
    by : {"model", "layout"}
        What is left out in turn, and predicted by the rest; layouts where there is one model.
    """

    folder: Path
    engine: str
    gpu: str
    models: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    most: int = 20
    jobs: int = 2
    profiles: Path | None = None
    by: GroupedBy = "model"


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fit of a calibration.

    Parameters
    ----------
    title : str
        What it was fitted to.
    found : Calibration
    source : str
        What it has seen, and what it is worth elsewhere, for the card.
    """

    title: str
    found: Calibration
    source: str


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration with the fits that led to it.

    Parameters
    ----------
    engine, gpu : str
        Engine as measurements call it; name of the GPU card.
    fits : tuple of Fitted
        In order; the last one counts.
    runs : Runs or None
        The runs of the last fit; None where only steps were measured.
    by : {"model", "layout"}
        What was left out in turn.
    """

    engine: str
    gpu: str
    fits: tuple[Fitted, ...]
    runs: Runs | None = None
    by: GroupedBy = "model"

    @property
    def terms(self) -> Mapping[str, float]:
        """The factors, by name; absent ones are 1."""
        return self.fits[-1].found.terms

    def write(self, folder: str | Path) -> Path:
        """Write the card ``<engine>_<gpu>.yaml`` and return its path.

        Parameters
        ----------
        folder : str or Path
        """
        origin = Provenance(self.engine, self.gpu, "; ".join(each.source for each in self.fits))
        return write_calibration(self.fits[-1].found, origin, Path(folder), self.by)

    def by_other_gpus(self, folder: str | Path) -> tuple[Errors, Errors] | None:
        """Return the errors of these runs, plain and by the mean of the engine's other GPUs.

        Parameters
        ----------
        folder : str or Path
            Holds calibration cards.

        Returns
        -------
        tuple of Errors or None
            None without runs or without a card of the engine on another GPU.
        """
        terms = of_other_gpus(read_calibrations(Path(folder)), self.engine, self.gpu)
        if self.runs is None or not terms:
            return None
        plain, held = (_errors(self.runs.errors(each)) for each in ({}, terms))
        return plain, held


def group_named(word: str) -> GroupedBy:
    """Return what is to be left out in turn.

    Parameters
    ----------
    word : str

    Raises
    ------
    InputError
        If it is neither a model nor a layout.
    """
    for known in GROUPS:
        if word == known:
            return known
    message = f"'{word}' cannot be left out; {' and '.join(GROUPS)} can."
    raise InputError("calibrate", [Fault("", "leave-out", message, nearest(word, GROUPS))])


def calibrate(order: CalibrateOrder, told: Callable[[Fitted], None] | None = None) -> Calibrated:
    """Fit factors of operator families and of the host, for one engine on one GPU.

    Parameters
    ----------
    order : CalibrateOrder
    told : callable, optional
        Called with each fit as soon as it is made.

    Raises
    ------
    InputError
        If nothing was measured of them, or a factor leaves its limits.
    """
    gpu = card_of(order.gpu)
    name = f"{order.engine} on {gpu}"
    everything = read_cases(order.folder)
    chosen = choose(everything, order)
    if len({case.model_key for case in chosen}) == 1:  # no other could predict it
        order = replace(order, by="layout")
        chosen = choose(everything, order)
    prior, fits = _fit_steps(steps_of(read_steps(order.folder), order.engine, gpu), name, told)
    runs = None
    if chosen:
        files = RequestFiles(order.folder, cache_folder() / "traces", everything)
        tables = read_profiles(order.profiles) if order.profiles is not None else ()
        cost = {"kind": MEASURED if tables else "roofline"}
        runs = Runs(chosen, cost, files, default_store(), order.jobs, None, tables, order.by)
        found = fit(runs, prior, name)
        fits.append(Fitted("runs", found, _words(chosen, found)))
        if told is not None:
            told(fits[-1])
    if not fits:
        raise InputError("calibrate", [Fault("", name, "nothing of it was measured")])
    return Calibrated(order.engine, gpu, tuple(fits), runs, order.by)


def choose(cases: Sequence[Case], order: CalibrateOrder) -> list[Case]:
    """Return the cases to fit on: of every group the same number at most, drawn by hash.

    Parameters
    ----------
    cases : sequence of Case
    order : CalibrateOrder
    """
    wanted = Selection(
        sources=order.sources,
        engines=(order.engine,),
        models=order.models,
        headline=not order.sources,
    )
    gpu = card_of(order.gpu)
    by_group = defaultdict(list)
    for case in cases:
        if wanted.takes(case) and card_of(case.text("gpu")) == gpu and not case.text("disagg"):
            by_group[GROUPS[order.by](case)].append(case)
    return [case for side in by_group.values() for case in by_hash(side)[: order.most]]


def step_card(file: StepFile) -> str:
    """Return the engine card of the version that a file of steps names.

    Parameters
    ----------
    file : StepFile
    """
    fields = {"engine": file.engine, "engine_version": file.version, "gpu": file.gpu}
    return str(assume(Case("steps", "A", fields, {})).engine["version"])


def _fit_steps(
    files: Sequence[StepFile], name: str, told: Callable[[Fitted], None] | None
) -> tuple[Prior | None, list[Fitted]]:
    """Fit single steps on every other layout; the layouts between them test the fit."""
    prior = None
    fits: list[Fitted] = []
    for file in files:
        evidence = Steps(file, step_card(file))
        layouts = sorted({step.layout for step in file.steps})
        seen = evidence.of(layouts[::2])
        found = fit(seen, prior, f"{name}, steps")
        prior = after_steps(found, file.model)
        # Groups of steps are layouts of one model: a run of that model is not to be predicted.
        found = replace(found, without={file.model: {}}, count={file.model: len(seen.file.steps)})
        source = (
            f"{len(seen.file.steps)} steps of {file.model} on {file.engine} {file.version}, "
            f"{', '.join(layouts[::2])}"
        )
        held = evidence.of(layouts[1::2])
        if held.file.steps:
            plain, fitted = (_errors(held.errors(terms)) for terms in ({}, found.terms))
            source += (
                f": on {plain.count} of {', '.join(layouts[1::2])}, never fitted, median error "
                f"{plain.median:.1%} -> {fitted.median:.1%}"
            )
        title = f"steps of {file.model}, fitted on {', '.join(layouts[::2])}"
        fits.append(Fitted(title, found, source))
        if told is not None:
            told(fits[-1])
    return prior, fits


def _errors(logs: Mapping[str, float]) -> Errors:
    return errors_of([math.expm1(each) for each in logs.values()])


def _words(cases: Sequence[Case], found: Calibration) -> str:
    """Say what a fit to runs has seen."""
    sources = sorted({case.text("source") for case in cases})
    versions = sorted({case.text("engine_version") or "not recorded" for case in cases})
    counts = ", ".join(f"{model} {count}" for model, count in sorted(found.count.items()))
    return (
        f"mean TPOT of runs ({counts}), versions {', '.join(versions)}, sources "
        f"{', '.join(sources)}"
    )
