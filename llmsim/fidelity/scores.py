"""Errors of predictions, alone and by group."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmsim.fidelity.cases import Case, Key
from llmsim.fidelity.replay import Replayed

HEADLINE: Final[Mapping[str, tuple[Key, ...]]] = {
    "tpot": (("tpot", "mean"), ("tpot", "p50"), ("itl", "mean")),
    "ttft": (("ttft", "mean"), ("ttft", "p50"), ("prefill_time", "mean")),
    "throughput": (("output_throughput", "mean"), ("total_throughput", "mean")),
    "e2e": (("e2e", "mean"), ("e2e", "p50")),
}
"""What stands for a metric in a group: the first statistic that was measured and predicted."""

LITTLE: Final[Key] = ("output_throughput", "little")
"""Throughput of a closed loop by Little's law, where none was recorded: requests in flight over
mean time per request, from mean TTFT and TPOT, measured and predicted alike."""

LADDER_POINTS: Final = 4
"""Least load points over which a largest throughput is a capacity."""


@dataclass(frozen=True, slots=True)
class Score:
    """One statistic of one case.

    Parameters
    ----------
    case : Case
    metric, stat : str
    measured, predicted : float
        Times in s, rates per s.
    """

    case: Case
    metric: str
    stat: str
    measured: float
    predicted: float

    @property
    def error_frac(self) -> float:
        """Signed relative error: predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of a group.

    Parameters
    ----------
    count : int
    median, p90, worst : float
        Of the absolute relative errors.
    bias : float
        Median of the signed relative errors.
    """

    count: int
    median: float
    p90: float
    worst: float
    bias: float


def score_case(replayed: Replayed) -> list[Score]:
    """Return a score for every statistic that was both measured and predicted."""
    case, prediction = replayed.case, replayed.prediction
    if prediction is None:
        return []
    measured, predicted = dict(case.measured), dict(prediction.values)
    if not any(key[0] == "output_throughput" for key in measured):
        for values in (measured, predicted):
            rate = _little(case, values)
            if rate is not None:
                values[LITTLE] = rate
    return [
        Score(case, *key, value, predicted[key])
        for key, value in measured.items()
        if key in predicted and value > 0 and math.isfinite(predicted[key])
    ]


def _little(case: Case, values: Mapping[Key, float]) -> float | None:
    slots, output = case.number("concurrency"), case.number("osl")
    ttft, tpot = values.get(("ttft", "mean")), values.get(("tpot", "mean"))
    if not (slots and output and ttft and tpot) or not case.text("arrival").startswith("closed"):
        return None
    return slots * output / (ttft + tpot * (output - 1.0))


def headline_scores(scores: Iterable[Score]) -> dict[tuple[str, str], Score]:
    """Return one score per (case id, metric), as `HEADLINE` chooses."""
    by_case: dict[str, dict[Key, Score]] = defaultdict(dict)
    for score in scores:
        by_case[score.case.case_id][score.metric, score.stat] = score
    found = {}
    for case_id, known in by_case.items():
        for metric, keys in HEADLINE.items():
            for key in (*keys, LITTLE) if metric == "throughput" else keys:
                if key in known:
                    found[case_id, metric] = known[key]
                    break
    return found


def errors_of(values: Sequence[float]) -> Errors:
    """Return the errors of a group.

    Parameters
    ----------
    values : sequence of float (n,)
        Signed relative errors; at least one.
    """
    signed = np.asarray(values, dtype=float)
    size = np.abs(signed)
    return Errors(
        len(signed),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float(size.max()),
        float(np.median(signed)),
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that share a property.

    Parameters
    ----------
    name : str
    cases : int
        In all.
    simulated : int
    errors : mapping of str to Errors
        By metric of `HEADLINE`.
    covered : mapping of str to Errors
        The same with every case that was not scored counted as 100% error.
    """

    name: str
    cases: int
    simulated: int
    errors: Mapping[str, Errors]
    covered: Mapping[str, Errors]


def group_by(
    replayed: Sequence[Replayed],
    scores: Mapping[tuple[str, str], Score],
    name_of: Callable[[Case], str],
) -> list[Group]:
    """Return groups with their errors, the largest first.

    Parameters
    ----------
    replayed : sequence of Replayed
    scores : mapping
        As `headline_scores` gives them.
    name_of : callable
        Names the group of a case.
    """
    members: dict[str, list[Replayed]] = defaultdict(list)
    for each in replayed:
        members[name_of(each.case)].append(each)
    groups = []
    for name, part in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
        errors, covered = {}, {}
        for metric in HEADLINE:
            found = [
                scores[each.case.case_id, metric].error_frac
                for each in part
                if (each.case.case_id, metric) in scores
            ]
            if found:
                errors[metric] = errors_of(found)
            missed = [1.0] * sum(_missed(each, metric, scores) for each in part)
            if found or missed:
                covered[metric] = errors_of([*found, *missed])
        simulated = sum(each.prediction is not None for each in part)
        groups.append(Group(name, len(part), simulated, errors, covered))
    return groups


def _missed(each: Replayed, metric: str, scores: Mapping[tuple[str, str], Score]) -> bool:
    """Whether a case has this metric measured, but no score for it."""
    if (each.case.case_id, metric) in scores:
        return False
    names = {key[0] for key in HEADLINE[metric]}
    closed = metric == "throughput" and _little(each.case, each.case.measured) is not None
    return closed or any(key[0] in names for key in each.case.measured)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Largest throughput over a ladder of loads.

    Parameters
    ----------
    name : str
        What the points have in common.
    case : Case
        One of them.
    points : int
    measured, predicted : float [tokens/s]
    """

    name: str
    case: Case
    points: int
    measured: float
    predicted: float

    @property
    def error_frac(self) -> float:
        """Signed relative error."""
        return self.predicted / self.measured - 1.0


_LADDER: Final = (
    "source",
    "model",
    "model_key",
    "gpu",
    "n_gpu",
    "tp",
    "pp",
    "ep",
    "dp",
    "engine",
    "engine_version",
    "quant",
    "kv_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "workload",
    "isl",
    "osl",
    "arrival",
    "engine_args",
)


def capacities(scores: Mapping[tuple[str, str], Score]) -> list[Capacity]:
    """Return the largest throughput of every ladder of at least `LADDER_POINTS` loads.

    Parameters
    ----------
    scores : mapping
        As `headline_scores` gives them.
    """
    ladders: dict[tuple[str, ...], dict[float, list[Score]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for (_, metric), score in scores.items():
        load = score.case.number("concurrency") or score.case.number("rate_rps")
        if metric == "throughput" and load:
            ladders[tuple(score.case.text(name) for name in _LADDER)][load].append(score)
    found = []
    for key, points in ladders.items():
        if len(points) < LADDER_POINTS:
            continue
        measured = max(float(np.median([s.measured for s in part])) for part in points.values())
        predicted = max(float(np.median([s.predicted for s in part])) for part in points.values())
        one = next(iter(points.values()))[0].case
        name = ", ".join(text for text in key if text)
        found.append(Capacity(name, one, len(points), measured, predicted))
    return found


def reasons(replayed: Iterable[Replayed]) -> list[tuple[str, int]]:
    """Return why cases were not simulated, with how many of each, the most frequent first."""
    return Counter(each.reason for each in replayed if each.reason).most_common()
