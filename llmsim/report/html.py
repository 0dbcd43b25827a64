"""``report.html``: one page about a run that needs nothing but a browser."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import Any

from llmsim.report.figures import cdf_svg, kv_svg, load_svg
from llmsim.report.terminal import LATENCIES, fact_rows
from llmsim.results.metrics import EVERY_METRIC, QUANTILES
from llmsim.results.result import Result
from llmsim.results.series import load_over_time
from llmsim.results.summary import Summary
from llmsim.results.wording import NONE, duration, number, share, usd, worded_limits


def render_html(result: Result) -> str:
    """Return the text of ``report.html``.

    Parameters
    ----------
    result : Result

    Returns
    -------
    str
        Self-contained HTML: styles and drawings are inside, nothing is fetched.
    """
    summary = result.evaluate()
    load = load_over_time(result.facts)
    return fill(
        "report.html.j2",
        info=result.info,
        facts=result.facts,
        headline=result.headline(),
        summary=summary,
        latencies=_latency_rows(summary),
        heads=[*QUANTILES, "mean"],
        rows=fact_rows(summary, result.facts),
        metrics=_metric_rows(summary),
        cdf=cdf_svg(result),
        load=load_svg(load),
        kv=kv_svg(load),
    )


def fill(template: str, **values: Any) -> str:
    """Return a page of this room.

    Parameters
    ----------
    template : str
        Name of the file; its style is that of all pages.
    **values
        What stands in it.
    """
    from jinja2 import Environment

    room = files("llmsim.report")
    text = room.joinpath(template).read_text(encoding="utf-8")
    style = room.joinpath("page.css").read_text(encoding="utf-8").rstrip()
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    return made.render(style=style, **values)


def _latency_rows(summary: Summary) -> list[dict[str, Any]]:
    found = {m.name: m for m in summary.metrics}
    limits = worded_limits(summary.slo)
    rows = []
    for key, name in LATENCIES.items():
        metrics = [found[f"{key}_{head}_s"] for head in (*QUANTILES, "mean")]
        limit = limits.get(f"{key}_s")
        rows.append(
            {
                "name": name,
                "cells": [
                    (duration(m.value), _interval(m.ci_low, m.ci_high, "s")) for m in metrics
                ],
                "limit": limit or "",
                "kept": "" if limit is None else share(found[f"slo_{key}_attained_frac"].value),
            }
        )
    return rows


def _metric_rows(summary: Summary) -> list[dict[str, str]]:
    meaning = {d.name: d.meaning for d in EVERY_METRIC}
    return [
        {
            "name": m.name,
            "value": _worded(m.value, m.unit),
            "interval": _interval(m.ci_low, m.ci_high, m.unit),
            "note": m.note,
            "meaning": meaning[m.name],
        }
        for m in summary.metrics
    ]


def _interval(low: float, high: float, unit: str) -> str:
    if math.isnan(low):
        return ""
    return f"{_worded(low, unit)} to {_worded(high, unit)}"


def _worded(value: float, unit: str) -> str:
    if math.isnan(value):
        return NONE
    if unit == "s":
        return duration(value)
    if unit == "fraction":
        return share(value)
    if unit.startswith("USD"):
        return usd(value) + ("/h" if unit == "USD/h" else "")
    return f"{number(value)} {unit}" if unit != "-" else number(value)
