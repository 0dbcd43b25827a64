"""Fits of a whole profile, with the error on rows that were not fitted; physical plausibility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsim.core.errors import Fault
from llmsim.costmodel.measured.families import Shapes
from llmsim.costmodel.measured.means import Floats
from llmsim.costmodel.measured.profile import Profile, load_profile
from llmsim.costmodel.measured.tables import KernelTable
from llmsim.specs.profile_meta import write_meta

HELD_OUT = 0.1
"""Share of shapes, or of rows where there are few shapes, that a fit does not see."""
_FEW_SHAPES = 10
_MOST_ROWS = 1500  # held-out rows that are priced: the error of more is the same
FASTER_THAN_CEILING = 0.9
"""A time below this share of what the best measured rates allow is not believed."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of prices against measured times.

    Parameters
    ----------
    rows : int
    median, p90, p99 : float
        Of the absolute error.
    bias : float
        Median of the signed error, positive where prices are too high.
    """

    rows: int
    median: float
    p90: float
    p99: float
    bias: float


def errors_of(priced_s: Floats, measured_s: Floats) -> Errors:
    """Compare prices with times.

    Parameters
    ----------
    priced_s, measured_s : ndarray (rows,) [s]
    """
    signed = priced_s / measured_s - 1.0
    size = np.abs(signed)
    median, p90, p99 = (float(np.quantile(size, share)) for share in (0.5, 0.9, 0.99))
    return Errors(len(size), median, p90, p99, float(np.median(signed)))


def held_out(table: KernelTable, seed: int = 0) -> NDArray[np.bool_]:
    """Return which rows of a table a fit does not see: whole shapes where there are enough.

    Parameters
    ----------
    table : KernelTable
    seed : int
    """
    random = np.random.default_rng(seed)
    names = table.family.shape
    shape = np.zeros(len(table), dtype=np.int64)
    if names:
        stacked = np.column_stack([table.columns[name] for name in names])
        shape = np.unique(stacked, axis=0, return_inverse=True)[1].ravel()
    kinds = int(shape.max()) + 1
    if kinds >= _FEW_SHAPES:
        chosen = random.choice(kinds, max(1, round(HELD_OUT * kinds)), replace=False)
        return np.asarray(np.isin(shape, chosen))
    return np.asarray(random.random(len(table)) < HELD_OUT)


def part_of(table: KernelTable, keep: NDArray[np.bool_]) -> KernelTable:
    """Return a table of some of the rows."""
    columns = {name: column[keep] for name, column in table.columns.items()}
    times = table.measured_s[keep]
    return KernelTable(
        table.family,
        table.types,
        table.kernel_id,
        table.libs,
        columns,
        times,
        table.device,
        table.laid,
    )


def spread_rows(table: KernelTable, count: int) -> NDArray[np.bool_]:
    """Choose rows far apart in shape, whatever their times: what a few rows should be.

    Parameters
    ----------
    table : KernelTable
    count : int
        At most the rows there are.

    Returns
    -------
    ndarray of bool (rows,)

    Notes
    -----
    Farthest point first, from the middle, each coordinate divided by its range. As many rows
    on a grid price unseen shapes worse: on public bf16 tables of H100, H200 and B200 the median
    error of decode attention is 5-6% from a grid of 86 rows and 4-5% from these.
    """
    scaled = table.coordinates - table.coordinates.min(axis=0)
    scaled = scaled / np.maximum(scaled.max(axis=0), 1e-9)
    chosen = [int(np.argmin(((scaled - scaled.mean(axis=0)) ** 2).sum(axis=1)))]
    distance = ((scaled - scaled[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(scaled)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((scaled - scaled[chosen[-1]]) ** 2).sum(axis=1))
    found = np.zeros(len(scaled), dtype=bool)
    found[chosen] = True
    return found


def holdout_errors(table: KernelTable, seed: int = 0) -> Errors | None:
    """Return the error of a table's prices on rows that it did not see; None for too few rows."""
    unseen = held_out(table, seed)
    if unseen.sum() < 1 or (~unseen).sum() < 8:
        return None
    rows = np.flatnonzero(unseen)
    if len(rows) > _MOST_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_ROWS, replace=False))
    asked: Shapes = {name: column[rows] for name, column in table.columns.items()}
    priced = part_of(table, ~unseen).price(asked)
    return errors_of(priced.seconds, table.asked_s[rows])


def describe_fits(profile: Profile, seed: int = 0) -> dict[str, Any]:
    """Return parameters and held-out errors of every table of a profile, as `meta.json` has them.

    Parameters
    ----------
    profile : Profile
    seed : int
        Of what is held out.

    Notes
    -----
    The parameters are fitted to all rows that may be; the errors are those of a second fit that
    did not see the held-out ones. Rows that the profile marks as holdout are never fitted, and
    are the ones that count where there are any.
    """
    measured = profile.holdout_tables()
    found: dict[str, Any] = {}
    for op in profile.operators():
        for table in profile.tables(op):
            fit = table.fit
            apart = measured.get(table.key)
            if apart is not None and len(apart):
                errors: Errors | None = errors_of(table.price(apart.columns).seconds, apart.asked_s)
            else:
                errors = holdout_errors(table, seed)
            found[table.key] = {
                "op": op,
                "rows": len(table),
                "laid": table.understood,
                "terms": asdict(fit.terms),
                "fit": {"median": fit.median, "p90": fit.p90},
                "holdout": asdict(errors) if errors else None,
            }
    return found


def fit_profile(folder: Path, seed: int = 0) -> Mapping[str, Any]:
    """Fit a profile and write parameters and errors into its `meta.json`.

    Parameters
    ----------
    folder : Path
    seed : int

    Returns
    -------
    mapping
        The entry ``fit`` of `meta.json`.

    Raises
    ------
    CardError
        If the profile cannot be read.
    """
    profile = load_profile(folder, failed_too=True)
    assert profile.meta is not None
    unfitted = Profile(profile.name, profile.rows, profile.device, replace(profile.meta, fit={}))
    fits = describe_fits(unfitted, seed)
    write_meta(folder, replace(profile.meta, fit=fits))
    return fits


def implausible(profile: Profile, limit: int = 20) -> list[Fault]:
    """Return rows that are faster than the device can be.

    Parameters
    ----------
    profile : Profile
        With measured ceilings in its meta, or else with datasheet figures.
    limit : int
        Most faults.

    Notes
    -----
    Operators whose operands may stay in the cache are held to their FLOPs alone.
    """
    faults: list[Fault] = []
    ceilings = profile.meta.ceilings.get("flops_per_s", {}) if profile.meta else {}
    for op in ("gemm", "attention_prefill", "moe"):
        for table in profile.tables(op):
            work = table.family.work(table.columns, table.types, profile.device)
            peak = profile.device.peak(table.types.a, table.types.w)
            best = float(np.max(np.atleast_1d(ceilings.get(table.types.a, peak))))
            floor = FASTER_THAN_CEILING * work.compute_s * peak / best
            for index in np.flatnonzero(table.measured_s < floor)[: limit - len(faults)]:
                shape = ", ".join(f"{n}={v[index]:g}" for n, v in table.columns.items())
                share = floor[index] / FASTER_THAN_CEILING / table.measured_s[index]
                text = f"{op} at {shape} runs {share:.1f} times as fast as the best rate allows."
                faults.append(Fault(table.key, "t_median_us", text))
    return faults


@dataclass(frozen=True, slots=True)
class Change:
    """One kernel in two profiles, at the shapes that both have.

    Parameters
    ----------
    operator : str
    formats : str
    shapes : int
        In both.
    ratio : float
        Median of new / old.
    change_median, change_p90 : float
        Of the absolute relative change.
    """

    operator: str
    formats: str
    shapes: int
    ratio: float
    change_median: float
    change_p90: float


def compare_profiles(old: Profile, new: Profile) -> list[Change]:
    """Compare two profiles at the shapes that both measured.

    Parameters
    ----------
    old, new : Profile

    Returns
    -------
    list of Change
        One per kernel of the new profile that the old one has at some of its shapes.
    """
    found = []
    for op in new.operators():
        for table in new.tables(op):
            other = next((each for each in old.tables(op) if each.types == table.types), None)
            if other is None:
                continue
            mine, theirs = table.exact, other.exact
            both = [key for key in mine if key in theirs]
            if not both:
                continue
            ratio = np.array([mine[key] / theirs[key] for key in both])
            change = np.abs(ratio - 1.0)
            types = "/".join(dict.fromkeys((table.types.a, table.types.w, table.types.kv)))
            figures = (np.median(change), np.quantile(change, 0.9))
            middle = float(np.median(ratio))
            found.append(Change(op, types, len(both), middle, *map(float, figures)))
    return found
