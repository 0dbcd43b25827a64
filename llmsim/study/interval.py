"""How sure a mean over a few seeds is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def student_interval(values: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return both ends of the 95% interval of a mean by Student's t.

    Parameters
    ----------
    values : sequence of float (n,)
        Independent, about normal: means of whole runs under different seeds.

    Returns
    -------
    low, high : float
        NaN with fewer than two values, or where one of them is no number.
    """
    if len(values) < 2 or not np.all(np.isfinite(values)):
        return math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1))
    half /= math.sqrt(len(values))
    middle = float(np.mean(values))
    return middle - half, middle + half
