"""Named random streams: adding a component never shifts another one's draws."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return the random stream that belongs to a seed and a name.

    Parameters
    ----------
    seed : int
        The scenario's seed.
    *names : str or int
        Who draws, such as ``"arrivals"`` or ``("routing", "main")``.

    Returns
    -------
    numpy.random.Generator
        The same numbers for the same arguments in every process.

    Notes
    -----
    `numpy.random.SeedSequence` with the CRC-32 of each name as spawn key; Python's own `hash` is
    salted per process and would not repeat.
    """
    key = tuple(zlib.crc32(str(name).encode()) for name in names)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
