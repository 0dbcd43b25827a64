"""The mean functions: a smooth roofline for every operator family, and their robust fit.

One formula serves all families; which of its terms are free depends on the family::

    t = t0 + w units + [ (C (1 + c idle) / e_c)^p + (M / e_m)^p + (l serial)^p ]^(1/p) + g gathered

C and M are the seconds that the operator would take at the datasheet's peak and bandwidth, serial
the steps that wait for each other however small the rest. A mean function carries the scaling with
shape; what it gets wrong is left to the residual table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SERIAL_STEP = 1024.0
"""Elements of the inner dimension that `MeanTerms.loop_s` is the time of, where a kernel's cut is
not known."""

SOFT_LOG = 0.1
"""Residuals beyond this many log units count linearly: rows of another kernel, or of a bad run."""

MOST_FITTED = 4000
"""Rows that a fit looks at; more of them change no parameter."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an operator must do at each of several shapes.

    Parameters
    ----------
    compute_s, memory_s : ndarray (rows,) [s]
        At the datasheet's peak and bandwidth.
    units : ndarray (rows,)
        Items with a cost of their own: KV heads per SM, experts that are hit.
    idle : ndarray (rows,)
        Grows as parallelism runs out: SMs per query tile, 1 / rows per expert.
    gathered_bytes : ndarray (rows,) [bytes]
        Moved by permutations beside the main kernel.
    cache_fill : ndarray (rows,)
        What is read and could have stayed in the last-level cache, over the cache's size.
    serial : ndarray (rows,)
        Length of the loop that one tile runs through, in units of `SERIAL_STEP` elements; of a
        kernel whose cut is known (`cuts`), in steps.
    """

    compute_s: Floats
    memory_s: Floats
    units: Floats
    idle: Floats
    gathered_bytes: Floats
    cache_fill: Floats
    serial: Floats

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Work:
        """Return the work at some of the shapes."""
        return Work(*(getattr(self, item.name)[index] for item in fields(self)))


@dataclass(frozen=True, slots=True)
class MeanTerms:
    """Parameters of the mean function of one family.

    Parameters
    ----------
    t0_s : float [s]
        Floor of the launches.
    compute_frac, memory_frac : float
        Reachable share of peak and of bandwidth.
    norm : float
        How sharply the limits meet, at least 1.
    unit_s : float [s]
        Per unit.
    idle : float
        Weight of idle parallelism.
    gather_s_per_byte : float [s/byte]
    cache_ratio : float
        Bandwidth of the cache over `memory_frac` of that of memory, for rows whose operands were
        not evicted between calls; 1 where they were.
    loop_s : float [s]
        Per serial step.
    """

    t0_s: float
    compute_frac: float
    memory_frac: float
    norm: float
    unit_s: float = 0.0
    idle: float = 0.0
    gather_s_per_byte: float = 0.0
    cache_ratio: float = 1.0
    loop_s: float = 0.0


UNIVERSAL = MeanTerms(3.5e-6, 0.75, 0.80, 2.4)
"""One coefficient set for all GPUs, fitted to bf16 GEMM; see `profiles/kernels/prior.yaml`."""

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "t0_s": (1e-7, 1e-3),
    "compute_frac": (0.02, 1.0),
    "memory_frac": (0.02, 1.0),
    "norm": (1.0, 8.0),
    "unit_s": (1e-10, 1e-4),
    "idle": (1e-3, 1e3),
    "gather_s_per_byte": (1e-15, 1e-11),
    "cache_ratio": (1.0, 8.0),
    "loop_s": (1e-9, 1e-5),
}
_PRIOR_LOG_SD: Mapping[str, float] = {
    "t0_s": 1.5,
    "compute_frac": 0.7,
    "memory_frac": 0.5,
    "norm": 0.7,
    "unit_s": 2.5,
    "idle": 2.0,
    "gather_s_per_byte": 2.5,
    "cache_ratio": 1.0,
    "loop_s": 1.5,
}
"""How far a parameter may lie from its prior before that costs as much as one row off by its
noise: wide enough to be overruled by a dozen rows, there for those that no row can see."""


def mean_s(work: Work, terms: MeanTerms) -> Floats:
    """Return the mean time of each shape [s].

    Parameters
    ----------
    work : Work
    terms : MeanTerms
    """
    compute = work.compute_s * (1.0 + terms.idle * work.idle) / terms.compute_frac
    memory = work.memory_s / terms.memory_frac
    if terms.cache_ratio > 1.0:
        square = work.cache_fill * work.cache_fill
        missed = square / (1.0 + square)  # an eviction cliff, rounded
        memory = memory * (missed + (1.0 - missed) / terms.cache_ratio)
    joined = _joined(compute, memory, terms.norm)
    if terms.loop_s > 0.0:
        joined = _joined(joined, terms.loop_s * work.serial, terms.norm)
    fixed = terms.t0_s + terms.unit_s * work.units + terms.gather_s_per_byte * work.gathered_bytes
    return np.asarray(fixed + joined)


def _joined(one: Floats, other: Floats, norm: float) -> Floats:
    """Return ``(one^p + other^p)^(1/p)`` without overflow."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    ratio = np.divide(low, high, out=np.zeros_like(low), where=high > 0)
    return np.asarray(high * (1.0 + ratio**norm) ** (1.0 / norm))


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted mean function.

    Parameters
    ----------
    terms : MeanTerms
    rows : int [rows]
        Fitted.
    median, p90 : float
        Absolute relative error on the fitted rows.
    """

    terms: MeanTerms
    rows: int
    median: float
    p90: float


def fit_mean(
    work: Work,
    measured_s: Floats,
    free: Sequence[str],
    start: MeanTerms,
    *,
    seed: int = 0,
    max_rows: int = MOST_FITTED,
    noise_log: float = 0.05,
    weights: Floats | None = None,
) -> Fit:
    """Fit a mean function to measured rows, robustly, in log time.

    Parameters
    ----------
    work : Work
        At the shapes of the rows.
    measured_s : ndarray (rows,) [s]
    free : sequence of str
        Parameters of `MeanTerms` to fit; the others keep their start.
    start : MeanTerms
        Also the centre of the weak prior.
    seed : int
        Of the subsample of a table larger than `max_rows`.
    max_rows : int [rows]
    noise_log : float
        Log scatter expected of one row.
    weights : ndarray (rows,), optional
        Of the rows' squared errors; all alike if left out. Their mean does not matter.

    Returns
    -------
    Fit
    """
    from scipy.optimize import least_squares

    count = len(measured_s)
    if count > max_rows:
        chosen = np.sort(np.random.default_rng(seed).choice(count, max_rows, replace=False))
        work, measured_s = work.take(chosen), measured_s[chosen]
        weights = None if weights is None else weights[chosen]
    share = np.ones(len(measured_s)) if weights is None else np.sqrt(weights / weights.mean())
    target = np.log(measured_s)
    low = np.log([_BOUNDS[name][0] for name in free])
    high = np.log([_BOUNDS[name][1] for name in free])
    prior = np.clip(np.log([getattr(start, name) for name in free]), low + 1e-6, high - 1e-6)
    width = np.array([_PRIOR_LOG_SD[name] for name in free])

    def terms_at(point: Floats) -> MeanTerms:
        values = {item.name: getattr(start, item.name) for item in fields(MeanTerms)}
        values.update(zip(free, np.exp(point).tolist(), strict=True))
        return MeanTerms(**values)

    def faults(point: Floats) -> Floats:
        rows = share * (np.log(mean_s(work, terms_at(point))) - target)
        return np.concatenate([rows, SOFT_LOG * (point - prior) / width * noise_log / SOFT_LOG])

    best = None
    for shift in (0.0, -0.7, 0.7):
        first = prior.copy()
        if "t0_s" in free:
            first[list(free).index("t0_s")] += shift
        if "norm" in free:
            first[list(free).index("norm")] -= shift / 2
        first = np.clip(first, low + 1e-6, high - 1e-6)
        found = least_squares(
            faults, first, bounds=(low, high), loss="soft_l1", f_scale=SOFT_LOG, max_nfev=200
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    terms = terms_at(best.x)
    error = np.abs(mean_s(work, terms) / measured_s - 1.0)
    return Fit(terms, count, float(np.median(error)), float(np.quantile(error, 0.9)))
