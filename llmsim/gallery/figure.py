"""The gains of a system as a drawing, and as one page that needs nothing but a browser."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from llmsim.gallery.card import Band, Headline, Null
from llmsim.gallery.reading import TREATMENT
from llmsim.gallery.scoring import HOLDS, Score, Standing, told_gain
from llmsim.gallery.tables import (
    ABLATION_HEAD,
    COUNTER_HEAD,
    GAIN_HEAD,
    ablation_rows,
    counter_rows,
    gain_rows,
    regime_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAIN, _NULL, _BAND, _PAPER = "#0b63b5", "#5b6670", "#cfe2f5", "#c2500a"
_NONE_BAND: Final = "#e6e9ec"
_INK: Final = "#1c2126"
_GRID: Final = "#d8dde2"
_OF_PAGE: Final = {
    _GAIN: "var(--line-1)",
    _NULL: "var(--soft)",
    _BAND: "var(--band)",
    _PAPER: "var(--line-2)",
    _NONE_BAND: "var(--none)",
    _GRID: "var(--grid)",
    _INK: "currentColor",
    "#000000": "currentColor",
    "#ffffff": "none",
}
"""Colours of the file that stands alone -> those of a page that is light or dark."""

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llmsim",  # ids that do not change from run to run
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "legend.frameon": False,
}


def gains_svg(standing: Standing) -> str:
    """Return the gains of every regime with bands and intervals, and the sweeps, as an SVG file."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = [each for each in standing.scores if each.setting.group != "sweeps"]
    rows = [each for each in rows if math.isfinite(each.pairs.mean) and each.pairs.mean > 0]
    sweeps = list(standing.exhibit.card.sweeps)
    heights = [max(1.0, 0.42 * len(rows) + 0.6), *(2.4 for _ in sweeps)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, sum(heights) + 0.7), layout="constrained")
        FigureCanvasSVG(figure)
        drawn = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        _forest(drawn[0], rows)
        drawn[0].set_title(f"{standing.exhibit.card.title}: gain over the baseline", loc="left")
        for axes, name in zip(drawn[1:], sweeps, strict=True):
            _sweep(axes, standing, name)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", facecolor="white", metadata=nothing)
    return buffer.getvalue()


def _forest(axes: Axes, rows: Sequence[Score]) -> None:
    labels = []
    for place, score in enumerate(rows):
        regime = score.setting.regime
        is_null = isinstance(regime, Null)
        main = score.arm == TREATMENT
        if main and isinstance(regime, Band):
            low, high = regime.band
            _shade(axes, place, low, high, _BAND)
        if main and isinstance(regime, Null):
            _shade(axes, place, None, 1 + regime.limit_frac, _NONE_BAND)
        if main and isinstance(regime, Headline):
            axes.plot([regime.gain], [place], "D", color=_PAPER, markersize=6)
        colour = _NULL if is_null or not main else _GAIN
        known = [gain for gain in score.pairs.known if gain > 0]
        axes.plot(known, [place] * len(known), "o", color=colour, alpha=0.35, markersize=4)
        if math.isfinite(score.low):
            axes.plot([score.low, score.high], [place, place], color=colour, linewidth=2)
        axes.plot([score.pairs.mean], [place], "s", color=colour, markersize=6)
        name = score.setting.name if main else f"  {score.arm}"
        labels.append(f"{name}  {told_gain(score.pairs.mean)}")
    axes.axvline(1.0, color=_INK, linewidth=1)
    axes.set_xscale("log")
    published = [r.gain for s in rows if isinstance(r := s.setting.regime, Headline)]
    _log_ticks(axes, [gain for score in rows for gain in (*score.pairs.known, *published)])
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("gain (log scale); band shaded, paper as diamond, a dot per seed")


def _shade(axes: Axes, place: int, low: float | None, high: float | None, colour: str) -> None:
    left = 1e-3 if low is None or low <= 0 else low
    right = 1e3 if high is None else high
    axes.fill_betweenx([place - 0.32, place + 0.32], left, right, color=colour, linewidth=0)


def _log_ticks(axes: Axes, marks: Sequence[float]) -> None:
    """Lay plain numbers along a logarithmic axis that holds every mark."""
    marks = [mark for mark in marks if mark > 0]
    low, high = min([0.8, *marks]) / 1.15, max([1.25, *marks]) * 1.15
    steps = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)
    ticks = [step for step in steps if low <= step <= high]
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(low, high)


def _sweep(axes: Axes, standing: Standing, name: str) -> None:
    sweep = standing.exhibit.card.sweeps[name]
    named = [(value, standing.treatment(f"{name}={value}")) for value in sweep.values]
    found = [(str(value), score) for value, score in named if score is not None]
    places = range(len(found))
    axes.plot(places, [score.pairs.mean for _, score in found], "-s", color=_GAIN)
    for place, (_, score) in zip(places, found, strict=True):
        if math.isfinite(score.low):
            axes.plot([place, place], [score.low, score.high], color=_GAIN, linewidth=2)
    axes.axhline(1.0, color=_INK, linewidth=1)
    axes.set_xticks(list(places), [value for value, _ in found])
    axes.set_ylabel("gain")
    axes.set_xlabel(sweep.key)
    axes.set_title(name, loc="left", fontsize=10)


def render_gallery(standing: Standing) -> str:
    """Return one self-contained page about a system: drawing, gains, nulls, ablations."""
    from jinja2 import Environment

    text = files("llmsim.gallery").joinpath("gallery.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    svg = gains_svg(standing)
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    for colour, of_page in _OF_PAGE.items():
        body = body.replace(colour, of_page)
    tables = [
        ("Gains", GAIN_HEAD, gain_rows(standing)),
        ("Ablations", ABLATION_HEAD, ablation_rows(standing)),
        ("Beside the ratios", COUNTER_HEAD, counter_rows(standing)),
    ]
    return template.render(
        card=standing.exhibit.card,
        name=standing.exhibit.name,
        verdict=standing.verdict,
        kind=_kind(standing),
        svg=body,
        tables=[table for table in tables if table[2]],
        regimes=regime_lines(standing),
        results=standing.results,
    )


def _kind(standing: Standing) -> str:
    """Return the colour of a verdict: all held, a null broken, or something in between."""
    if standing.broken_nulls:
        return "bad"
    card = standing.exhibit.card
    named = [*card.bands, *card.losses, *card.headlines, *card.nulls]
    scores = [standing.treatment(name) for name in named]
    held = all(score is not None and score.verdict == HOLDS for score in scores)
    return "good" if held else "unsure"
