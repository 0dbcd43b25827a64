"""Measured rows as tables that answer what an operator costs: tier by tier, with its certainty.

A table holds the rows of one operator, one set of number formats, one kernel and one set of
library versions. A query is answered, in this order, by the row itself (`MEASURED`), by the curve
through rows of the same shape or by the residual interpolated over all shapes (`INTERPOLATED`), by
the same of other libraries, of another kernel or of another number format (`TRANSFERRED`), and
by the roofline (`ROOFLINE`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.measured.cuts import family_of
from llmsim.costmodel.measured.families import (
    FAMILIES,
    Device,
    Family,
    Shapes,
    Types,
    coordinate,
)
from llmsim.costmodel.measured.means import Fit, Floats, Work, fit_mean, mean_s
from llmsim.costmodel.measured.residual import Scattered, grid_step, not_falling
from llmsim.specs.profile_rows import OPS

MEASURED, INTERPOLATED, TRANSFERRED, ROOFLINE = (
    "measured",
    "interpolated",
    "transferred",
    "roofline",
)
SOURCES = (MEASURED, INTERPOLATED, TRANSFERRED, ROOFLINE)

EXACT_SIGMA, SAME_SHAPE_SIGMA, CROSS_SHAPE_SIGMA, EXPERTS_SIGMA = 0.03, 0.05, 0.07, 0.12
OCTAVE_SIGMA, KERNEL_SIGMA, DTYPE_SIGMA = 0.05, 0.15, 0.30
NO_PROFILE_SIGMA: Mapping[str, float] = {"gemm": 0.15}
OTHER_SIGMA = 0.25
"""Log standard deviations where a profile's own holdout says nothing better: medians seen on the
tables of aiconfigurator (095f58a51) for rows, same shapes and other shapes; assumed beyond."""

LEAST_CURVE_ROWS = 2
LEAST_SURFACE_ROWS = 8
_APART = ("window", "skew", "gpus", "nodes", "variant")  # rows that differ here are never mixed


@dataclass(frozen=True, slots=True)
class Latency:
    """The answer to one query.

    Parameters
    ----------
    seconds : float [s]
    sigma : float
        Log standard deviation.
    source : str
        measured, interpolated, transferred or roofline.
    """

    seconds: float
    sigma: float
    source: str


@dataclass(frozen=True, slots=True)
class Latencies:
    """The answers to many queries.

    Parameters
    ----------
    seconds, sigma : ndarray (queries,) [s], [log]
    source : ndarray (queries,)
        Index into `SOURCES`.
    outside : ndarray (queries,) [octaves]
        How far beyond the measured shapes.
    """

    seconds: Floats
    sigma: Floats
    source: NDArray[np.int64]
    outside: Floats


@dataclass(frozen=True, slots=True)
class Context:
    """Which rows a query may use.

    Parameters
    ----------
    types : Types
    kernel_id, libs : str
        Empty for whatever the profile holds: at each shape the kernel measured nearest to it.
    strict : bool
        Refuse rows of other libraries, kernels and formats, and the roofline.
    kernels : tuple of (str, str)
        Operators that have a kernel of their own in place of `kernel_id`.
    """

    types: Types = field(default_factory=Types)
    kernel_id: str = ""
    libs: str = ""
    strict: bool = False
    kernels: tuple[tuple[str, str], ...] = ()

    def kernel_of(self, op: str) -> str:
        """Return the kernel that an operator is asked of; empty for any."""
        return dict(self.kernels).get(op, self.kernel_id)


class KernelTable:
    """The rows of one operator, formats, kernel and libraries; fitted when first asked.

    Parameters
    ----------
    family : Family
    types : Types
    kernel_id, libs : str
    columns : mapping of str to ndarray (rows,)
        Shapes.
    measured_s : ndarray (rows,) [s]
    device : Device
    laid : callable or None
        Work of the rows where it is not that of a query of their shape: experts that were dealt
        tokens in turn, where a model draws them. None for the family's.
    """

    def __init__(
        self,
        family: Family,
        types: Types,
        kernel_id: str,
        libs: str,
        columns: Shapes,
        measured_s: Floats,
        device: Device,
        laid: Callable[[Shapes, Types, Device], Work] | None = None,
    ) -> None:
        self.family = family_of(family, kernel_id)
        self.types = types
        self.kernel_id = kernel_id
        self.libs = libs
        self.columns = columns
        self.measured_s = measured_s
        self.device = device
        self.laid = laid
        self.known_fit: Fit | None = None
        self.near_sigma = EXACT_SIGMA
        self.far_sigma = EXPERTS_SIGMA if family.op == "moe" else CROSS_SHAPE_SIGMA
        self._surfaces: dict[tuple[float, ...], Scattered | None] = {}
        self._apart = tuple(name for name in _APART if name in columns)

    def __len__(self) -> int:
        return len(self.measured_s)

    @property
    def key(self) -> str:
        """What tells this table from the others of a profile."""
        types = "/".join((self.types.a, self.types.w, self.types.kv))
        return f"{self.family.op} {types} {self.kernel_id} ({self.libs})"

    @property
    def understood(self) -> str:
        """How the rows are understood, where not as the family's: names of work functions."""
        cut = self.family.work is not FAMILIES[self.family.op].work
        known = (self.laid, self.family.work if cut else None)
        return " ".join(work.__name__ for work in known if work is not None)

    @cached_property
    def fit(self) -> Fit:
        """The mean function of these rows, as the profile states it or fitted here."""
        if self.known_fit is not None:
            return self.known_fit
        family = self.family
        return fit_mean(self.row_work, self.measured_s, family.free, family.start)

    @cached_property
    def row_work(self) -> Work:
        """The work that the rows were measured with."""
        return (self.laid or self.family.work)(self.columns, self.types, self.device)

    @cached_property
    def coordinates(self) -> Floats:
        """Residual coordinates of the rows (rows, axes) [octaves]."""
        return np.column_stack([coordinate(name, self.columns) for name in self.family.axes])

    @cached_property
    def residuals(self) -> Floats:
        """Return log(measured / mean) per row, made to rise where the family must."""
        return np.asarray(np.log(self._rising_s / self._mean_s))

    @cached_property
    def _mean_s(self) -> Floats:
        """The mean function at each row [s]."""
        return mean_s(self.row_work, self.fit.terms)

    @cached_property
    def _rising_s(self) -> Floats:
        """The times with falls along the family's rising axis pooled away."""
        rising = self.family.rising
        if not rising:
            return self.measured_s
        axis = list(self.family.axes).index(rising)
        others = np.delete(self.coordinates, axis, axis=1)
        extra = [self.columns[name] for name in self._apart]
        keys = np.column_stack([np.round(others, 6), *extra])
        _, group = np.unique(keys, axis=0, return_inverse=True)
        order = np.lexsort((self.coordinates[:, axis], group.ravel()))
        smooth = np.log(self.measured_s)
        for part in np.split(order, np.cumsum(np.bincount(group.ravel()))[:-1]):
            if len(part) > 1 and np.any(np.diff(smooth[part]) < 0):
                smooth[part] = not_falling(smooth[part])
        return np.asarray(np.exp(smooth))

    @cached_property
    def _rows_by_shape(self) -> dict[tuple[float, ...], NDArray[np.intp]]:
        return _grouped(self.columns, (*self.family.shape, *self._apart))

    @cached_property
    def _rows_apart(self) -> dict[tuple[float, ...], NDArray[np.intp]]:
        return _grouped(self.columns, self._apart)

    def _surface(self, kind: str, key: tuple[float, ...]) -> Scattered | None:
        """Return the residuals of one shape, or of all shapes that may be mixed; None for few."""
        name = (float(kind == "shape"), *key)
        if name not in self._surfaces:
            one_shape = kind == "shape"
            groups = self._rows_by_shape if one_shape else self._rows_apart
            rows = groups.get(key)
            family = self.family
            axes = family.along if one_shape else family.axes
            least = LEAST_CURVE_ROWS if len(axes) == 1 else LEAST_SURFACE_ROWS
            least = least if one_shape else 1
            if rows is None or len(rows) < least:
                self._surfaces[name] = None
            else:
                points = np.column_stack(
                    [self.coordinates[rows, list(family.axes).index(axis)] for axis in axes]
                )
                tiny = 1e-3 if one_shape and len(axes) == 1 else 0.5
                self._surfaces[name] = Scattered.of(points, self.residuals[rows], tiny)
        return self._surfaces[name]

    @cached_property
    def exact(self) -> dict[tuple[float, ...], float]:
        """Measured time by raw shape, as a query's work would take it."""
        names = exact_names(self.family, self._apart)
        stacked = np.column_stack([self.columns[name] for name in names])
        return dict(zip(map(tuple, stacked.tolist()), self.asked_s.tolist(), strict=True))

    @cached_property
    def asked_s(self) -> Floats:
        """Measured time of each row, as the work of a query of its shape would take it [s].

        By the mean function, where rows were laid out otherwise than queries are.
        """
        if self.laid is None:
            return self.measured_s
        asked = self.family.work(self.columns, self.types, self.device)
        return np.asarray(self.measured_s * mean_s(asked, self.fit.terms) / self._mean_s)

    def distance(self, shapes: Shapes) -> Floats:
        """Return how far each query is from the nearest row, in grid steps."""
        tree, step = self._nearest
        query = np.column_stack([coordinate(name, shapes) for name in self.family.axes])
        return np.asarray(tree.query(query / step)[0])

    @cached_property
    def _nearest(self) -> tuple[Any, Floats]:
        from scipy.spatial import cKDTree

        step = np.array([max(0.5, grid_step(column)) for column in self.coordinates.T])
        return cKDTree(self.coordinates / step), step

    def price(self, shapes: Shapes, types: Types | None = None) -> Latencies:
        """Price shapes from these rows.

        Parameters
        ----------
        shapes : mapping of str to ndarray (queries,)
        types : Types or None
            Formats to price instead of the rows' own, by the mean function of the rows.
        """
        family = self.family
        shapes = self._known_skew(shapes)
        mean = mean_s(family.work(shapes, types or self.types, self.device), self.fit.terms)
        count = len(mean)
        residual, outside = np.zeros(count), np.zeros(count)
        sigma = np.full(count, self.far_sigma)
        source = np.full(count, SOURCES.index(INTERPOLATED))
        query = np.column_stack([coordinate(name, shapes) for name in family.axes])
        along = [list(family.axes).index(axis) for axis in family.along]
        by_shape = _grouped(shapes, (*family.shape, *self._apart))
        apart = len(self._apart)
        for key, rows in by_shape.items():
            surface, axes = self._surface("shape", key), along
            if surface is None:
                axes = list(range(len(family.axes)))
                surface = self._surface("all", key[len(key) - apart :])
            else:
                sigma[rows] = SAME_SHAPE_SIGMA
            if surface is None:
                sigma[rows] = OTHER_SIGMA
                continue
            found, beyond = surface.at(query[rows][:, axes])
            if family.rising and len(axes) == 1:
                found = self._rising_residual(key, mean[rows], found, beyond)
            residual[rows], outside[rows] = found, beyond
        seconds = mean * np.exp(residual)
        sigma = sigma + OCTAVE_SIGMA * outside
        if types is None or types == self.types:
            self._verbatim(shapes, seconds, sigma, source)
        return Latencies(seconds, sigma, source, outside)

    def _rising_residual(
        self, key: tuple[float, ...], mean: Floats, found: Floats, beyond: Floats
    ) -> Floats:
        """Interpolate between rows along the mean function: it rises, so what comes out does."""
        rows = self._rows_by_shape.get(key)
        if rows is None or len(rows) < LEAST_CURVE_ROWS:
            return found
        log_mean = np.log(self._mean_s[rows])
        order = np.argsort(log_mean, kind="stable")
        times = np.log(self._rising_s[rows])[order]
        inside = np.interp(np.log(mean), log_mean[order], times) - np.log(mean)
        return np.where(beyond > 0, found, inside)

    def _known_skew(self, shapes: Shapes) -> Shapes:
        """Take the measured load skew nearest to the one asked for."""
        if "skew" not in shapes:
            return shapes
        known = np.unique(self.columns["skew"])
        nearest = np.abs(shapes["skew"][:, None] - known).argmin(axis=1)
        return {**shapes, "skew": known[nearest]}

    def _verbatim(
        self, shapes: Shapes, seconds: Floats, sigma: Floats, source: NDArray[np.int64]
    ) -> None:
        """Put measured rows in place of their interpolation."""
        names = exact_names(self.family, self._apart)
        stacked = np.column_stack([shapes[name] for name in names])
        exact = self.exact
        for index, key in enumerate(map(tuple, stacked.tolist())):
            row = exact.get(key)
            if row is not None:
                seconds[index], sigma[index], source[index] = row, self.near_sigma, 0


def exact_names(family: Family, apart: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that make two rows of one table the same shape and size."""
    return tuple(dict.fromkeys((*OPS[family.op], *family.shape, *apart)))


def _grouped(columns: Shapes, names: Sequence[str]) -> dict[tuple[float, ...], NDArray[np.intp]]:
    """Return the row numbers of each distinct value of some columns."""
    count = len(next(iter(columns.values())))
    if not names:
        return {(): np.arange(count)}
    stacked = np.column_stack([columns[name] for name in names])
    unique, inverse = np.unique(stacked, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(inverse.ravel()))[:-1])
    return {tuple(key): part for key, part in zip(unique.tolist(), parts, strict=True)}
