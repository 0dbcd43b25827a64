"""The columns of one run, cut at its warm-up, and the intervals that are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.units import NS_PER_S
from llmsim.results.classes import LIMITED, Bools, kept
from llmsim.results.columns import OUTCOMES
from llmsim.results.facts import RunFacts
from llmsim.results.intervals import (
    NOTHING,
    Interval,
    mean_interval,
    quantile_interval,
    rate_interval,
    share_interval,
)
from llmsim.results.metrics import QUANTILES
from llmsim.results.slo import Slo
from llmsim.results.store import RequestTable

_LATENCY_COLUMNS: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s", "queue": "queue_s"}


class Reading:
    """Columns of one table, cut at one warm-up; holds masks and the order of arrival.

    Parameters
    ----------
    table : RequestTable
    facts : RunFacts
    warmup_s : float [s]
    only : ndarray of bool (n,), optional
        Whose latencies, attainment and rates are wanted; all requests' when absent.
    """

    def __init__(
        self, table: RequestTable, facts: RunFacts, warmup_s: float, only: Bools | None = None
    ) -> None:
        self._table = table
        self._arrival_s = table.numbers("arrival_s")
        # times are rounded from nanoseconds, so half of one is the honest tolerance at the cut
        self._edge_s = warmup_s - 0.5 / NS_PER_S
        order = np.argsort(self._arrival_s, kind="stable")
        self._late = order[self._arrival_s[order] >= self._edge_s]
        if only is not None:
            self._late = self._late[only[self._late]]
        self._outcome = table.codes("outcome", OUTCOMES).astype(np.int8)
        self._only = only
        self._end_s = facts.end_ns / NS_PER_S
        self._start_s = warmup_s

    @property
    def late_requests(self) -> int:
        """Requests that arrived after the warm-up."""
        return len(self._late)

    def outcomes(self) -> dict[str, int]:
        """Return how many requests ended how."""
        counts = np.bincount(self._outcome, minlength=len(OUTCOMES))
        return {name: int(n) for name, n in zip(OUTCOMES, counts, strict=True)}

    def arrival_period(self) -> tuple[float, float, int]:
        """Return first and last arrival [s], and the arrivals in the last half between them."""
        if not len(self._arrival_s):
            return 0.0, 0.0, 0
        first, last = float(self._arrival_s.min()), float(self._arrival_s.max())
        first = max(first, min(self._start_s, last))
        return first, last, int((self._arrival_s >= (first + last) / 2).sum())

    def latencies(self) -> dict[str, Interval]:
        """Return quantiles and mean of every latency."""
        found = {}
        for key, column in _LATENCY_COLUMNS.items():
            values = self._table.numbers(column)[self._late]
            values = values[~np.isnan(values)]
            for stat, fraction in QUANTILES.items():
                found[f"{key}_{stat}_s"] = quantile_interval(values, fraction)
            found[f"{key}_mean_s"] = mean_interval(values)
        return found

    def met(self, slo: Slo) -> dict[str, Bools]:
        """Return who finished within each limit that is set, and under ``slo`` within all."""
        return kept(self._table, self._outcome == OUTCOMES.index("finished"), slo)

    def attainment(self, met: Mapping[str, Bools]) -> dict[str, Interval]:
        """Return the share that kept each limit, and all of them."""
        asked = self._outcome[self._late] != OUTCOMES.index("provider_failed")
        found = {f"slo_{key}_attained_frac": NOTHING for key in LIMITED}
        found["slo_attained_frac"] = NOTHING
        for key, mask in met.items():
            name = "slo_attained_frac" if key == "slo" else f"slo_{key}_attained_frac"
            found[name] = share_interval(mask[self._late][asked])
        return found

    def rates(self, good: Bools | None) -> dict[str, Interval]:
        """Return what was finished and delivered per second; `good` met every limit."""
        end_s = self._table.numbers("end_s")
        inside = end_s >= self._edge_s
        if self._only is not None:
            inside &= self._only
        done = inside & (self._outcome == OUTCOMES.index("finished"))

        def rate(
            mask: Bools, weights: npt.NDArray[Any] | None = None, until_s: float = self._end_s
        ) -> Interval:
            chosen = None if weights is None else weights[mask].astype(np.float64)
            return rate_interval(end_s[mask], chosen, self._start_s, until_s)

        output = self._table.numbers("output_tokens")
        prompt = self._table.numbers("prompt_tokens")
        last_s = float(self._arrival_s.max(initial=0.0))
        undrained = rate(inside & (end_s <= last_s), output, last_s)
        return {
            "undrained_output_tokens_per_s": undrained,
            "throughput_rps": rate(done),
            "goodput_rps": NOTHING if good is None else rate(done & good),
            "output_tokens_per_s": rate(inside, output),
            "total_tokens_per_s": rate(inside, output + np.where(done, prompt, 0)),
        }
