"""``report.html`` of a sweep: one page that needs nothing but a browser."""

from __future__ import annotations

import itertools
from importlib.metadata import version
from typing import Final

from llmsim.report.html import fill
from llmsim.report.sweep_figures import heat_map, trade_off
from llmsim.report.sweeps import (
    BEST,
    FRONT,
    TIE,
    cell,
    head,
    mark,
    order,
    shown_metrics,
    size,
    words,
)
from llmsim.results.wording import NONE
from llmsim.scenario.document import dump_yaml
from llmsim.study.axes import flow
from llmsim.study.swept import GOOD, Drawer, Sweep

MOST_ROWS: Final = 500
"""Points in the table of a page; all of them are in ``points.csv``."""

MOST_MAPS: Final = 3
"""Pairs of axes that are drawn."""


def render_sweep(sweep: Sweep) -> str:
    """Return the text of ``report.html``.

    Parameters
    ----------
    sweep : Sweep

    Returns
    -------
    str
        Self-contained HTML: styles and drawings are inside, nothing is fetched.
    """
    metrics, numbers = shown_metrics(sweep), order(sweep)
    rows = []
    for number in numbers[:MOST_ROWS]:
        row, (status, note) = sweep.rows[number], sweep.standings[number]
        kind = "best" if number == sweep.best_number else "" if status in GOOD else "off"
        cells = [flow(value) for value in row.change.values()]
        cells += [cell(row, metric) if row.done else NONE for metric in metrics]
        told = {"mark": mark(sweep, number), "cells": cells, "kind": kind}
        rows.append(told | {"status": status, "note": note})
    trade = " against ".join(each.metric for each in sweep.goal.trade_offs())
    return fill(
        "sweep.html.j2",
        name=sweep.base.name,
        size=size(sweep),
        paths=[axis.path for axis in sweep.axes],
        interrupted=sweep.interrupted,
        words=words(sweep),
        drawings=_drawings(sweep),
        marks=f"{BEST} best, {TIE} cannot be told from it, {FRONT} nobody beats it: {trade}",
        heads=[*sweep.labels.values(), *map(head, metrics)],
        rows=rows,
        more=max(0, len(numbers) - MOST_ROWS),
        yaml=dump_yaml(sweep.plain()),
        version=version("llmsim"),
    )


def _drawings(sweep: Sweep) -> list[tuple[str, str]]:
    """Return the drawings with their captions."""
    first = sweep.goal.objectives[0].metric
    paths = [axis.path for axis in sweep.axes]
    drawn = {each.metric for each in sweep.goal.trade_offs()[:2]}
    limited = any(each.metric in drawn for each in sweep.goal.conditions)
    limits = " Dashed: the limit, where it lies inside." if limited else ""
    found = [
        (
            trade_off(sweep).svg,
            "Every point by what is wanted of it and what it costs; steps join the points that "
            f"nobody beats in both.{limits}",
        )
    ]
    others = ", the best of the other axes on top" if len(paths) > 2 else ""
    for x, y in list(itertools.combinations(paths, 2))[:MOST_MAPS]:
        text = f"{first} by {x} and {y}{others}; framed: the best; grey or crossed: not feasible."
        found.append((heat_map(sweep, x, y).svg, text))
    if len(paths) == 1:
        found.append((heat_map(sweep).svg, f"{first} by {paths[0]}."))
    return found


DRAWER: Final = Drawer(render_sweep, heat_map, trade_off)
"""What `llmsim.sweep` hands to a sweep."""
