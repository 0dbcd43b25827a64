"""Results as tables of text, the same in a terminal, a page and the documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from llmsim.gallery.card import KNEE, KNEE_PER_GPU, Band, Headline, Null, Regime
from llmsim.gallery.reading import BASELINE, TREATMENT, Setting
from llmsim.gallery.results import COUNTERS
from llmsim.gallery.scoring import Score, Standing, told_band, told_gain
from llmsim.results.metrics import EVERY_METRIC
from llmsim.results.wording import NONE, duration, number, share

LIST_HEAD: Final = ("system", "plugs into", "paper", "ours", "band", "verdict")
GAIN_HEAD: Final = ("regime", "expected", "gain (95%)", "verdict", "baseline", "treatment", "load")
ABLATION_HEAD: Final = ("ablation", "in", "gain (95%)", "value")
COUNTER_HEAD: Final = ("regime", "arm", *COUNTERS.values())

_UNITS: Final = {each.name: each.unit for each in EVERY_METRIC}


def list_row(standing: Standing) -> tuple[str, ...]:
    """Return a system as one row of `LIST_HEAD`."""
    card = standing.exhibit.card
    papers = [told_gain(each.gain) for each in card.headlines.values()]
    leading = standing.leading
    band = next(iter(card.bands.values()), None)
    return (
        standing.exhibit.name,
        ", ".join(card.plugs_into),
        " / ".join(papers) or NONE,
        NONE if leading is None else leading.told,
        NONE if band is None else told_band(band.band),
        standing.verdict,
    )


def gain_rows(standing: Standing) -> list[tuple[str, ...]]:
    """Return a row of `GAIN_HEAD` per regime."""
    rows: list[tuple[str, ...]] = []
    for score in standing.scores:
        if score.arm != TREATMENT:
            continue
        setting = score.setting
        rows.append(
            (
                setting.name,
                expected(setting.regime),
                score.told,
                f"{score.verdict}: {score.why}" if score.verdict else "",
                _value(score, BASELINE),
                _value(score, TREATMENT),
                _load(score),
            )
        )
    return rows


def expected(regime: Regime) -> str:
    """Return what a regime expects, in words."""
    if isinstance(regime, Null):
        return f"at most {1 + regime.limit_frac:g}"
    if isinstance(regime, Headline):
        return f"paper {told_gain(regime.gain)}"
    return told_band(regime.band) if isinstance(regime, Band) else NONE


def ablation_rows(standing: Standing) -> list[tuple[str, ...]]:
    """Return a row of `ABLATION_HEAD` per ablation, after one for the whole treatment."""
    rows: list[tuple[str, ...]] = []
    ablated = [score for score in standing.scores if score.arm != TREATMENT]
    for home in dict.fromkeys(score.setting.name for score in ablated):
        whole = standing.treatment(home)
        if whole is not None:
            rows.append(("(whole)", home, whole.told, _value(whole, TREATMENT)))
        rows += [
            (score.setting.arms[score.arm].label, home, score.told, _value(score, score.arm))
            for score in ablated
            if score.setting.name == home
        ]
    return rows


def counter_rows(standing: Standing) -> list[tuple[str, ...]]:
    """Return a row of `COUNTER_HEAD` per regime and arm: what a ratio may hide."""
    rows: list[tuple[str, ...]] = []
    for score in standing.scores:
        sides = (BASELINE, TREATMENT) if score.arm == TREATMENT else (score.arm,)
        for side in sides:
            cells = [_counter(name, score.counters[side][name]) for name in COUNTERS]
            rows.append((score.setting.name, side, *cells))
    return rows


def regime_lines(standing: Standing) -> list[tuple[str, str]]:
    """Return (regime, what it is and where the expectation comes from) for every regime."""
    lines: list[tuple[str, str]] = []
    for setting in standing.exhibit.settings():
        regime = setting.regime
        name = setting.name.partition("=")[0] if setting.group == "sweeps" else setting.name
        told = [regime.says.strip(), f"Expected by: {regime.source.strip()}."]
        if isinstance(regime, Null):
            told.insert(1, f"Gone: {regime.removes.strip()}.")
        if isinstance(regime, Headline) and regime.cause:
            told.append(f"Suspected cause of the difference: {regime.cause.strip()}")
        if not lines or lines[-1][0] != name:
            lines.append((name, " ".join(told)))
    return lines


def metric_told(setting: Setting) -> str:
    """Return what is compared in a setting, in words."""
    if setting.metric not in (KNEE, KNEE_PER_GPU):
        at = "" if setting.of_knee is None else f" at {share(setting.of_knee)} of the knee"
        return f"{setting.metric}{at}"
    limits = [f"{name} <= {limit:g}" for name, limit in setting.limits.items()]
    per = " per GPU" if setting.metric == KNEE_PER_GPU else ""
    return f"largest load{per} with {', '.join(limits) or 'the SLO attained'}"


def _value(score: Score, side: str) -> str:
    metric, value = score.setting.metric, score.means[side]
    picked = score.picks.get(side if side in score.picks else TREATMENT, "")
    tail = f" [{picked}]" if picked and side != BASELINE else ""
    if metric in (KNEE, KNEE_PER_GPU):
        return number(value) + tail
    return _told(_UNITS.get(metric, ""), value) + tail


def _load(score: Score) -> str:
    load = score.loads[BASELINE]
    return NONE if score.setting.searches or math.isnan(load) else number(load)


def _counter(name: str, value: float) -> str:
    return share(value) if name.endswith("_frac") else number(value)


def _told(unit: str, value: float) -> str:
    if unit == "s":
        return duration(value)
    return share(value) if unit == "fraction" else number(value)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)
