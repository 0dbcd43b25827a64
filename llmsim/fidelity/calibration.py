"""A few factors on operator families and the host, fitted to measurements, tested on others.

Errors are taken to be locally linear in the logarithms of the factors: every piece of evidence is
priced once as it is and once with each factor moved a little. A ridge pulls all factors to a prior
(1, or what was fitted to single steps before), a robust loss keeps single runs from deciding, and
the fit is refused where a factor leaves `LIMITS`. The fits that leave one group out use the same
derivatives, but the errors of the other groups alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import yaml

from llmsim.core.errors import CardError, Fault, InputError
from llmsim.core.files import write_whole
from llmsim.fidelity.cases import Case, layout_of
from llmsim.fidelity.profiles import KnownProfile
from llmsim.fidelity.replay import Replayed, Store, prepare, simulate_all
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.scenarios import Options, card_of
from llmsim.fidelity.scores import Errors, errors_of, headline_scores, score_case
from llmsim.specs import CalibrationCard, read_calibration
from llmsim.specs.calibration import TERMS

Floats = npt.NDArray[np.float64]

LIMITS: Final = (0.6, 1.7)
"""A factor outside means that the model is wrong, not badly calibrated: the fit is refused."""

PRIOR_SD: Final[Mapping[str, float]] = {
    "gemm_scale": 0.15,
    "attention_prefill_scale": 0.15,
    "attention_decode_scale": 0.15,
    "moe_scale": 0.15,
    "communication_scale": 0.15,
    "host_scale": 0.25,
}
"""Standard deviation of the logarithm of a factor before the fit: that of GEMM without a profile;
hosts differ more, by processor and by clock."""

KIN_SD: Final = 0.1
"""The same of a model's own factors about those of all models, where single layouts are left out;
assumed, between what a shape and what a family of kernels differs by."""

STEPS_SD: Final = 0.05
"""The same where single steps have been fitted before: that of one shape of one kernel."""

ERROR_SD: Final = 0.08
"""Standard deviation of a logarithmic error that no factor explains, before robust weights:
repeats of one configuration across engine versions differ by 10% in mean TPOT at their p75."""

HUBER: Final = 1.345
"""Residual, in standard deviations, from which its weight falls (Huber 1981: 95% efficiency)."""

ROUNDS: Final = 2
"""Times the evidence is priced again at the factors found so far."""

STEP: Final = 0.1
"""Move of the logarithm of a factor when its effect is measured."""

METRICS: Final = ("tpot",)
"""What is fitted of a run: TTFT depends on clients more than on kernels."""

GroupedBy = Literal["model", "layout"]

GROUPS: Final[Mapping[GroupedBy, Callable[[Case], str]]] = {
    "model": lambda case: case.model_key,
    "layout": layout_of,
}
"""Name of a case's group."""

LogErrors = dict[str, float]
"""Logarithm of predicted over measured, by id."""


class Evidence(Protocol):
    """Measurements that the fit can price under any factors."""

    @property
    def groups(self) -> Mapping[str, str]:
        """Group of every id: no group is predicted by factors that have seen it."""
        ...

    @property
    def kin(self) -> Mapping[str, str]:
        """What ties groups together, of every id; empty where nothing does."""
        ...

    def errors(self, terms: Mapping[str, float], only: Collection[str] | None = None) -> LogErrors:
        """Return the logarithm of predicted over measured.

        Parameters
        ----------
        terms : mapping of str to float
            Factors by name; absent ones are 1.
        only : collection of str or None
            Ids that are asked for; None for all.
        """
        ...


@dataclass(frozen=True, slots=True)
class Runs:
    """Measured serving runs as evidence, each simulated whole.

    Parameters
    ----------
    cases : sequence of Case
    cost : mapping
        The cost component to calibrate.
    files : RequestFiles or None
    store : Store or None
    jobs : int
    progress : callable or None
    profiles : sequence of KnownProfile
        Kernel tables that a measured cost chooses from, case by case.
    by : {"model", "layout"}
        What a group is: all of a model, or what `layout_of` says.
    """

    cases: Sequence[Case]
    cost: Mapping[str, Any]
    files: RequestFiles | None = None
    store: Store | None = None
    jobs: int = 1
    progress: Callable[[int, int], None] | None = None
    profiles: Sequence[KnownProfile] = ()
    by: GroupedBy = "model"

    @property
    def groups(self) -> Mapping[str, str]:
        """Model or layout of every case."""
        name = GROUPS[self.by]
        return {case.case_id: name(case) for case in self.cases}

    @property
    def kin(self) -> Mapping[str, str]:
        """Model of every case, where groups are its layouts."""
        return {} if self.by == "model" else {case.case_id: case.model_key for case in self.cases}

    def errors(self, terms: Mapping[str, float], only: Collection[str] | None = None) -> LogErrors:
        """Return the logarithmic errors of TPOT; see `Evidence.errors`."""
        cases = [case for case in self.cases if only is None or case.case_id in only]
        ready, _ = prepare(
            cases, self.files, Options({**self.cost, **terms}, {}, {}, self.profiles)
        )
        return log_errors(simulate_all(ready, self.store, self.jobs, self.progress))


def log_errors(replayed: Sequence[Replayed]) -> LogErrors:
    """Return the logarithm of predicted over measured TPOT, by case id."""
    scores = headline_scores(score for each in replayed for score in score_case(each))
    return {
        case_id: math.log(score.predicted / score.measured)
        for (case_id, metric), score in scores.items()
        if metric in METRICS and score.predicted > 0
    }


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors, what they were fitted to, and what they are worth.

    Parameters
    ----------
    terms : mapping of str to float
        By `TERMS`; of all groups together.
    without : mapping of str to mapping
        By group: factors of the other groups alone, or of the prior where there is no other.
    count : mapping of str to int
        Pieces of evidence by group.
    before, after : Errors
        Of the groups that the fit has seen.
    unseen_before, unseen_after : Errors or None
        Of each group by the factors of the others; None with a single group.
    """

    terms: Mapping[str, float]
    without: Mapping[str, Mapping[str, float]]
    count: Mapping[str, int]
    before: Errors
    after: Errors
    unseen_before: Errors | None = None
    unseen_after: Errors | None = None


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before a fit.

    Parameters
    ----------
    terms : mapping of str to float
        Factors; absent ones are 1.
    sd : mapping of str to float
        Of their logarithms.
    model : str
        What they were fitted to; its own runs are not predicted by them. Empty for nothing.
    """

    terms: Mapping[str, float] = field(default_factory=dict)
    sd: Mapping[str, float] = field(default_factory=lambda: PRIOR_SD)
    model: str = ""

    def centre(self) -> Floats:
        """Return the logarithms of the factors, in the order of `TERMS`."""
        return np.array([math.log(self.terms.get(name, 1.0)) for name in TERMS])

    def spread(self) -> Floats:
        """Return the standard deviations, in the order of `TERMS`."""
        return np.array([self.sd[name] for name in TERMS])


def after_steps(found: Calibration, model: str) -> Prior:
    """Return the prior that a fit to single steps leaves to a fit to runs.

    Parameters
    ----------
    found : Calibration
        Factors that it left at 1 exactly had no effect there: their prior stays wide.
    model : str
        Whose steps they were.
    """
    sd = {name: PRIOR_SD[name] if found.terms.get(name, 1.0) == 1.0 else STEPS_SD for name in TERMS}
    return Prior(found.terms, sd, model)


def fit(evidence: Evidence, prior: Prior | None = None, name: str = "calibrate") -> Calibration:
    """Fit the factors, and again without each group in turn.

    Parameters
    ----------
    evidence : Evidence
    prior : Prior or None
        None for all factors at 1.
    name : str
        What is calibrated, for messages.

    Raises
    ------
    InputError
        If nothing can be priced, or a factor leaves `LIMITS`.
    """
    prior = prior or Prior()
    at = prior.centre()
    before = evidence.errors({})
    if not before:
        raise InputError("calibrate", [Fault("", name, "nothing of it could be priced")])
    without: dict[str, dict[str, float]] = {}
    for number in range(ROUNDS):
        keys, now, effect = _effects(evidence, at)
        if number == 0:
            without = _folds(evidence, prior, keys, now, effect)
        at = solve(now, effect, at, prior)
    terms = terms_of(at)
    _refuse(terms, name)
    after = evidence.errors(terms)
    unseen: list[tuple[float, float]] = []
    for group, factors in without.items():
        if not factors:
            continue
        only = {key for key in before if evidence.groups[key] == group}
        unseen += [(before[key], error) for key, error in evidence.errors(factors, only).items()]
    plain, held = zip(*unseen, strict=True) if unseen else ((), ())
    count = Counter(evidence.groups[key] for key in before)
    return Calibration(
        terms,
        without,
        count,
        _summary(before.values()),
        _summary(after.values()),
        _summary(plain) if plain else None,
        _summary(held) if held else None,
    )


def _effects(evidence: Evidence, at: Floats) -> tuple[list[str], Floats, Floats]:
    """Return ids, their errors at a point and the derivatives of those by each factor."""
    now = evidence.errors(terms_of(at))
    keys = sorted(now)
    effect = np.zeros((len(keys), len(TERMS)))
    for column in range(len(TERMS)):
        moved = at.copy()
        moved[column] += STEP
        found = evidence.errors(terms_of(moved))
        effect[:, column] = [(found.get(key, now[key]) - now[key]) / STEP for key in keys]
    return keys, np.array([now[key] for key in keys]), effect


def _folds(
    evidence: Evidence, prior: Prior, keys: Sequence[str], errors: Floats, effect: Floats
) -> dict[str, dict[str, float]]:
    """Return the factors of a fit without each group: the prior's own where no other is left."""
    group = np.array([evidence.groups[key] for key in keys])
    family = np.array([evidence.kin.get(key, "") for key in keys])
    found: dict[str, dict[str, float]] = {}
    # The model whose steps were fitted has runs elsewhere, if not here.
    for name in sorted({*group.tolist(), prior.model} - {""}):
        others = group != name
        believed = Prior() if name == prior.model else prior
        found[name] = dict(believed.terms)
        if others.any():
            at = solve(errors[others], effect[others], prior.centre(), believed)
            kin = others & np.isin(family, family[group == name]) & (family != "")
            if kin.any():  # what the same model's other layouts say, about what all say
                known = Prior(terms_of(at), dict.fromkeys(TERMS, KIN_SD))
                at = solve(errors[kin], effect[kin], prior.centre(), known)
            terms = terms_of(at)
            if not _outside(terms):
                found[name] = terms
    return found


def terms_of(at: Floats) -> dict[str, float]:
    """Return factors at a point of the fit, those that are not 1.

    Parameters
    ----------
    at : ndarray of float (terms,)
        Logarithms of the factors, in the order of `TERMS`.
    """
    found = {name: float(f"{math.exp(x):.4g}") for name, x in zip(TERMS, at.tolist(), strict=True)}
    return {name: value for name, value in found.items() if value != 1.0}


def solve(errors: Floats, effect: Floats, at: Floats, prior: Prior) -> Floats:
    """Return the point that a robust ridge regression finds.

    Parameters
    ----------
    errors : ndarray of float (n,)
        Logarithmic errors at `at`.
    effect : ndarray of float (n, terms)
        Their derivatives.
    at : ndarray of float (terms,)
        Where they were measured.
    prior : Prior

    Notes
    -----
    Minimises the Huber loss of ``errors + effect (x - at)`` over `ERROR_SD`, plus
    ``((x - centre) / sd)²``, by reweighted least squares.
    """
    x: Floats = at.copy()
    ridge = np.diag(1.0 / prior.spread() ** 2)
    for _ in range(30):
        residual = (errors + effect @ (x - at)) / ERROR_SD
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9))
        weighted = effect * (weight / ERROR_SD**2)[:, None]
        target = effect @ at - errors
        pulled = weighted.T @ target + ridge @ prior.centre()
        x = np.asarray(np.linalg.solve(weighted.T @ effect + ridge, pulled))
    return x


def _summary(errors: Collection[float]) -> Errors:
    return errors_of([math.expm1(value) for value in errors])


def _outside(terms: Mapping[str, float]) -> list[str]:
    low, high = LIMITS
    return [name for name, value in terms.items() if not low <= value <= high]


def _refuse(terms: Mapping[str, float], where: str) -> None:
    low, high = LIMITS
    faults = [
        Fault("", f"{where}: {name}", f"{terms[name]:.2f} is outside [{low}, {high}]")
        for name in _outside(terms)
    ]
    if faults:
        raise InputError("calibrate", faults)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a calibration comes from.

    Parameters
    ----------
    engine, gpu : str
        Engine as measurements call it; name of a GPU card.
    source : str
        Where the measurements are published.
    """

    engine: str
    gpu: str
    source: str


def write_calibration(
    found: Calibration, origin: Provenance, folder: Path, by: GroupedBy = "model"
) -> Path:
    """Write one small card, ``<engine>_<gpu>.yaml``, and return its path.

    Parameters
    ----------
    found : Calibration
    origin : Provenance
    folder : Path
    by : {"model", "layout"}
        What was left out in turn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{origin.engine}_{origin.gpu}.yaml"
    errors = {"in_sample": _told(found.before, found.after)}
    if found.unseen_before is not None and found.unseen_after is not None:
        errors["never_seen"] = _told(found.unseen_before, found.unseen_after)
    data = {
        "name": path.stem,
        "engine": origin.engine,
        "gpu": origin.gpu,
        "source": origin.source,
        "fitted_on": dict(found.count),
        "terms": {name: found.terms.get(name, 1.0) for name in TERMS},
        "errors": errors,
        "without": [{by: group, "terms": dict(terms)} for group, terms in found.without.items()],
    }
    head = (
        "# Written by `llmsim calibrate`: factors on prices. `without`: those of a fit that has\n"
        "# not seen a model, or a layout of one. `errors`: median absolute error of TPOT, in\n"
        "# sample and by `without`.\n"
    )
    text = yaml.safe_dump(data, sort_keys=False, width=100)
    write_whole(path, head + text)
    return path


def _told(before: Errors, after: Errors) -> dict[str, float]:
    return {
        "cases": before.count,
        "before": round(before.median, 4),
        "after": round(after.median, 4),
    }


def of_other_gpus(
    cards: Mapping[tuple[str, str], CalibrationCard], engine: str, gpu: str
) -> dict[str, float]:
    """Return the geometric mean of an engine's factors on other GPUs; empty if it has none.

    Parameters
    ----------
    cards : mapping of (engine, GPU card) to CalibrationCard
    engine, gpu : str
        The GPU to leave out.
    """
    others = [card.terms for key, card in cards.items() if key[0] == engine and key[1] != gpu]
    if not others:
        return {}
    logs = [[math.log(terms.get(name, 1.0)) for name in TERMS] for terms in others]
    return terms_of(np.mean(logs, axis=0))


def read_calibrations(folder: Path) -> dict[tuple[str, str], CalibrationCard]:
    """Return a folder's calibration cards, by (engine, GPU card).

    Raises
    ------
    InputError
        With every fault of every card.
    """
    found: dict[tuple[str, str], CalibrationCard] = {}
    faults: list[Fault] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            card = read_calibration(path)
        except CardError as error:
            faults += error.faults
            continue
        found[card.engine, card_of(card.gpu)] = card
    if faults:
        raise InputError(str(folder), faults)
    return found


def worth_using(
    cards: Mapping[tuple[str, str], CalibrationCard],
) -> dict[tuple[str, str], CalibrationCard]:
    """Return the cards that predict what their fits have not seen no worse than none at all.

    Parameters
    ----------
    cards : mapping of (engine, GPU card) to CalibrationCard
    """
    return {key: card for key, card in cards.items() if card.helps}
