"""From a card to results: every arm of every regime under every seed, paired."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from llmsim.core.errors import InputError
from llmsim.gallery.card import MOVED_SEEDS, POOLED_USD, SEEDS, Band
from llmsim.gallery.reading import BASELINE, TREATMENT, Exhibit, Setting
from llmsim.gallery.results import COUNTERS, Results, Row, Settled
from llmsim.planner import pack
from llmsim.planner.work import prepare
from llmsim.scenario import Scenario
from llmsim.study.executor import run_in_order
from llmsim.study.knee import Promise, find_knee, load_key
from llmsim.study.points import Point, PointStore, code_hash

Report = Callable[[int, int | None], None]

PICKING_SEED: Final = 0
"""Seed under which the best of several alternatives is picked; it measures nothing."""

QUICK_GROUPS: Final = ("bands", "nulls")
QUICK_SEEDS: Final = 3


@dataclass(frozen=True, slots=True)
class Order:
    """What to run of a card.

    Parameters
    ----------
    exhibit : Exhibit
    seeds : int
        How many; pairs behind every gain.
    groups : tuple of str or None
        Groups of regimes; None for all.
    names : tuple of str
        Settings by name; empty for all.
    ablations : bool
    jobs : int
        Processes; -1 for one per core.
    store : PointStore
        Keeps single runs, so that an order that was stopped goes on.
    """

    exhibit: Exhibit
    seeds: int = len(SEEDS)
    groups: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    ablations: bool = True
    jobs: int = -1
    store: PointStore = field(default_factory=lambda: PointStore(None))

    def settings(self) -> list[Setting]:
        """Return the settings that are asked for."""
        return [
            each
            for each in self.exhibit.settings()
            if (self.groups is None or each.group in self.groups)
            and (not self.names or each.name in self.names)
        ]


def seeds_of(setting: Setting, count: int) -> tuple[int, ...]:
    """Return the seeds of a setting: those after the ones that a moved band was set on.

    Parameters
    ----------
    setting : Setting
    count : int
        At least 1.
    """
    regime = setting.regime
    moved = isinstance(regime, Band) and regime.moved is not None
    first = MOVED_SEEDS[0] if moved else SEEDS[0]
    return tuple(range(first, first + count))


def run_order(order: Order, report: Report | None = None) -> Results:
    """Run what is asked for of a card.

    Parameters
    ----------
    order : Order
    report : callable, optional
        Called with (pairs done, pairs in all).

    Returns
    -------
    Results
        After Ctrl-C with the settings of which every seed was done.

    Raises
    ------
    InputError
        If a scenario is wrong, or has no load to search over.
    """
    from importlib.metadata import version

    settings = order.settings()
    picks = _pick(order, settings)
    tasks = [
        (index, seed)
        for index, setting in enumerate(settings)
        for seed in seeds_of(setting, order.seeds)
    ]
    rows: dict[str, list[Row]] = {setting.name: [] for setting in settings}
    jobs = [
        (order.exhibit, settings[index], seed, picks[index], order.ablations, order.store)
        for index, seed in tasks
    ]
    try:
        for done, ((index, _), made) in enumerate(
            zip(tasks, run_in_order(_run_pair, jobs, order.jobs), strict=True), 1
        ):
            rows[settings[index].name] += made
            if report is not None:
                report(done, len(tasks))
    except KeyboardInterrupt:
        whole = {name for name, made in rows.items() if _seeds(made) == order.seeds}
        if not whole:
            raise
        rows = {name: made for name, made in rows.items() if name in whole}
    settled = {
        setting.name: Settled(
            order.exhibit.inputs_hash(setting), picks[index], tuple(rows[setting.name])
        )
        for index, setting in enumerate(settings)
        if setting.name in rows
    }
    return Results(order.exhibit.name, version("llmsim"), code_hash(), settled)


def _seeds(rows: Iterable[Row]) -> int:
    return len({row.seed for row in rows})


def _pick(order: Order, settings: Sequence[Setting]) -> list[dict[str, str]]:
    """Return the best alternative of each arm that has some, per setting, under `PICKING_SEED`."""
    asked = [
        (index, arm, alternative)
        for index, setting in enumerate(settings)
        for arm, each in setting.arms.items()
        for alternative in each.best_of
    ]
    jobs = [
        (order.exhibit, settings[index], arm, alternative, order.store)
        for index, arm, alternative in asked
    ]
    picks: list[dict[str, str]] = [{} for _ in settings]
    best: dict[tuple[int, str], float] = {}
    for (index, arm, alternative), value in zip(
        asked, run_in_order(_try_alternative, jobs, order.jobs), strict=True
    ):
        score = value if settings[index].higher_is_better else -value
        if math.isfinite(score) and score > best.get((index, arm), -math.inf):
            best[index, arm] = score
            picks[index][arm] = alternative
    for index, arm, alternative in asked:
        picks[index].setdefault(arm, alternative)
    return picks


def _try_alternative(
    exhibit: Exhibit, setting: Setting, arm: str, alternative: str, store: PointStore
) -> float:
    load = None
    if setting.of_knee is not None:
        first = next(iter(setting.arms[BASELINE].best_of), None)
        load = _load(exhibit, setting, PICKING_SEED, first, store)
    return _measure(exhibit, setting, arm, alternative, PICKING_SEED, load, store).value


def _run_pair(
    exhibit: Exhibit,
    setting: Setting,
    seed: int,
    picks: dict[str, str],
    ablations: bool,
    store: PointStore,
) -> list[Row]:
    """Return a row per arm of a setting under one seed."""
    load = None
    if setting.of_knee is not None:
        load = _load(exhibit, setting, seed, picks.get(BASELINE), store)
    arms = list(setting.arms) if ablations else [BASELINE, TREATMENT]
    return [_measure(exhibit, setting, arm, picks.get(arm), seed, load, store) for arm in arms]


def _load(
    exhibit: Exhibit, setting: Setting, seed: int, alternative: str | None, store: PointStore
) -> float:
    """Return the load of a setting: its share of the baseline's knee under the same seed."""
    assert setting.of_knee is not None
    scenario = exhibit.scenario(setting, BASELINE, alternative).override({"seed": seed})
    knee = find_knee(scenario, Promise(setting.limits), store=store)
    return setting.of_knee * knee.load


def _measure(
    exhibit: Exhibit,
    setting: Setting,
    arm: str,
    alternative: str | None,
    seed: int,
    load: float | None,
    store: PointStore,
) -> Row:
    if exhibit.card.of == "plan":
        return _planned(exhibit, setting, arm, alternative, seed)
    scenario = exhibit.scenario(setting, arm, alternative).override({"seed": seed})
    if setting.searches:
        knee = find_knee(scenario, Promise(setting.limits), store=store)
        gpus = _gpus(scenario) if setting.metric.endswith("gpu") else 1
        value = knee.load / gpus if math.isfinite(knee.load) else math.nan
        return _row(seed, arm, knee.load, value, knee.point)
    if load is not None:
        if not (0 < load < math.inf):
            return _row(seed, arm, load, math.nan, None)
        scenario = scenario.override({load_key(scenario): load})
    point = store.point(scenario)
    return _row(seed, arm, load, point.values[setting.metric], point)


def _planned(
    exhibit: Exhibit, setting: Setting, arm: str, alternative: str | None, seed: int
) -> Row:
    """Return the cost of the cheapest fleet; NaN where none that is allowed keeps the promise."""
    nothing = dict.fromkeys(COUNTERS, math.nan)
    try:
        work = prepare(exhibit.plan(setting, arm, alternative, seed))
        packed = pack(work.problem(pooled=setting.metric == POOLED_USD), work.solver)
    except InputError:
        return Row(seed, arm, None, math.nan, nothing, "", "")
    fleet = json.dumps(dict(packed.replicas), sort_keys=True)
    digest = hashlib.blake2b(fleet.encode(), digest_size=16).hexdigest()
    return Row(seed, arm, None, packed.usd_per_hour, nothing, digest, "")


def _gpus(scenario: Scenario) -> int:
    return sum(pool.gpus for pool in scenario.fleet.pools.values())


def _row(seed: int, arm: str, load: float | None, value: float, point: Point | None) -> Row:
    counters = {name: math.nan if point is None else point.values[name] for name in COUNTERS}
    digest, verdict = ("", "") if point is None else (point.digest, point.verdict)
    finite = load if load is not None and math.isfinite(load) else None
    return Row(seed, arm, finite, value, counters, digest, verdict)


def replay(exhibit: Exhibit, setting: Setting, settled: Settled, row: Row) -> str:
    """Return the digest of a recorded row's run, simulated now at the recorded load.

    Parameters
    ----------
    exhibit : Exhibit
    setting : Setting
    settled : Settled
        The setting's results, of which `row` is one.
    row : Row
        One with a digest.

    Notes
    -----
    Of a card of plans it is the digest of the fleet that is planned now.
    """
    if exhibit.card.of == "plan":
        return _planned(exhibit, setting, row.arm, settled.picks.get(row.arm), row.seed).digest
    scenario = exhibit.scenario(setting, row.arm, settled.picks.get(row.arm))
    changes: dict[str, object] = {"seed": row.seed}
    if row.load is not None:
        changes[load_key(scenario)] = row.load
    return PointStore(None).point(scenario.override(changes)).digest
