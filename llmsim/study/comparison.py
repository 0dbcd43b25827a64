"""Two scenarios against each other, draw by draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmsim.study.draws import HEADLINES, UNITS, CostDraws

if TYPE_CHECKING:
    import pandas as pd


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

    def first_better_frac(self, metric: str) -> float:
        """Return P(first beats second) in a metric: the share of draws, ties counting half.

        Returns
        -------
        float
            NaN where no draw has the metric in both.
        """
        sign = HEADLINES[metric]
        draws = min(self.first.draws, self.second.draws)
        gain = sign * (self.first.drawn[metric][:draws] - self.second.drawn[metric][:draws])
        gain = gain[np.isfinite(gain)]
        if not len(gain):
            return math.nan
        return float(np.mean((gain > 0) + 0.5 * (gain == 0)))

    def table(self) -> pd.DataFrame:
        """Return a tidy table: metric, unit, value, p10 and p90 of both, P(first better)."""
        import pandas as pd

        rows = []
        for name in HEADLINES:
            cells: list[object] = [name, UNITS[name]]
            for each in (self.first, self.second):
                low, _, high = each.band(name)
                cells += [each.plain[name], low, high]
            rows.append((*cells, self.first_better_frac(name)))
        heads = ["metric", "unit"]
        for word in ("first", "second"):
            heads += [f"{word}_{part}" for part in ("value", "p10", "p90")]
        return pd.DataFrame(rows, columns=[*heads, "first_better_frac"])
