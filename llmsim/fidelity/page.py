"""A validation as one HTML file: predicted against measured, and every table."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import Final

from llmsim.fidelity.scores import HEADLINE, reasons
from llmsim.fidelity.tables import (
    HEAD,
    KV_HEAD,
    TITLES,
    Row,
    capacity_rows,
    group_rows,
    headline_rows,
    memory_rows,
)
from llmsim.fidelity.validation import SIDES, Report

_COLOURS: Final = ("#3b6fb6", "#c4572e", "#3c8d5a", "#8a5ab5", "#b0902c", "#5f6b76")

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px }
td, th { border-bottom: 1px solid #ccc8; padding: .2rem .6rem; text-align: right }
td:first-child, th:first-child { text-align: left }
svg { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #dde } }
"""


def render_page(report: Report) -> str:
    """Return a page that needs nothing besides itself."""
    parts = [
        "<h1>How wrong is llmsim?</h1>",
        "<p>Cells: median / P90 / worst absolute error and, in brackets, the signed median, in "
        "percent. <i>With coverage</i> counts every case that was not scored as 100%.</p>",
        _table(HEAD, [*headline_rows(report), *group_rows(report.groups["all"])]),
    ]
    parts += [_scatter(report, metric) for metric in HEADLINE]
    for side in SIDES:
        parts += [f"<h2>By {TITLES[side]}</h2>", _table(HEAD, group_rows(report.groups[side]))]
    ladders = capacity_rows(report.ladders)
    if ladders:
        parts += ["<h2>Capacity</h2>", _table(("", "ladders", "largest throughput"), ladders)]
    if report.memory:
        parts += ["<h2>KV memory</h2>", _table(KV_HEAD, memory_rows(report.memory))]
    missing = [(why, str(count)) for why, count in reasons(report.replayed)]
    if missing:
        parts += ["<h2>Not simulated</h2>", _table(("reason", "cases"), missing)]
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>How wrong is llmsim?</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


def _table(head: Row, rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _scatter(report: Report, metric: str) -> str:
    """Draw predicted against measured on logarithmic axes, one colour per source."""
    points: dict[str, list[tuple[float, float]]] = {}
    for (_, name), score in report.chosen.items():
        if name == metric and score.measured > 0 and score.predicted > 0:
            source = score.case.text("source")
            points.setdefault(source, []).append((score.measured, score.predicted))
    if not points:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmsim"}):
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        axes = figure.add_subplot()
        for place, (source, part) in enumerate(sorted(points.items(), key=lambda x: -len(x[1]))):
            x, y = zip(*part, strict=True)
            colour = _COLOURS[min(place, len(_COLOURS) - 1)]
            axes.scatter(x, y, s=7, alpha=0.5, color=colour, label=f"{source} ({len(part)})")
        flat = [value for part in points.values() for pair in part for value in pair]
        low, high = 10 ** math.floor(math.log10(min(flat))), 10 ** math.ceil(math.log10(max(flat)))
        axes.plot([low, high], [low, high], color="#888", linewidth=0.8)
        for factor in (0.8, 1.25):
            axes.plot([low, high], [low * factor, high * factor], color="#888", ls=":", lw=0.7)
        unit = "tokens/s" if metric == "throughput" else "s"
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        axes.set(xlabel=f"measured {metric} [{unit}]", ylabel=f"predicted {metric} [{unit}]")
        axes.legend(fontsize=7, loc="upper left", frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    drawn = text.getvalue()
    return f"<h2>{metric}</h2>\n{drawn[drawn.index('<svg') :]}"
