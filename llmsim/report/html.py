"""``report.html``: one page about a run that needs nothing but a browser."""

from __future__ import annotations

import itertools
import math
from importlib.resources import files
from typing import Any

import numpy as np

from llmsim.report.figures import cdf_svg, kv_svg, load_svg
from llmsim.report.groups import HEADS, groups
from llmsim.report.lengths import FEW, LengthTable, by_length
from llmsim.report.terminal import LATENCIES, fact_rows
from llmsim.report.typical import MOST_ROWS, TypicalStep, typical_steps
from llmsim.results.columns import OUTCOMES
from llmsim.results.metrics import EVERY_METRIC, QUANTILES
from llmsim.results.result import Result
from llmsim.results.series import load_over_time
from llmsim.results.summary import Summary
from llmsim.results.wording import NONE, duration, number, share, usd, wanted_share, worded_limits


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
    steps, unexplained = typical_steps(result)
    return fill(
        "report.html.j2",
        info=result.info,
        facts=result.facts,
        headline=result.headline(),
        summary=summary,
        latencies=_latency_rows(summary),
        heads=[*QUANTILES, "mean"],
        evidence=_evidence(summary, _asked(result)),
        wanted=wanted_share(summary),
        lengths=_length_rows(by_length(result), result.slo.attained_frac),
        groups=groups(result),
        group_heads=HEADS if summary.slo.is_set else HEADS[:-1],
        steps=[_step_rows(step) for step in steps],
        unexplained=unexplained,
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


def _asked(result: Result) -> int:
    """Return how many requests the shares in the summary are of."""
    late = result.table.numbers("arrival_s") >= result.warmup_s
    failed = result.table.codes("outcome", OUTCOMES) == OUTCOMES.index("provider_failed")
    return int((late & ~failed).sum())


def _evidence(summary: Summary, asked: int) -> list[tuple[str, ...]]:
    """Return a line for each objective: what is asked, who kept it, how sure that is."""
    found = {m.name: m for m in summary.metrics}
    lines: list[tuple[str, ...]] = []
    limits = worded_limits(summary.slo)
    names = [(key.removesuffix("_s"), limit) for key, limit in limits.items()]
    for key, limit in [*names, ("", "all of them")] if names else []:
        metric = found[f"slo_{key}_attained_frac" if key else "slo_attained_frac"]
        missed = number(round((1 - metric.value) * asked)) if asked else NONE
        told = share(metric.value), _interval(metric.ci_low, metric.ci_high, "fraction")
        lines.append((key.upper() or "together", limit, *told, missed))
    return lines


def _length_rows(found: LengthTable | None, target_frac: float) -> dict[str, Any] | None:
    """Return the table of lengths in words, and how strongly each cell is coloured."""
    if found is None:
        return None
    known = found.values[~np.isnan(found.values)]
    low, high = float(known.min()), float(known.max())
    rows = []
    for line, amounts in zip(found.values.tolist(), found.requests.tolist(), strict=True):
        cells = []
        for value, requests in zip(line, amounts, strict=True):
            if found.is_share:
                kind = "kept" if value >= target_frac else "broken"
                depth = 0.0 if value >= target_frac else (target_frac - value) / target_frac
            else:
                kind = "time"
                depth = math.log(value / low) / math.log(high / low) if value > low > 0 else 0.0
            text = share(value) if found.is_share else duration(value)
            if not requests:
                kind, depth, text = "", 0.0, NONE
            few = " few" if 0 < requests < FEW else ""
            told = {"kind": kind + few, "depth": round(depth, 3), "text": text}
            cells.append(told | {"requests": f"{requests:,}"})
        rows.append(cells)
    return {
        "prompts": _spans(found.prompt_edges),
        "rows": list(zip(_spans(found.output_edges), rows, strict=True)),
        "is_share": found.is_share,
        "unfinished": found.unfinished,
        "target": share(target_frac),
        "few": FEW,
    }


def _spans(edges: tuple[int, ...]) -> list[str]:
    pairs = list(itertools.pairwise(edges))
    told = [f"{low:,}–{high - 1:,}" if high - low > 1 else f"{low:,}" for low, high in pairs]
    if len(pairs) > 1:
        told[0], told[-1] = f"under {pairs[0][1]:,}", f"from {pairs[-1][0]:,}"
    return told


def _step_rows(step: TypicalStep) -> dict[str, Any]:
    """Return what bounds each operator of a step, the longest first; the rest in one line."""
    shown = step.breakdown.rows[:MOST_ROWS]
    rows = [(r.name, duration(r.seconds), share(r.share_frac), r.bound) for r in shown]
    rest = step.breakdown.rows[MOST_ROWS:]
    if rest:
        seconds, part = (sum(getattr(r, n) for r in rest) for n in ("seconds", "share_frac"))
        rows.append((f"{len(rest)} more", duration(seconds), share(part), ""))
    by_bound: dict[str, float] = {}
    for r in step.breakdown.rows:
        by_bound[r.bound] = by_bound.get(r.bound, 0.0) + r.share_frac
    most = sorted(by_bound.items(), key=lambda item: -item[1])
    return {
        "pool": step.pool,
        "what": step.what,
        "seconds": duration(step.breakdown.seconds),
        "rows": rows,
        "bounds": ", ".join(f"{share(part)} {bound}" for bound, part in most if part > 0),
    }


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
