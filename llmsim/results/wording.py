"""How numbers and verdicts are put into words, the same in a terminal, a notebook and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmsim.results.slo import Slo

if TYPE_CHECKING:
    from llmsim.results.summary import Summary

NONE = "–"
"""Stands where there is no number."""


def duration(seconds: float) -> str:
    """Return a duration [s] with three digits and the unit that suits it."""
    if math.isnan(seconds):
        return NONE
    if seconds == 0:
        return "0 s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= 0.9995 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} us"


def number(value: float) -> str:
    """Return a number with three digits, thousands separated."""
    if math.isnan(value):
        return NONE
    size = abs(value)
    if size >= 99.95 or math.isclose(value, round(value), rel_tol=1e-9):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.9995 else f"{value:.3g}"


def share(value: float) -> str:
    """Return a share as a percentage that never rounds to 0% or 100% what is neither."""
    if math.isnan(value):
        return NONE
    for digits in (1, 2, 3, 4):
        text = f"{value:.{digits}%}"
        if (value in (0, 1)) or text not in {f"{0:.{digits}%}", f"{1:.{digits}%}"}:
            return text
    return text


def usd(value: float) -> str:
    """Return an amount of money [USD]."""
    if math.isnan(value):
        return NONE
    return f"${value:,.2f}" if value >= 0.995 or value == 0 else f"${value:.3g}"


def quantity(value: float, unit: str) -> str:
    """Return a metric's value for a table whose head names it: durations, shares, money, numbers.

    Parameters
    ----------
    value : float
    unit : str
        As `results.metrics` has it.
    """
    if not math.isfinite(value):
        return NONE
    if unit == "s":
        return duration(value)
    if unit == "fraction":
        return share(value)
    return usd(value) if unit.startswith("USD") else number(value)


def objectives(slo: Slo) -> str:
    """Return the limits that are set, such as ``TTFT <= 1 s, ITL <= 50 ms``."""
    told = {k: f"{k.removesuffix('_s').upper()} ≤ {duration(v)}" for k, v in slo.limits().items()}
    if slo.ttft_per_prompt_token_s:
        told["ttft_s"] += f" + {duration(slo.ttft_per_prompt_token_s)} per prompt token"
    per_class = [f"{each.name}: {objectives(each.slo)}" for each in slo.classes]
    return "; ".join([part for part in (", ".join(told.values()), *per_class) if part])


def worded_limits(slo: Slo) -> dict[str, str]:
    """Return the limit of each kind that somebody has, by field name, such as ``≤ 1 s``."""
    told = {name: f"≤ {duration(limit)}" for name, limit in slo.limits().items()}
    for each in slo.classes:
        told |= dict.fromkeys(each.slo.limits(), "by class")
    return told


def headline(summary: Summary, model: str, fleet: str) -> str:
    """Return what a run says in sentences that need no further explanation.

    Parameters
    ----------
    summary : Summary
    model, fleet : str
        Such as ``llama-3.1-8b`` and ``2 x h100-sxm``.
    """
    value = summary.values()
    parts = [
        f"{model} on {fleet} finished {number(value['requests_finished'])} of "
        f"{number(value['requests'])} requests, {number(value['throughput_rps'])} per second."
    ]
    parts.append(_kept_up(summary))
    if summary.slo.is_set:
        told = share(value["slo_attained_frac"])
        parts.append(
            f"{told} of the requests met the objectives ({objectives(summary.slo)}; target "
            f"{wanted_share(summary)}): {_CLAIMS[summary.claim.value]}."
        )
    else:
        parts.append(f"Half of them had their first token within {duration(value['ttft_p50_s'])}.")
    parts.append(_cost(value))
    return " ".join(part for part in parts if part)


def wanted_share(summary: Summary) -> str:
    """Return how many must keep the objectives, by class where classes have objectives."""
    if not summary.classes:
        return share(summary.slo.attained_frac)
    return ", ".join(
        f"{share(each.slo.attained_frac)} of {each.name or 'the others'}"
        for each in summary.classes
        if each.slo.is_set
    )


_CLAIMS = {
    "met": "the objective is met",
    "missed": "the objective is missed",
    "undecided": "this run cannot decide",
    "not claimed": "an overloaded fleet gives no lasting number",
    "not set": "none is set",
}


def _kept_up(summary: Summary) -> str:
    return {
        "stable": "The fleet kept up with the traffic.",
        "overloaded": "The fleet was overloaded: it could not keep up with the traffic.",
        "too short to tell": "The run is too short to tell whether the fleet keeps up.",
    }[summary.verdict.value]


def _cost(value: Mapping[str, float]) -> str:
    if math.isnan(value["usd_per_hour"]):
        return ""
    told = f"It costs {usd(value['usd_per_hour'])} per hour"
    per_million = value["usd_per_million_output_tokens"]
    if math.isnan(per_million):
        return f"{told}."
    return f"{told}, {usd(per_million)} per million output tokens."
