"""Did the fleet keep up? The saturation verdict, and what may be claimed about the SLO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from llmsim.core.units import NS_PER_S
from llmsim.results.facts import RunFacts
from llmsim.results.intervals import BATCHES, Interval, slope_interval
from llmsim.results.series import fleet_integrals
from llmsim.results.slo import Slo
from llmsim.results.wording import share

Saturation = Literal["stable", "overloaded", "too short to tell"]
Claim = Literal["met", "missed", "undecided", "not claimed", "not set"]

NOT_SERVED: Final = ("queued_at_end", "running_at_end", "rejected", "timed_out")
"""Outcomes that say the fleet did not serve a request it could have served."""

MAX_NOT_SERVED_FRAC: Final = 0.01
"""More than this share not served is overload (DESIGN section 10)."""

MIN_ARRIVALS: Final = 200
"""Arrivals in the last half of the arrival period; with fewer there is no verdict on growth."""

MATERIAL_FRAC: Final = 0.001
"""Growth of the queue below this share of the arrivals is no overload, however certain."""

RESOLVED_FRAC: Final = 0.05
"""`stable` needs a run that would have shown this share of the arrivals piling up."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the fleet kept up with its traffic.

    Parameters
    ----------
    value : str
        ``stable``, ``overloaded`` or ``too short to tell``.
    reason : str
        One sentence with the evidence.
    slope : Interval [requests/s]
        Growth of the number of waiting requests, with its 95% interval; NaN if not judged.
    start_s, end_s : float [s]
        Window over which growth was judged: the last half of the arrival period.
    not_served_frac : float
        Share of the arrivals that ended in one of `NOT_SERVED`.
    """

    value: Saturation
    reason: str
    slope: Interval
    start_s: float
    end_s: float
    not_served_frac: float


@dataclass(frozen=True, slots=True)
class SloClaim:
    """What this run lets one say about its objectives.

    Parameters
    ----------
    value : str
        ``met``, ``missed``, ``undecided``, ``not claimed`` (the fleet was overloaded) or
        ``not set``.
    reason : str
        One sentence.
    """

    value: Claim
    reason: str


def judge(
    facts: RunFacts, outcomes: Mapping[str, int], first_s: float, last_s: float, late_arrivals: int
) -> Verdict:
    """Judge whether a fleet kept up.

    Parameters
    ----------
    facts : RunFacts
    outcomes : mapping of str to int
        Requests by outcome, over the whole run.
    first_s, last_s : float [s]
        First and last arrival.
    late_arrivals : int
        Arrivals in the last half of the arrival period.

    Notes
    -----
    Overloaded if more than 1% was not served, or if the 95% interval of the slope of waiting over
    the last half of the arrival period lies above zero and the growth is material: more than
    `MATERIAL_FRAC` of the arrivals and more than one request per replica. An interrupted run is
    judged by its slope alone, since its open requests were never given the time to finish.
    """
    total = sum(outcomes.values()) - outcomes.get("provider_failed", 0)
    not_served = sum(outcomes.get(name, 0) for name in NOT_SERVED) / total if total else 0.0
    start_s = (first_s + last_s) / 2
    growth = _growth(facts, start_s, last_s, late_arrivals)
    slope = growth["waiting"] if growth else Interval(math.nan, math.nan, math.nan)

    def verdict(value: Saturation, reason: str) -> Verdict:
        return Verdict(value, reason, slope, start_s, last_s, not_served)

    if not_served > MAX_NOT_SERVED_FRAC and not facts.interrupted:
        which = ", ".join(
            f"{outcomes[n]:,} {n.replace('_', ' ')}" for n in NOT_SERVED if outcomes.get(n)
        )
        return verdict("overloaded", f"{not_served:.1%} of the requests were not served ({which}).")
    if growth is None:
        return verdict(
            "too short to tell",
            f"the last half of the arrival period holds {_arrivals(late_arrivals)} in "
            f"{max(last_s - start_s, 0.0):.3g} s; a verdict needs {MIN_ARRIVALS} in "
            f"{BATCHES} bins of the timeline or more.",
        )
    return verdict(*_by_growth(facts, growth, last_s - start_s, late_arrivals))


def _arrivals(count: int) -> str:
    return f"{count:,} arrival" if count == 1 else f"{count:,} arrivals"


def _growth(
    facts: RunFacts, start_s: float, end_s: float, arrivals: int
) -> dict[str, Interval] | None:
    """Return slopes [requests/s] of what waits and runs, or None if there is too little of it."""
    coarsest_ns = max((r.timeline.bin_ns for r in facts.replicas), default=0)
    width_ns = (end_s - start_s) * NS_PER_S / BATCHES
    if arrivals < MIN_ARRIVALS or not facts.replicas or width_ns < coarsest_ns:
        return None
    edges = np.linspace(start_s, end_s, BATCHES + 1) * NS_PER_S
    return {
        name: slope_interval(
            fleet_integrals(facts.replicas, name, edges, facts.end_ns) / width_ns,
            width_ns / NS_PER_S,
        )
        for name in ("waiting", "running")
    }


def _by_growth(
    facts: RunFacts, growth: Mapping[str, Interval], span_s: float, arrivals: int
) -> tuple[Saturation, str]:
    waiting, running = growth["waiting"], growth["running"]
    material = max(MATERIAL_FRAC * arrivals, len(facts.replicas))
    told = (
        f"over the last half of the arrivals the queue changed by {waiting.value * span_s:+.3g} "
        f"requests (95% interval {waiting.low * span_s:+.3g} to {waiting.high * span_s:+.3g}) "
        f"while {arrivals:,} arrived"
    )
    if waiting.low > 0 and waiting.value * span_s > material:
        return "overloaded", f"{told}: it grows."
    if waiting.high * span_s > max(RESOLVED_FRAC * arrivals, material):
        return "too short to tell", f"{told}: growth cannot be ruled out."
    if running.low > 0 and running.value * span_s > max(RESOLVED_FRAC * arrivals, material):
        grown = running.value * span_s
        return (
            "too short to tell",
            f"the fleet was still filling up: {grown:+.3g} running requests over the last half "
            "of the arrivals.",
        )
    return "stable", f"{told}: it does not grow."


def claim(slo: Slo, attained: Interval, verdict: Verdict) -> SloClaim:
    """Say what a run shows about an SLO.

    Parameters
    ----------
    slo : Slo
    attained : Interval
        Share of requests that met every limit.
    verdict : Verdict
        Of the same run: an overloaded fleet has no steady state to make a claim about.
    """
    if not slo.is_set:
        return SloClaim("not set", "the scenario sets no objective (slo.ttft_s, slo.tpot_s, ...).")
    target = slo.attained_frac
    told = f"{share(attained.value)} of the requests met every objective (target {share(target)})"
    if not math.isnan(attained.low):
        told += f", 95% interval {share(attained.low)} to {share(attained.high)}"
    if verdict.value == "overloaded":
        return SloClaim(
            "not claimed",
            f"{told}, but the fleet was overloaded: a longer run gives other numbers.",
        )
    if math.isnan(attained.value):
        return SloClaim("undecided", "no request arrived after the warm-up.")
    if math.isnan(attained.low):
        return SloClaim("undecided", f"{told}: too few requests for an interval.")
    if attained.high < target:
        return SloClaim("missed", f"{told}.")
    if attained.low < target:
        return SloClaim("undecided", f"{told}: the interval holds the target.")
    if verdict.value == "too short to tell":
        return SloClaim("undecided", f"{told}, but the run is too short to tell if it lasts.")
    return SloClaim("met", f"{told}.")
