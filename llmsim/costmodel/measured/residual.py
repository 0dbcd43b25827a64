"""What the mean function gets wrong, interpolated between measured shapes.

Values are log(measured / mean). Coordinates are octaves; each axis is divided by its grid step, so
that neighbours are neighbours on the grid. Outside the box of the rows the query is clamped to it:
the mean function carries the scaling, the residual holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEIGHBOURS = 40
INVERSE_NEIGHBOURS = 4
_BLOCK = 512  # queries solved at once: bounds memory
_ROUND = 6  # digits of a coordinate that tell rows apart


def grid_step(values: Floats) -> float:
    """Return the usual distance between neighbouring values of an axis; 1 for a single value.

    Parameters
    ----------
    values : ndarray (rows,) [octaves]
    """
    unique = np.unique(np.round(values, _ROUND))
    return float(np.median(np.diff(unique))) if len(unique) > 1 else 1.0


@dataclass(frozen=True)
class Scattered:
    """Values at scattered points, interpolated by a linear radial basis over the nearest ones.

    Parameters
    ----------
    low, high : ndarray (axes,) [octaves]
        The box.
    step : ndarray (axes,) [octaves]
    points : ndarray (rows, axes)
        In steps; no two equal.
    values : ndarray (rows,)
    """

    low: Floats
    high: Floats
    step: Floats
    points: Floats
    values: Floats

    @classmethod
    def of(cls, coordinates: Floats, values: Floats, least_step: float = 0.5) -> Scattered:
        """Build from rows; those at one point become their median.

        Parameters
        ----------
        coordinates : ndarray (rows, axes) [octaves]
        values : ndarray (rows,)
        least_step : float [octaves]
            Axes sampled more finely than this count as if sampled at it.
        """
        step = np.array([max(least_step, grid_step(column)) for column in coordinates.T])
        scaled = np.round(coordinates / step, _ROUND)
        points, inverse = np.unique(scaled, axis=0, return_inverse=True)
        where = inverse.ravel()
        middle = np.zeros(len(points))
        middle[where] = values
        for index in np.flatnonzero(np.bincount(where) > 1):
            middle[index] = np.median(values[where == index])
        return cls(coordinates.min(axis=0), coordinates.max(axis=0), step, points, middle)

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.points)

    def at(self, coordinates: Floats) -> tuple[Floats, Floats]:
        """Return the value at each query, and how far outside the box it lies.

        Parameters
        ----------
        coordinates : ndarray (queries, axes) [octaves]

        Returns
        -------
        values : ndarray (queries,)
        outside : ndarray (queries,) [octaves]
            Summed over the axes.
        """
        inside = np.clip(coordinates, self.low, self.high)
        outside = np.abs(coordinates - inside).sum(axis=1)
        if self.points.shape[1] == 1:  # sorted by np.unique
            return np.interp(inside[:, 0] / self.step[0], self.points[:, 0], self.values), outside
        if len(self.points) < 3:
            return np.full(len(inside), self.values.mean()), outside
        return self._linear_basis(inside / self.step), outside

    def _linear_basis(self, queries: Floats) -> Floats:
        """Interpolate by a linear radial basis over the nearest points, with a constant.

        Notes
        -----
        ``f(x) = c + sum_i w_i |x - x_i|`` with ``f(x_i) = y_i`` and ``sum w_i = 0``, solved anew
        for each query's neighbours.
        """
        near = min(NEIGHBOURS, len(self.points))
        found = np.empty(len(queries))
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            distance, index = self._tree.query(block, k=near)
            points, values = self.points[index], self.values[index]
            system = np.ones((len(block), near + 1, near + 1))
            between = points[:, :, None, :] - points[:, None, :, :]
            system[:, :near, :near] = np.sqrt((between * between).sum(axis=-1))
            system[:, near, near] = 0.0
            right = np.zeros((len(block), near + 1, 1))
            right[:, :near, 0] = values
            weights = np.linalg.solve(system, right)[:, :, 0]
            reach = (weights[:, :near] * distance).sum(axis=1)
            found[start : start + _BLOCK] = reach + weights[:, near]
        return found

    def by_inverse_distance(self, coordinates: Floats) -> tuple[Floats, Floats]:
        """Return the same by inverse squared distance to the four nearest points."""
        inside = np.clip(coordinates, self.low, self.high)
        outside = np.abs(coordinates - inside).sum(axis=1)
        near = min(INVERSE_NEIGHBOURS, len(self.points))
        distance, index = self._tree.query(inside / self.step, k=near)
        distance, index = distance.reshape(-1, near), index.reshape(-1, near)
        weight = 1.0 / np.maximum(distance, 1e-9) ** 2
        return (weight * self.values[index]).sum(axis=1) / weight.sum(axis=1), outside


def not_falling(values: Floats) -> Floats:
    """Return the closest sequence that never falls, in least squares (pool adjacent violators).

    Parameters
    ----------
    values : ndarray (n,)
    """
    means: list[float] = []
    sizes: list[int] = []
    for value in values.tolist():
        means.append(value)
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            size = sizes[-2] + sizes[-1]
            pooled = (sizes[-2] * means[-2] + sizes[-1] * means[-1]) / size
            means[-2:], sizes[-2:] = [pooled], [size]
    return np.repeat(means, sizes)
