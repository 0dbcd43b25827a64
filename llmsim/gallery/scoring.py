"""From results to verdicts: is the gain in its band, does the null hold, does the headline.

The rules are fixed here, for all cards alike; a card brings its bands and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from llmsim.gallery.card import Band, Headline, Null, Sweep
from llmsim.gallery.reading import BASELINE, TREATMENT, Exhibit, Setting
from llmsim.gallery.results import COUNTERS, Results, Row, Settled
from llmsim.study.paired import Paired, paired

SMALL_GAIN: Final = 2.0
"""Headlines below it are compared by gain - 1, those above by ratio."""

SMALL_FACTOR: Final = 2.0
"""Our gain - 1 may be half or twice the paper's."""

LARGE_FACTOR: Final = 1.6
"""Our ratio may differ from the paper's by this factor."""

HOLDS, PARTLY, FAILS, BROKEN, NOTHING = "holds", "partly", "differs", "BROKEN", "no results"
"""Verdicts; `BROKEN` is a null that surely brings something: it fails the build."""


@dataclass(frozen=True, slots=True)
class Score:
    """One treatment or ablation against its baseline, in one setting.

    Parameters
    ----------
    setting : Setting
    arm : str
        ``treatment``, or the ablation.
    pairs : Paired
    low, high : float
        95% interval of the mean gain.
    verdict : str
    why : str
        In a few words.
    means : mapping of str to float
        Mean of the compared metric over the seeds, of baseline and arm.
    counters : mapping of str to mapping of str to float
        Mean of each of `COUNTERS`, per side.
    loads : mapping of str to float
        Mean load, per side; NaN where the base's own was taken.
    picks : mapping of str to str
    """

    setting: Setting
    arm: str
    pairs: Paired
    low: float
    high: float
    verdict: str
    why: str
    means: Mapping[str, float]
    counters: Mapping[str, Mapping[str, float]]
    loads: Mapping[str, float]
    picks: Mapping[str, str]

    @property
    def told(self) -> str:
        """The gain with its interval, such as ``2.41 (2.20 to 2.65)``."""
        return told_gain(self.pairs.mean, self.low, self.high)


def told_gain(mean: float, low: float = math.nan, high: float = math.nan) -> str:
    """Return a gain and its interval in words."""
    if not math.isfinite(mean):
        return "–"
    band = f" ({_short(low)} to {_short(high)})" if math.isfinite(low) else ""
    return f"{_short(mean)}{band}"


def _short(value: float) -> str:
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def told_band(band: tuple[float | None, float | None]) -> str:
    """Return a band in words, such as ``2 to 5`` or ``at least 4``."""
    low, high = band
    if high is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"


def score_all(exhibit: Exhibit, results: Results) -> list[Score]:
    """Return the scores of every setting that has results, treatments before ablations."""
    scores: list[Score] = []
    for setting in exhibit.settings():
        settled = results.settings.get(setting.name)
        if settled is None:
            continue
        arms = {row.arm for row in settled.rows}
        scores += [
            _score(setting, arm, settled) for arm in setting.arms if arm != BASELINE and arm in arms
        ]
    return scores


def _score(setting: Setting, arm: str, settled: Settled) -> Score:
    sides = {side: _by_seed(settled.rows, side) for side in (BASELINE, arm)}
    seeds = sorted(set(sides[BASELINE]) & set(sides[arm]))
    values = {side: [rows[seed].value for seed in seeds] for side, rows in sides.items()}
    pairs = paired(values[BASELINE], values[arm], setting.higher_is_better)
    low, high = pairs.interval()
    verdict, why = _judge(setting, pairs, low, high) if arm == TREATMENT else ("", "")
    kept = {side: [rows[seed] for seed in seeds] for side, rows in sides.items()}
    return Score(
        setting,
        arm,
        pairs,
        low,
        high,
        verdict,
        why,
        {side: _mean(each) for side, each in values.items()},
        {
            side: {name: _mean([row.counters[name] for row in rows]) for name in COUNTERS}
            for side, rows in kept.items()
        },
        {
            side: _mean([math.nan if row.load is None else row.load for row in rows])
            for side, rows in kept.items()
        },
        settled.picks,
    )


def _by_seed(rows: Sequence[Row], arm: str) -> dict[int, Row]:
    return {row.seed: row for row in rows if row.arm == arm}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _judge(setting: Setting, pairs: Paired, low: float, high: float) -> tuple[str, str]:
    regime = setting.regime
    if not math.isfinite(pairs.mean):
        return NOTHING, "no seed has a value on both sides"
    if isinstance(regime, Null):
        return judge_null(low, high, regime.limit_frac)
    if isinstance(regime, Headline):
        return judge_headline(pairs.mean, low, regime.gain)
    if isinstance(regime, Band):
        return judge_band(pairs, regime.band)
    return "", ""


def judge_null(low: float, high: float, limit_frac: float) -> tuple[str, str]:
    """Judge a null regime.

    Parameters
    ----------
    low, high : float
        95% interval of the paired gain.
    limit_frac : float
        Gain that still is nothing.

    Notes
    -----
    Broken only where the whole interval lies above the limit. A null that a wide interval leaves
    open holds, and says how much it leaves open.
    """
    limit = 1 + limit_frac
    if math.isnan(low):
        return NOTHING, "a null needs two seeds"
    if low > limit:
        return BROKEN, f"surely more than {limit:g}"
    if high > limit:
        return HOLDS, f"not surely above {limit:g}, nor surely below"
    return HOLDS, f"surely at most {limit:g}"


def judge_band(pairs: Paired, band: tuple[float | None, float | None]) -> tuple[str, str]:
    """Judge a band: it holds if every seed lies inside."""
    low = -math.inf if band[0] is None else band[0]
    high = math.inf if band[1] is None else band[1]
    inside = sum(low <= gain <= high for gain in pairs.gains)
    if inside == len(pairs.gains):
        return HOLDS, f"all {inside} seeds in {told_band(band)}"
    where = "in" if low <= pairs.mean <= high else "below" if pairs.mean < low else "above"
    verdict = PARTLY if where == "in" else FAILS
    return verdict, f"{inside} of {len(pairs.gains)} seeds in {told_band(band)}, mean {where}"


def judge_headline(mean: float, low: float, published: float) -> tuple[str, str]:
    """Judge a headline by direction and size.

    Parameters
    ----------
    mean : float
        Our gain.
    low : float
        Lower end of its 95% interval.
    published : float
        The paper's gain.

    Notes
    -----
    Direction: the lower end is above 1. Size: below a gain of 2, gain - 1 within a factor of 2 of
    the paper's; above, the ratio within a factor of 1.6.
    """
    if not low > 1:
        return FAILS, "direction not shown: the interval does not lie above 1"
    if published < SMALL_GAIN:
        times = (mean - 1) / (published - 1) if published != 1 else math.inf
        near = 1 / SMALL_FACTOR <= times <= SMALL_FACTOR
        told = f"gain - 1 is {times:.2g} times the paper's"
    else:
        times = mean / published
        near = 1 / LARGE_FACTOR <= times <= LARGE_FACTOR
        told = f"{times:.2g} times the paper's ratio"
    return (HOLDS if near else PARTLY), f"direction holds; {told}"


def judge_sweep(scores: Sequence[Score], sweep: Sweep) -> tuple[str, str]:
    """Judge whether the gain moves as it must: no step goes surely the other way.

    Parameters
    ----------
    scores : sequence of Score
        Of the treatment, in the order of the values.
    sweep : Sweep
    """
    if sweep.monotone is None:
        return "", ""
    if len(scores) < len(sweep.values):
        return NOTHING, "not every value has results"
    sign = 1.0 if sweep.monotone == "rising" else -1.0
    for before, after in pairwise(scores):
        up, down = (before, after) if sign > 0 else (after, before)
        if down.high < up.low:
            return FAILS, f"from {before.setting.name} to {after.setting.name} it goes back"
    ends = scores[-1].pairs.mean - scores[0].pairs.mean
    if sign * ends <= 0:
        return FAILS, "its ends are not apart as they should be"
    return HOLDS, f"{sweep.monotone}, as it must"


@dataclass(frozen=True, slots=True)
class Standing:
    """A system in one line.

    Parameters
    ----------
    exhibit : Exhibit
    results : Results or None
    scores : tuple of Score
        Empty without results.
    verdict : str
        What is to be said of all of it.
    """

    exhibit: Exhibit
    results: Results | None
    scores: tuple[Score, ...]
    verdict: str

    def treatment(self, name: str) -> Score | None:
        """Return the treatment's score in a setting, if there is one."""
        for score in self.scores:
            if score.arm == TREATMENT and score.setting.name == name:
                return score
        return None

    @property
    def broken_nulls(self) -> tuple[str, ...]:
        """Names of null regimes in which the mechanism surely brings something."""
        return tuple(each.setting.name for each in self.scores if each.verdict == BROKEN)

    @property
    def leading(self) -> Score | None:
        """The score that stands for the system: its first headline, else its first band."""
        card = self.exhibit.card
        for name in (*card.headlines, *card.bands):
            found = self.treatment(name)
            if found is not None:
                return found
        return None

    def as_json(self) -> dict[str, Any]:
        """Return where the system stands as plain values; gains are ratios, NaN is none."""
        card = self.exhibit.card
        return {
            "system": self.exhibit.name,
            "title": card.title,
            "plugs_into": card.plugs_into,
            "verdict": self.verdict,
            "scores": [
                {
                    "regime": each.setting.name,
                    "arm": each.arm,
                    "metric": each.setting.metric,
                    "gain": each.pairs.mean,
                    "low": each.low,
                    "high": each.high,
                    "verdict": each.verdict,
                    "why": each.why,
                    "means": each.means,
                    "counters": each.counters,
                    "loads": each.loads,
                    "picks": each.picks,
                }
                for each in self.scores
            ],
            "sweeps": {
                name: {"verdict": verdict, "why": why}
                for name, (verdict, why) in self.sweeps().items()
            },
        }

    def sweeps(self) -> dict[str, tuple[str, str]]:
        """Return verdict and reason of every sweep."""
        found = {}
        for name, sweep in self.exhibit.card.sweeps.items():
            named = [self.treatment(f"{name}={value}") for value in sweep.values]
            scores = [score for score in named if score is not None]
            found[name] = judge_sweep(scores, sweep)
        return found


def stand(exhibit: Exhibit, results: Results | None) -> Standing:
    """Return where a system stands by its results."""
    if results is None:
        return Standing(exhibit, None, (), NOTHING)
    scores = tuple(score_all(exhibit, results))
    made = Standing(exhibit, results, scores, "")
    return Standing(exhibit, results, scores, _overall(made))


def _overall(standing: Standing) -> str:
    """Return the verdict over all regimes: broken nulls first, then what differs, by group."""
    assert standing.results is not None
    parts = []
    if standing.broken_nulls:
        parts.append(f"null BROKEN ({', '.join(standing.broken_nulls)})")
    for group, word in (("bands", "bands"), ("losses", "losses"), ("headlines", "headlines")):
        named: Mapping[str, object] = getattr(standing.exhibit.card, group)
        scores = [score for name in named if (score := standing.treatment(name)) is not None]
        verdicts = [score.verdict for score in scores]
        right = verdicts.count(HOLDS)
        if verdicts:
            parts.append(f"{right} of {len(verdicts)} {word}")
    wrong = [name for name, (verdict, _) in standing.sweeps().items() if verdict == FAILS]
    if wrong:
        parts.append(f"sweep not monotone ({', '.join(wrong)})")
    nulls = [standing.treatment(name) for name in standing.exhibit.card.nulls]
    if all(score is not None and score.verdict == HOLDS for score in nulls):
        parts.append("nulls hold")
    elif not standing.broken_nulls:
        parts.append("nulls not all run")
    missing = standing.results.missing(standing.exhibit)
    if missing:
        parts.append(f"not run: {', '.join(missing)}")
    stale = standing.results.stale(standing.exhibit)
    if stale:
        parts.append(f"STALE: {', '.join(stale)}")
    return "; ".join(parts)
