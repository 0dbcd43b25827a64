"""A validation as one HTML file: predicted against measured, and every table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from llmsim.fidelity.scores import HEADLINE, reasons
from llmsim.fidelity.tables import (
    HEAD,
    KV_HEAD,
    TITLES,
    TWINS_HEAD,
    Row,
    capacity_rows,
    group_rows,
    headline_rows,
    memory_rows,
    twins_rows,
    twins_words,
)
from llmsim.fidelity.twins import find_twins
from llmsim.fidelity.validation import SIDES, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = dict[str, list[tuple[float, float]]]

_CELLS: Final = (
    "Cells: median / P90 / worst absolute error and, in brackets, the signed median, in percent. "
    "With coverage: every case that was not scored counts as 100%."
)
_LONG: Final = 40
"""Characters from which on a cell is a sentence."""
_NAMED: Final = 5
"""Sources with a sign of their own in a drawing; all others share one."""


@dataclass(frozen=True, slots=True)
class _Section:
    """One table of the page.

    Parameters
    ----------
    name : str
        Of its heading, once per page.
    title, note : str
    head : tuple of str
    rows : sequence of tuple of str
    """

    name: str
    title: str
    head: Row
    rows: Sequence[Row]
    note: str = ""

    @property
    def worded(self) -> set[int]:
        """Columns of words: the first, and those with a cell that is longer than numbers are."""
        long = {at for row in self.rows for at, cell in enumerate(row) if len(cell) > _LONG}
        return {0} | long


def render_page(report: Report) -> str:
    """Return a page that needs nothing besides itself."""
    from llmsim.report.html import fill

    drawings = [(svg, words) for metric in HEADLINE for svg, words in _scatter(report, metric)]
    return fill(
        "validation.html.j2",
        folder=report.folder.name or str(report.folder),
        headline=headline(report),
        tables=list(_sections(report)),
        drawings=drawings,
    )


def headline(report: Report) -> str:
    """Return how wrong it is in one sentence, of all cases that were simulated."""
    groups = report.groups["all"]
    cases, simulated = sum(g.cases for g in groups), sum(g.simulated for g in groups)
    errors = groups[0].errors if groups else {}
    told = [
        f"{name} by {100 * errors[metric].median:.0f}%"
        for metric, name in (("tpot", "TPOT"), ("ttft", "TTFT"), ("throughput", "throughput"))
        if metric in errors
    ]
    off = f"; in the median they are off in {', '.join(told)}" if told else ""
    return f"{simulated:,} of {cases:,} measured cases were simulated{off}."


def _sections(report: Report) -> Iterator[_Section]:
    everything = [*headline_rows(report), *group_rows(report.groups["all"])]
    yield _Section("all", "All cases", HEAD, everything, _CELLS)
    for side in filter(report.groups.get, SIDES):
        yield _Section(side, f"By {TITLES[side]}", HEAD, group_rows(report.groups[side]))
    ladders = capacity_rows(report.ladders)
    if ladders:
        yield _Section("capacity", "Capacity", ("", "ladders", "largest throughput"), ladders)
    if report.memory:
        yield _Section("memory", "KV memory", KV_HEAD, memory_rows(report.memory))
    twins = find_twins(each.case for each in report.replayed)
    if twins:
        title, words = "Sources against each other", twins_words(twins)
        yield _Section("twins", title, TWINS_HEAD, twins_rows(twins), words)
    missing = [(why, str(count)) for why, count in reasons(report.replayed)]
    if missing:
        yield _Section("missing", "Not simulated", ("reason", "cases"), missing)


def _scatter(report: Report, metric: str) -> Iterator[tuple[str, str]]:
    """Yield predicted against measured on logarithmic axes, a sign per source, and its caption."""
    from llmsim.report.figures import inline_svg

    points: Points = {}
    for (_, name), score in report.chosen.items():
        if name == metric and score.measured > 0 and score.predicted > 0:
            source = score.case.text("source") or "not recorded"
            points.setdefault(source, []).append((score.measured, score.predicted))
    if not points:
        return
    count = sum(map(len, points.values()))
    alt = f"Predicted against measured {metric} of {count} cases, logarithmic axes"
    words = (
        f"{metric}: {count:,} cases; on the line they agree, between the dotted ones within 25%."
    )
    box = (0.14, 0.12, 0.78, 0.74)
    yield inline_svg(lambda axes: _draw(axes, points, metric), alt, metric, 5.0, box), words


def _draw(axes: Axes, points: Points, metric: str) -> None:
    from llmsim.report.figures import ABOVE, COLOURS, INK

    ranked = sorted(points.items(), key=lambda each: -len(each[1]))
    shown = ranked[:_NAMED]
    rest = [pair for _, part in ranked[_NAMED:] for pair in part]
    if rest:
        shown.append((f"{len(ranked) - _NAMED} others", rest))
    signs = [(colour, marker) for marker, colour in product("o^", COLOURS)]
    for (source, part), (colour, marker) in zip(shown, signs, strict=False):
        x, y = zip(*part, strict=True)
        label = f"{source} ({len(part):,})"
        axes.plot(x, y, ls="", marker=marker, markersize=3, color=colour, label=label)
    flat = [value for part in points.values() for pair in part for value in pair]
    ends = math.floor(math.log10(min(flat))), math.ceil(math.log10(max(flat)))
    ticks = [10.0**power for power in range(ends[0], max(ends[1], ends[0] + 1) + 1)]
    low, high = ticks[0], ticks[-1]
    axes.plot([low, high], [low, high], color=INK, linewidth=0.9)
    for factor in (0.8, 1.25):
        axes.plot([low, high], [low * factor, high * factor], color=INK, ls=":", lw=0.8)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    axes.minorticks_off()
    labels = [_told(tick, metric) for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    unit = " [tokens/s]" if metric == "throughput" else ""
    axes.set(xlabel=f"measured {metric}{unit}", ylabel=f"predicted {metric}{unit}")
    above: dict[str, Any] = {**ABOVE, "ncols": 2, "fontsize": 9, "markerscale": 2}
    axes.legend(**above)


def _told(tick: float, metric: str) -> str:
    from llmsim.results.wording import duration

    return f"{tick:,g}" if metric == "throughput" else duration(tick)
