"""A uniform sample of length pairs, per group, from one pass over any number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pairs = npt.NDArray[np.int64]
"""Prompt and output tokens, one pair per row (n, 2) [tokens]."""


class LengthReservoir:
    """Keeps up to `size` length pairs of every group, each row equally likely to be kept.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws one number per row offered, in order.
    size : int
        Pairs kept per group.

    Notes
    -----
    The rows with the smallest random keys are kept. Keys go by row, so that the sample does not
    depend on how the rows are cut into chunks.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng, self._size = rng, size
        self._kept: dict[int, tuple[npt.NDArray[np.float64], Pairs]] = {}

    def offer(self, group: npt.NDArray[Any], prompt: npt.NDArray[Any], output: Any) -> None:
        """Offer rows to the sample.

        Parameters
        ----------
        group : ndarray of int (n,)
        prompt, output : ndarray of int (n,) [tokens]
        """
        keys = self._rng.random(len(group))
        pairs = np.stack((prompt, output), axis=1).astype(np.int64)
        for member in np.unique(group).tolist():
            mask = group == member
            key, kept = keys[mask], pairs[mask]
            if member in self._kept:
                key = np.concatenate((self._kept[member][0], key))
                kept = np.concatenate((self._kept[member][1], kept))
            first = np.argsort(key, kind="stable")[: self._size]
            self._kept[member] = (key[first], kept[first])

    def pairs(self, group: int | None = None) -> Pairs:
        """Return the sample of a group, or of all groups together; may be empty.

        Parameters
        ----------
        group : int or None

        Returns
        -------
        ndarray of int64 (n, 2) [tokens]
        """
        if group is not None:
            return self._kept[group][1] if group in self._kept else np.empty((0, 2), np.int64)
        everyone = [self._kept[member][1] for member in sorted(self._kept)]
        return np.concatenate(everyone) if everyone else np.empty((0, 2), np.int64)
