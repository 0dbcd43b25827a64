"""Two scenarios against each other, draw by draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmsim.study.draws import HEADLINES, UNITS, CostDraws

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CostComparison:
    """Two scenarios under common draws of the operators' prices.

    Parameters
    ----------
    first, second : CostDraws
        Equally many draws.

    Notes
    -----
    Fleets of the same GPU share each draw, so that an error common to both does not blur their
    difference; fleets of different GPUs have independent draws.
    """

    first: CostDraws
    second: CostDraws

    def differences(self, metric: str) -> Floats:
        """Return second less first of the draws in which both have the metric, in its unit."""
        draws = min(self.first.draws, self.second.draws)
        made = self.second.drawn[metric][:draws] - self.first.drawn[metric][:draws]
        return made[np.isfinite(made)]

    def interval(self, metric: str) -> tuple[float, float]:
        """Return p10 and p90 of the difference over the draws; NaN with fewer than two."""
        made = self.differences(metric)
        if len(made) < 2:
            return math.nan, math.nan
        low, high = np.quantile(made, (0.1, 0.9))
        return float(low), float(high)

    def first_better_frac(self, metric: str) -> float:
        """Return P(first beats second) in a metric: the share of draws, ties counting half.

        Returns
        -------
        float
            NaN where no draw has the metric in both.
        """
        gain = -HEADLINES[metric] * self.differences(metric)
        if not len(gain):
            return math.nan
        return float(np.mean((gain > 0) + 0.5 * (gain == 0)))

    def table(self) -> pd.DataFrame:
        """Return a tidy table: metric, unit, value, p10 and p90 of both and of their difference.

        The last column is P(first better).
        """
        import pandas as pd

        rows = []
        for name in HEADLINES:
            cells: list[object] = [name, UNITS[name]]
            for each in (self.first, self.second):
                low, _, high = each.band(name)
                cells += [each.plain[name], low, high]
            cells += [self.second.plain[name] - self.first.plain[name], *self.interval(name)]
            rows.append((*cells, self.first_better_frac(name)))
        heads = ["metric", "unit"]
        for word in ("first", "second", "difference"):
            heads += [f"{word}_{part}" for part in ("value", "p10", "p90")]
        return pd.DataFrame(rows, columns=[*heads, "first_better_frac"])
