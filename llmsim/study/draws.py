"""One scenario under many prices of its operators: what the cost model's error does to a result.

Every draw meets the same traffic, so what differs between draws is the price alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError
from llmsim.core.files import write_whole
from llmsim.costmodel.uncertainty import draw_scales, family_log_sd
from llmsim.results.metrics import METRICS
from llmsim.scenario import Scenario
from llmsim.scenario.costs import Measured
from llmsim.serving.build import placement
from llmsim.specs import OperatorScales, load_gpu, load_model
from llmsim.study.executor import Workers, in_order, run_in_order
from llmsim.study.single import simulate_whole

if TYPE_CHECKING:
    import pandas as pd

HEADLINES: Final = {
    "ttft_p50_s": -1,
    "ttft_p99_s": -1,
    "tpot_p50_s": -1,
    "tpot_p99_s": -1,
    "e2e_p50_s": -1,
    "output_tokens_per_s": 1,
    "goodput_rps": 1,
    "slo_attained_frac": 1,
    "usd_per_million_output_tokens": -1,
    "preemptions": -1,
    "recomputed_tokens": -1,
}
"""Metrics that get a band, and whether more (1) or less (-1) of them is better."""

UNITS: Final = {each.name: each.unit for each in METRICS}

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class CostDraws:
    """The headline metrics of one scenario, once per draw.

    Parameters
    ----------
    name : str
        Of the scenario.
    plain : mapping of str to float
        With the prices as they are.
    drawn : mapping of str to ndarray of float64 (draws,)
        Per draw, in the metric's unit; NaN where a run has nothing to measure it by.
    verdicts : tuple of str (draws,)
        Saturation verdict of each draw.
    claims : tuple of str (draws,)
        What each draw says of the SLO.
    """

    name: str
    plain: Mapping[str, float]
    drawn: Mapping[str, npt.NDArray[np.float64]]
    verdicts: tuple[str, ...]
    claims: tuple[str, ...]

    @property
    def draws(self) -> int:
        """Runs behind the bands."""
        return len(self.verdicts)

    def band(self, metric: str) -> tuple[float, float, float]:
        """Return p10, p50 and p90 of a metric over the draws; NaN where fewer than half have it."""
        values = self.drawn[metric]
        known = values[np.isfinite(values)]
        if 2 * len(known) < max(1, len(values)):
            return math.nan, math.nan, math.nan
        low, middle, high = np.quantile(known, (0.1, 0.5, 0.9))
        return float(low), float(middle), float(high)

    @property
    def slo_met_frac(self) -> float:
        """Share of the draws in which the run shows that the SLO is met; NaN without an SLO."""
        if not self.claims or all(claim == "not set" for claim in self.claims):
            return math.nan
        return sum(claim == "met" for claim in self.claims) / len(self.claims)

    @property
    def overloaded_frac(self) -> float:
        """Share of the draws in which the fleet is overloaded."""
        if not self.verdicts:
            return math.nan
        return sum(verdict == "overloaded" for verdict in self.verdicts) / len(self.verdicts)

    def table(self) -> pd.DataFrame:
        """Return a tidy table: metric, unit, value, p10, p50, p90."""
        import pandas as pd

        rows = [(name, UNITS[name], self.plain[name], *self.band(name)) for name in HEADLINES]
        return pd.DataFrame(rows, columns=["metric", "unit", "value", "p10", "p50", "p90"])

    def as_json(self) -> dict[str, Any]:
        """Return all draws as plain values; NaN is null."""
        return {
            "draws": self.draws,
            "slo_met_frac": _plain(self.slo_met_frac),
            "overloaded_frac": _plain(self.overloaded_frac),
            "metrics": {
                name: {
                    "unit": UNITS[name],
                    "value": _plain(self.plain[name]),
                    **dict(zip(("p10", "p50", "p90"), map(_plain, self.band(name)), strict=True)),
                    "drawn": [_plain(value) for value in self.drawn[name].tolist()],
                }
                for name in HEADLINES
            },
        }

    def save(self, folder: str | Path) -> Path:
        """Write `as_json` into ``cost_draws.json`` of a run folder."""
        path = Path(folder) / "cost_draws.json"
        write_whole(path, json.dumps(self.as_json(), indent=1) + "\n")
        return path


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class _Ran:
    metrics: dict[str, float]
    verdict: str
    claim: str


def draw_costs(
    scenario: Scenario,
    draws: int = 20,
    jobs: int = -1,
    report: Report | None = None,
    workers: Workers | None = None,
) -> CostDraws:
    """Simulate a scenario as it is, and once per draw of its operators' prices.

    Parameters
    ----------
    scenario : Scenario
    draws : int
        At least 2.
    jobs : int
        Processes; -1 for one per core.
    report : callable, optional
        Called with (runs done, runs in all).
    workers : Workers, optional
        Where to simulate instead of in `jobs` processes of this machine.

    Returns
    -------
    CostDraws
        After Ctrl-C with the draws that were done.

    Raises
    ------
    InputError
        If `draws` is below 2, or a pool's cost model takes no factors.

    Notes
    -----
    Launch and host work are not drawn: they are structure, to be switched, not scattered.
    """
    if draws < 2:
        raise InputError("cost draws", [Fault("", "draws", f"{draws}, must be at least 2.")])
    changes = _changes(scenario, draws)
    tasks = [(scenario, change) for change in ({}, *changes)]
    ran: list[_Ran] = []
    try:
        made = (
            run_in_order(_run_one, tasks, jobs)
            if workers is None
            else in_order(workers, _run_one, tasks)
        )
        for done, each in enumerate(made, 1):
            ran.append(each)
            if report is not None:
                report(done, draws + 1)
    except KeyboardInterrupt:
        if len(ran) < 3:
            raise
    plain, rest = ran[0], ran[1:]
    return CostDraws(
        scenario.name,
        {name: plain.metrics[name] for name in HEADLINES},
        {name: np.array([each.metrics[name] for each in rest]) for name in HEADLINES},
        tuple(each.verdict for each in rest),
        tuple(each.claim for each in rest),
    )


def _changes(scenario: Scenario, draws: int) -> list[dict[str, object]]:
    """Return the overrides of each draw: factors on top of those that the scenario has."""
    found: list[dict[str, object]] = [{} for _ in range(draws)]
    for name, pool in scenario.fleet.pools.items():
        cost = pool.cost.build()
        model = load_model(scenario.model_of(pool), scenario.folder)
        own = getattr(cost, "scales", None)
        if own is None:
            fault = Fault("", f"fleet.pools.{name}.cost", f"{pool.cost.kind} takes no factors.")
            raise InputError("cost draws", [fault])
        scales: OperatorScales = own()
        gpu = load_gpu(pool.gpu, scenario.folder)
        log_sd = family_log_sd(pool.engine.checkpoint(model), gpu, pool.tp)
        if isinstance(cost, Measured):
            priced = cost.bind(placement(pool, model, scenario.folder))
            log_sd = priced.family_log_sd(log_sd)
        for number, drawn in enumerate(draw_scales(log_sd, gpu.name, scenario.seed, draws)):
            product = {
                f"{family}_scale": factor * scales.by_family()[family]
                for family, factor in drawn.by_family().items()
            }
            kind = {"kind": pool.cost.kind} | dict(pool.cost.params) | product
            found[number][f"fleet.pools.{name}.cost"] = kind
    return found


def _run_one(scenario: Scenario, change: Mapping[str, object]) -> _Ran:
    summary = simulate_whole(scenario.override(change) if change else scenario).evaluate()
    return _Ran(summary.values(), summary.verdict.value, summary.claim.value)
