"""`llmsim validate`: a folder of measurements in, errors with their coverage out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.files import write_whole
from llmsim.fidelity.aicsample import find_sample, read_sample
from llmsim.fidelity.assumptions import assume
from llmsim.fidelity.cases import Case, read_cases
from llmsim.fidelity.kvmemory import KvRow, check_kv_memory
from llmsim.fidelity.profiles import MEASURED, read_profiles
from llmsim.fidelity.replay import (
    Replayed,
    Store,
    cache_folder,
    default_store,
    prepare,
    simulate_all,
)
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.scenarios import DEFAULTS, Options
from llmsim.fidelity.scores import (
    Capacity,
    Group,
    Score,
    capacities,
    group_by,
    headline_scores,
    reasons,
    score_case,
)
from llmsim.fidelity.twins import find_twins

if TYPE_CHECKING:
    import pandas as pd

    from llmsim.specs import CalibrationCard

HEADLINE_SOURCES: Final = ("aic-*", "inferencex-*", "nebius*", "inference-sim-*", "llmservingsim*")
"""Sources of the headline: their layout, lengths and load are known."""

HEADLINE_ENGINES: Final = ("vllm", "trtllm")
"""Engines of the headline; the others are printed for themselves."""

APART: Final = "disaggregated"
"""The side that has only cases with prefill and decode on GPUs of their own."""

SIDES: Final = ("source", "engine", "gpu", "model_key", APART)
"""What the summary is split by."""

TOLD: Final = (
    *("source", "engine", "engine_version", "gpu", "model_key", "quant", "tp", "ep"),
    *("workload", "isl", "osl", "concurrency", "rate_rps"),
)
"""Columns of a case that stand beside its errors."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which cases are replayed; an empty choice takes all.

    Parameters
    ----------
    sources, engines, gpus, models : tuple of str
        Globs over the columns of these names.
    grades : tuple of str
        Quality letters; C is never scored.
    headline : bool
        Only the headline's sources and engines, aggregated serving.
    disaggregated : bool
        Only cases with prefill and decode apart.
    """

    sources: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    grades: tuple[str, ...] = ("A", "B")
    headline: bool = False
    disaggregated: bool = False

    def takes(self, case: Case) -> bool:
        """Whether a case is among them."""
        if self.disaggregated and not case.text("disagg"):
            return False
        if case.quality not in self.grades or (self.headline and not in_headline(case)):
            return False
        asked = (
            (self.sources, case.text("source")),
            (self.engines, case.text("engine")),
            (self.gpus, case.text("gpu")),
            (self.models, case.model_key),
        )
        return all(not globs or _matches(value, globs) for globs, value in asked)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a validation.

    Parameters
    ----------
    folder : Path
    replayed : sequence of Replayed
    scores : sequence of Score
        Every statistic measured and predicted.
    chosen : mapping of (case id, metric) to Score
        One per headline metric.
    groups : mapping of str to list of Group
        Under ``headline``, ``seen`` (cases of the headline's sources that something was fitted to,
        and that do not count in it), ``all`` and each of `SIDES`.
    ladders : sequence of Capacity
    memory : sequence of KvRow
        Logged KV capacities and their predictions.
    priced : mapping of str to int
        Cases by what their kernels were priced by: a profile, or a kind of cost.
    """

    folder: Path
    replayed: Sequence[Replayed]
    scores: Sequence[Score]
    chosen: Mapping[tuple[str, str], Score]
    groups: Mapping[str, list[Group]]
    ladders: Sequence[Capacity]
    memory: Sequence[KvRow] = ()
    priced: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Return a tidy table: one row per case and statistic, measured and predicted.

        Returns
        -------
        DataFrame
            Times in s, rates per s; ``error_frac`` is signed. Cases that were not simulated have
            one row with the ``reason``.
        """
        import pandas as pd

        rows = [
            (
                *_told(one.case),
                one.metric,
                one.stat,
                one.measured,
                one.predicted,
                one.error_frac,
                "",
            )
            for one in self.scores
        ]
        gap = ("", "", math.nan, math.nan, math.nan)
        rows += [(*_told(one.case), *gap, one.reason) for one in self.replayed if one.reason]
        heads = ("metric", "stat", "measured", "predicted", "error_frac", "reason")
        return pd.DataFrame(rows, columns=["case_id", "quality", *TOLD, *heads])

    def summary(self, by: str = "all") -> pd.DataFrame:
        """Return errors by group.

        Parameters
        ----------
        by : str
            ``all``, ``headline``, ``seen``, ``source``, ``engine``, ``gpu``, ``model_key`` or
            ``disaggregated``.

        Returns
        -------
        DataFrame
            A row per group and metric: cases, simulated, scored, then median, P90 and worst
            absolute error and the signed median, as fractions.

        Raises
        ------
        InputError
            If there is no such grouping.
        """
        import pandas as pd

        if by not in self.groups:
            fault = Fault("", by, "is no grouping.", nearest(by, self.groups))
            raise InputError("summary", [fault])
        rows = [
            (group.name, group.cases, group.simulated, metric, *astuple(one))
            for group in self.groups[by]
            for metric, one in group.errors.items()
        ]
        heads = ("scored", "median_frac", "p90_frac", "worst_frac", "bias_frac")
        return pd.DataFrame(rows, columns=["group", "cases", "simulated", "metric", *heads])

    def as_json(self) -> dict[str, Any]:
        """Return all but the single cases as plain values: errors by group, capacity, memory.

        Errors are fractions, and every group counts what it could not simulate; `table` has the
        cases.
        """
        return {
            "folder": self.folder,
            "groups": self.groups,
            "capacity": [
                {
                    "ladder": each.name,
                    "points": each.points,
                    "measured_tokens_per_s": each.measured,
                    "predicted_tokens_per_s": each.predicted,
                    "error_frac": each.error_frac,
                }
                for each in self.ladders
            ],
            "kv_memory": self.memory,
            "twins": find_twins(each.case for each in self.replayed),
            "priced_by": self.priced,
            "not_simulated": dict(reasons(self.replayed)),
        }


@dataclass(frozen=True, slots=True)
class Order:
    """What to do.

    Parameters
    ----------
    folder : Path
    selection : Selection
    options : Options
    store : Store or None
        Known results; None simulates everything.
    jobs : int
    scenarios : Path or None
        Where the scenario of every case is written.
    """

    folder: Path
    selection: Selection = field(default_factory=Selection)
    options: Options = DEFAULTS
    store: Store | None = None
    jobs: int = 1
    scenarios: Path | None = None


def validate(order: Order, progress: Callable[[int, int], None] | None = None) -> Report:
    """Replay measured cases and compare.

    Parameters
    ----------
    order : Order
    progress : callable or None
        Called with (simulations done, simulations in all).

    Raises
    ------
    InputError
        If the folder is no folder of measurements, or the selection takes nothing.
    """
    sample = find_sample(order.folder)
    cases = read_cases(order.folder) if sample is None else read_sample(sample)
    taken = [case for case in cases if order.selection.takes(case)]
    if not taken:
        raise InputError(str(order.folder), _nothing(order, cases))
    files = RequestFiles(order.folder, cache_folder() / "traces", cases)
    ready, left = prepare(taken, files, order.options)
    if order.scenarios is not None:
        save_scenarios(((item.case, item.data) for item in ready), order.scenarios)
    done = {r.case.case_id: r for r in simulate_all(ready, order.store, order.jobs, progress)}
    done |= {each.case.case_id: each for each in left}
    report = report_of(order.folder, [done[case.case_id] for case in taken])
    priced = dict(Counter(item.priced for item in ready).most_common())
    return replace(report, memory=check_kv_memory(order.folder), priced=priced)


def order_of(
    folder: Path,
    selection: Selection,
    cost: Mapping[str, Any],
    calibrations: Mapping[tuple[str, str], CalibrationCard] | None = None,
    profiles: Path | None = None,
    jobs: int = 1,
    fresh: bool = False,
) -> Order:
    """Return an order from what a user gives.

    Parameters
    ----------
    folder : Path
    selection : Selection
    cost : mapping
        The ``cost`` component.
    calibrations : mapping of (engine, GPU card) to CalibrationCard, optional
    profiles : Path or None
        Folder of kernel tables.
    jobs : int
    fresh : bool
        Use no kept results.

    Raises
    ------
    InputError
        If the folder of tables is wrong, or of measured prices and tables one is asked for without
        the other.
    """
    if cost.get("kind") == MEASURED and profiles is None and "profile" not in cost:
        message = "measured prices need kernel tables: --profiles DIR, or a profile in the cost."
        raise InputError("llmsim validate", [Fault("", "--cost", message)])
    if cost.get("kind") != MEASURED and profiles is not None:
        message = f"tables price nothing under --cost {cost.get('kind')}: add --cost {MEASURED}."
        raise InputError("llmsim validate", [Fault("", "--profiles", message)])
    options = Options(
        cost,
        DEFAULTS.client,
        calibrations or {},
        read_profiles(profiles) if profiles is not None else (),
    )
    return Order(folder, selection, options, None if fresh else default_store(), jobs)


def report_of(folder: Path, replayed: Sequence[Replayed]) -> Report:
    """Return the errors of cases that have been replayed.

    Parameters
    ----------
    folder : Path
    replayed : sequence of Replayed
    """
    scores = [score for each in replayed for score in score_case(each)]
    chosen = headline_scores(scores)
    wanted = [each for each in replayed if in_headline(each.case)]
    head = [each for each in wanted if not assume(each.case).seen_by]
    seen = [each for each in wanted if assume(each.case).seen_by]
    groups = {
        "headline": group_by(head, chosen, lambda _: "headline"),
        "seen": group_by(seen, chosen, lambda case: f"fitted: {assume(case).seen_by}"),
        "all": group_by(replayed, chosen, lambda _: "all cases"),
    }
    apart = [each for each in replayed if each.case.text("disagg")]
    for side in SIDES:
        members = apart if side == APART else replayed
        groups[side] = group_by(members, chosen, partial(_side, side))
    unseen = {key: score for key, score in chosen.items() if not assume(score.case).seen_by}
    return Report(folder, replayed, scores, chosen, groups, capacities(unseen))


def in_headline(case: Case) -> bool:
    """Whether a case belongs to the headline: known sources, vLLM or TensorRT-LLM, aggregated."""
    return (
        _matches(case.text("source"), HEADLINE_SOURCES)
        and case.text("engine") in HEADLINE_ENGINES
        and not case.text("disagg")
    )


def save_scenarios(scenarios: Iterable[tuple[Case, Mapping[str, Any]]], folder: Path) -> None:
    """Write one scenario file per case; ``llmsim run`` takes each of them.

    Parameters
    ----------
    scenarios : iterable of (Case, mapping)
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case, data in scenarios:
        head = f"# {case.case_id}: {case.text('source')}, {case.text('source_path')}\n"
        text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
        write_whole(folder / f"{data['name']}.yaml", head + text)


def _told(case: Case) -> tuple[str, ...]:
    return (case.case_id, case.quality, *(case.text(name) for name in TOLD))


def _side(side: str, case: Case) -> str:
    if side == APART:
        return f"{case.text('engine')} on {case.text('gpu')}"
    return (case.model_key if side == "model_key" else case.text(side)) or "not recorded"


def _matches(value: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)


def _nothing(order: Order, cases: Sequence[Case]) -> list[Fault]:
    faults = []
    chosen = order.selection
    for side, globs in (
        ("source", chosen.sources),
        ("engine", chosen.engines),
        ("gpu", chosen.gpus),
        ("model_key", chosen.models),
        ("quality", chosen.grades),
    ):
        known = {case.quality if side == "quality" else _side(side, case) for case in cases}
        faults += [
            Fault(str(order.folder), side, f"no case has '{glob}'.", nearest(glob, known))
            for glob in globs
            if not any(fnmatchcase(value, glob) for value in known)
        ]
    return faults or [Fault(str(order.folder), "", "no case meets all that was asked for")]
