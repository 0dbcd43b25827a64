"""A trace as one page: arrivals, bursts, lengths, clients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmsim.report.figures import ABOVE, COLOURS, inline_svg
from llmsim.report.html import fill
from llmsim.report.trace_text import all_at_once, binned, fact_rows
from llmsim.results.wording import duration
from llmsim.workload.traceprofile import LengthProfile, TraceProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS: Final = 500
_MOST_CLIENTS: Final = 10


def render_trace(profile: TraceProfile, name: str) -> str:
    """Return the page of a trace: self-contained HTML, nothing is fetched.

    Parameters
    ----------
    profile : TraceProfile
    name : str
        Its heading.
    """
    heads = ["mean", *(f"p{round(100 * q)}" for q in profile.prompt.quantiles), "longest"]
    return fill(
        "trace.html.j2",
        name=name,
        headline=_headline(profile),
        rows=fact_rows(profile),
        heads=heads,
        lengths=[("prompt", _cells(profile.prompt)), ("output", _cells(profile.output))],
        arrivals="" if all_at_once(profile) else _arrivals(profile),
        bursts="" if all_at_once(profile) else _bursts(profile),
        cdf=_cdf(profile),
        clients=_clients(profile) if profile.clients else "",
    )


def _headline(profile: TraceProfile) -> str:
    when = " at once" if all_at_once(profile) else f" in {duration(profile.span_s)}"
    text = f"{profile.requests:,} requests{when}"
    if math.isfinite(profile.rate_rps):
        text += f", {profile.rate_rps:.4g} a second"
    told = f"{profile.prompt.mean:,.0f} tokens in and {profile.output.mean:,.0f} out on average"
    return f"{text}; {told}."


def _cells(lengths: LengthProfile) -> list[str]:
    quantiles = [f"{tokens:,}" for tokens in lengths.quantiles.values()]
    return [f"{lengths.mean:,.1f}", *quantiles, f"{lengths.longest:,}"]


def _arrivals(profile: TraceProfile) -> str:
    rates = binned(profile.per_minute, _POINTS)
    alt = f"Requests per minute over time; the busiest minute had {profile.busiest_minute:,}"

    def draw(axes: Axes) -> None:
        hours = np.linspace(0, len(profile.per_minute) / 60.0, len(rates), endpoint=False)
        axes.plot(hours, rates, color=COLOURS[0], drawstyle="steps-post")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time [h]")
        axes.set_ylabel("requests per minute")

    return inline_svg(draw, alt, "arrivals")


def _bursts(profile: TraceProfile) -> str:
    whole = int(profile.span_s // 60)
    counts = profile.per_minute[:whole] if whole else profile.per_minute
    mean = float(counts.mean()) if len(counts) else 0.0
    told = f"{profile.minute_cv:.2f}" if math.isfinite(profile.minute_cv) else "not known"
    alt = f"How minutes differ in requests; their coefficient of variation is {told}"

    def draw(axes: Axes) -> None:
        if len(counts):
            x = np.sort(counts)
            y = 100.0 * np.arange(1, len(x) + 1) / len(x)
            kept = np.unique(np.linspace(0, len(x) - 1, _POINTS).astype(int))
            axes.plot(x[kept], y[kept], color=COLOURS[0], label="this trace")
            spread = np.arange(max(0.0, mean - 5 * mean**0.5), mean + 5 * mean**0.5 + 2)
            if len(spread) > _POINTS:
                spread = np.linspace(spread[0], spread[-1], _POINTS)
            axes.plot(spread, 100.0 * _poisson(spread, mean), color=COLOURS[1], label="Poisson")
            axes.legend(**ABOVE)
        axes.set_ylim(0, 100)
        axes.set_xlabel("requests in a minute")
        axes.set_ylabel("minutes [%]")

    return inline_svg(draw, alt, "bursts")


def _poisson(counts: np.ndarray[Any, Any], mean: float) -> np.ndarray[Any, Any]:
    """Return the share of minutes with no more requests than these (DLMF 8.11.10's Q(n+1, m))."""
    from scipy.special import gammaincc

    upto: np.ndarray[Any, Any] = gammaincc(np.floor(counts) + 1.0, max(mean, 1e-12))
    return upto


def _cdf(profile: TraceProfile) -> str:
    p50 = [lengths.quantiles[0.5] for lengths in (profile.prompt, profile.output)]
    alt = f"Cumulative lengths; half of the prompts are up to {p50[0]:,} tokens, outputs {p50[1]:,}"

    def draw(axes: Axes) -> None:
        sides = (("prompt", profile.prompt), ("output", profile.output))
        for colour, (label, lengths) in zip(COLOURS, sides, strict=False):
            there = np.flatnonzero(lengths.counts)
            if not len(there):
                continue
            upto = 100.0 * np.cumsum(lengths.counts[there]) / lengths.counts.sum()
            kept = np.unique(np.linspace(0, len(there) - 1, _POINTS).astype(int))
            axes.plot(there[kept], upto[kept], color=colour, label=label)
        longest = max(profile.prompt.longest, profile.output.longest, 2)
        ticks = [10**e for e in range(math.ceil(math.log10(longest)) + 1)]
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_ylim(0, 100)
        axes.set_xlabel("tokens")
        axes.set_ylabel("requests [%]")
        axes.legend(**ABOVE)

    return inline_svg(draw, alt, "lengths", box=(0.11, 0.17, 0.83, 0.71))


def _clients(profile: TraceProfile) -> str:
    named = list(profile.clients.items())[:_MOST_CLIENTS]
    alt = f"Requests by client; {named[0][0]} sent most, {named[0][1]:,}"

    def draw(axes: Axes) -> None:
        places = range(len(named))
        axes.barh(places, [count for _, count in named], color=COLOURS[0])
        short = [name if len(name) < 25 else f"{name[:24]}…" for name, _ in named]
        axes.set_yticks(list(places), short)
        axes.invert_yaxis()
        axes.set_xlabel("requests")

    return inline_svg(draw, alt, "clients", box=(0.27, 0.17, 0.70, 0.71))
