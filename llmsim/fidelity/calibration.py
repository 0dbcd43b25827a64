"""A few factors on operator families and host terms, fitted to measured cases, tested on others.

The price of every case is taken to be locally linear in the logarithms of the factors: each case
is simulated once as it is and once with every factor moved a little. A ridge pulls all factors to
1 (host terms to their defaults), a robust loss keeps single runs from deciding, and the fit is
refused where a factor leaves `LIMITS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import yaml

from llmsim.core.errors import Fault, InputError
from llmsim.fidelity.cases import Case
from llmsim.fidelity.replay import Replayed, Store, prepare, simulate_all
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.scenarios import Options
from llmsim.fidelity.scores import Errors, errors_of, headline_scores, score_case
from llmsim.specs import HostTerms

Floats = npt.NDArray[np.float64]

SCALES: Final = (
    "gemm_scale",
    "attention_prefill_scale",
    "attention_decode_scale",
    "moe_scale",
    "communication_scale",
)
"""Factors on operator families; each is 1 before the fit."""

HOST: Final[Mapping[str, tuple[float, float]]] = {
    "host_base_s": (HostTerms().base_s, 1e-3),
    "host_per_request_s": (HostTerms().per_request_s, 20e-6),
}
"""Host terms: value before the fit, and the distance that costs as much as 10% on a factor [s]."""

LIMITS: Final = (0.6, 1.7)
"""A factor outside means that the model is wrong, not badly calibrated: the fit is refused."""

PRIOR_SD: Final = 0.15
"""Standard deviation of the logarithm of a factor before the fit: no-profile prior of GEMM."""

ERROR_SD: Final = 0.08
"""Standard deviation of a case's logarithmic error that no factor explains, before robust weights:
repeats of one configuration across engine versions differ by 10% in mean TPOT at their p75."""

HUBER: Final = 1.345
"""Residual, in standard deviations, from which its weight falls (Huber 1981: 95% efficiency)."""

ROUNDS: Final = 2
"""Times the cases are simulated again at the factors found so far."""

STEP: Final = 0.1
"""Move of the logarithm of a factor when its effect is measured."""

METRICS: Final = ("tpot",)
"""What is fitted: TTFT depends on clients more than on kernels."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors of one engine on one GPU.

    Parameters
    ----------
    engine, gpu : str
    terms : mapping of str to float
        Keys of the ``cost`` component.
    fitted_on : tuple of str
        Groups (models, as a rule) that the fit saw.
    cases : int
        Cases in them.
    before, after : Errors
        Of TPOT on these cases.
    """

    engine: str
    gpu: str
    terms: Mapping[str, float]
    fitted_on: tuple[str, ...]
    cases: int
    before: Errors
    after: Errors


@dataclass(frozen=True, slots=True)
class Bench:
    """What simulates during a fit.

    Parameters
    ----------
    cost : mapping
        The cost component to calibrate.
    files : RequestFiles or None
    store : Store or None
    jobs : int
    progress : callable or None
    """

    cost: Mapping[str, Any]
    files: RequestFiles | None = None
    store: Store | None = None
    jobs: int = 1
    progress: Callable[[int, int], None] | None = None

    def replay(self, cases: Sequence[Case], terms: Mapping[str, float]) -> list[Replayed]:
        """Simulate cases with some terms of the cost component set."""
        options = Options({**self.cost, **terms}, {})
        ready, _ = prepare(cases, self.files, options)
        return simulate_all(ready, self.store, self.jobs, self.progress)


def log_errors(replayed: Sequence[Replayed]) -> dict[tuple[str, str], float]:
    """Return the logarithm of predicted over measured, by (case id, metric)."""
    scores = headline_scores(score for each in replayed for score in score_case(each))
    return {
        key: math.log(score.predicted / score.measured)
        for key, score in scores.items()
        if key[1] in METRICS and score.predicted > 0
    }


def fit(cases: Sequence[Case], bench: Bench, engine: str, gpu: str) -> Calibration:
    """Fit the factors of one engine on one GPU.

    Parameters
    ----------
    cases : sequence of Case
    bench : Bench
    engine, gpu : str

    Raises
    ------
    InputError
        If nothing can be simulated, or a factor leaves `LIMITS`.
    """
    names = (*SCALES, *HOST)
    at = np.zeros(len(names))
    before: dict[tuple[str, str], float] | None = None
    now: dict[tuple[str, str], float] = {}
    for _ in range(ROUNDS):
        now = log_errors(bench.replay(cases, terms_of(names, at)))
        before = now if before is None else before
        if not now:
            where = f"{engine} on {gpu}"
            raise InputError("calibrate", [Fault("", where, "no case could be simulated")])
        keys = sorted(now)
        effect = np.zeros((len(keys), len(names)))
        for column in range(len(names)):
            moved = at.copy()
            moved[column] += STEP
            found = log_errors(bench.replay(cases, terms_of(names, moved)))
            for row, key in enumerate(keys):
                effect[row, column] = (found.get(key, now[key]) - now[key]) / STEP
        at = solve(np.array([now[key] for key in keys]), effect, at)
    now = log_errors(bench.replay(cases, terms_of(names, at)))
    assert before is not None
    terms = terms_of(names, at)
    _refuse(terms, engine, gpu)
    groups = tuple(sorted({case.model_key for case in cases}))
    return Calibration(engine, gpu, terms, groups, len(now), _summary(before), _summary(now))


def terms_of(names: Sequence[str], at: Floats) -> dict[str, float]:
    """Return terms of the cost component at a point of the fit.

    Parameters
    ----------
    names : sequence of str (n,)
    at : ndarray of float (n,)
        0 is the value before the fit; 0.1 is a factor of exp(0.1), or 0.1 of a host term's scale
        times 10.
    """
    found = {}
    for name, place in zip(names, at.tolist(), strict=True):
        if name in HOST:
            start, tenth = HOST[name]
            found[name] = max(0.0, start + place * tenth / STEP)
        else:
            found[name] = math.exp(place)
    return {name: float(f"{value:.6g}") for name, value in found.items()}


def solve(errors: Floats, effect: Floats, at: Floats) -> Floats:
    """Return the point that a robust ridge regression finds.

    Parameters
    ----------
    errors : ndarray of float (cases,)
        Logarithmic errors at `at`.
    effect : ndarray of float (cases, terms)
        Their derivatives.
    at : ndarray of float (terms,)
        Where they were measured.

    Notes
    -----
    Minimises the Huber loss of ``errors + effect (x - at)`` over `ERROR_SD`, plus
    ``x² / PRIOR_SD²``, by reweighted least squares.
    """
    x: Floats = at.copy()
    ridge = np.eye(len(at)) / PRIOR_SD**2
    for _ in range(30):
        residual = (errors + effect @ (x - at)) / ERROR_SD
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-9))
        weighted = effect * (weight / ERROR_SD**2)[:, None]
        target = effect @ at - errors
        x = np.asarray(np.linalg.solve(weighted.T @ effect + ridge, weighted.T @ target))
    return x


def _summary(errors: Mapping[tuple[str, str], float]) -> Errors:
    return errors_of([math.expm1(value) for value in errors.values()])


def _refuse(terms: Mapping[str, float], engine: str, gpu: str) -> None:
    low, high = LIMITS
    faults = [
        Fault("", f"{engine} on {gpu}: {name}", f"{terms[name]:.2f} is outside [{low}, {high}]")
        for name in SCALES
        if not low <= terms[name] <= high
    ]
    if faults:
        raise InputError("calibrate", faults)


def leave_one_out(
    cases: Sequence[Case], bench: Bench, engine: str, gpu: str
) -> dict[str, tuple[Errors, Errors]]:
    """Fit without each model in turn; return its errors before and after.

    Parameters
    ----------
    cases : sequence of Case
    bench : Bench
    engine, gpu : str

    Returns
    -------
    mapping of model to (before, after)
        Empty with fewer than two models; a fit that is refused leaves its model out.
    """
    models = sorted({case.model_key for case in cases})
    found = {}
    for model in models if len(models) > 1 else ():
        seen = [case for case in cases if case.model_key != model]
        unseen = [case for case in cases if case.model_key == model]
        try:
            fitted = fit(seen, bench, engine, gpu)
        except InputError:
            continue
        plain = log_errors(bench.replay(unseen, {}))
        held = log_errors(bench.replay(unseen, fitted.terms))
        if plain and held:
            found[model] = (_summary(plain), _summary(held))
    return found


def write_calibration(found: Calibration, folder: Path) -> Path:
    """Write one small file, ``<engine>_<gpu>.yaml``, and return its path.

    Parameters
    ----------
    found : Calibration
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found.engine}_{found.gpu.lower()}.yaml"
    data = {
        "engine": found.engine,
        "gpu": found.gpu,
        "terms": dict(found.terms),
        "fitted_on": list(found.fitted_on),
        "cases": found.cases,
        "tpot_median_error_before": round(found.before.median, 4),
        "tpot_median_error_after": round(found.after.median, 4),
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def read_calibrations(folder: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the terms in a folder's files, by (engine, GPU).

    Raises
    ------
    InputError
        If a file lacks its engine, GPU or terms.
    """
    found = {}
    faults = []
    for path in sorted(folder.glob("*.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        missing = [key for key in ("engine", "gpu", "terms") if key not in data]
        faults += [Fault(str(path), key, "is missing") for key in missing]
        if not missing:
            found[data["engine"], data["gpu"]] = dict(data["terms"])
    if faults:
        raise InputError(str(folder), faults)
    return found
