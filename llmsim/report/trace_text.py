"""A trace in words, for the terminal and for scripts."""

from __future__ import annotations

import math
import textwrap
from itertools import pairwise
from typing import Any, Final

import numpy as np

from llmsim.results.wording import duration, share
from llmsim.workload.traceprofile import LengthProfile, TraceProfile

BARS: Final = " ▁▂▃▄▅▆▇█"
COLUMNS: Final = 80
"""Of a terminal that nobody has widened."""

WIDTH: Final = 60
"""Columns of a drawing in the terminal."""

MOST_CLIENTS: Final = 5


def profile_lines(profile: TraceProfile) -> list[str]:
    """Return a trace as lines of at most 80 columns.

    Parameters
    ----------
    profile : TraceProfile
    """
    rows = [(name, text) for name, text in fact_rows(profile)]
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, text in rows:
        first, *more = textwrap.wrap(text, COLUMNS - width - 2)
        lines += [f"{name.ljust(width)}  {first}", *(f"{'':{width}}  {each}" for each in more)]
    lines += ["", f"{'tokens':<10}{'mean':>10}{'p50':>9}{'p90':>9}{'p99':>9}{'longest':>11}"]
    for name, lengths in (("prompt", profile.prompt), ("output", profile.output)):
        cells = "".join(f"{q:>9,}" for q in lengths.quantiles.values())
        lines.append(f"{name:<10}{lengths.mean:>10,.1f}{cells}{lengths.longest:>11,}")
    lines.append("")
    if not all_at_once(profile):
        lines.append(f"requests per minute, most {profile.busiest_minute:,}")
        lines.append(bars(binned(profile.per_minute, WIDTH)))
    for name, lengths in (("prompt", profile.prompt), ("output", profile.output)):
        edges, counts = by_length(lengths)
        lines += [f"{name} lengths, {edges[0]:,} to {edges[-1]:,} tokens, each bar 1/3 octave"]
        lines.append(bars(counts))
    return [line[:COLUMNS] for line in lines]


def fact_rows(profile: TraceProfile) -> list[tuple[str, str]]:
    """Return (what, text) of all that is one number or two."""
    rows = [("requests", f"{profile.requests:,}")]
    if profile.failed:
        rows.append(("failed", f"{profile.failed:,} ({share(profile.failed / profile.requests)})"))
    if profile.skipped_rows:
        rows.append(("skipped", f"{profile.skipped_rows:,} damaged rows"))
    if all_at_once(profile):
        rows.append(("times", "none: all requests come at once; rate_rps draws times for a table"))
    else:
        rows.append(("span", duration(profile.span_s)))
    if math.isfinite(profile.rate_rps):
        rows.append(("rate", f"{profile.rate_rps:.4g}/s"))
    if math.isfinite(profile.gap_cv):
        rows.append(("CV of gaps", f"{profile.gap_cv:.2f} (1: Poisson)"))
    if math.isfinite(profile.minute_cv):
        rows.append(("CV of minutes", f"{profile.minute_cv:.2f}"))
    if profile.same_time_frac > 0 and not all_at_once(profile):
        rows.append(("same time", f"{share(profile.same_time_frac)} as the request before"))
    if profile.repeated:
        count = "1 row" if profile.repeated == 1 else f"{profile.repeated:,} rows"
        rows.append(("repeated", f"{count} like the one before; all are kept"))
    if profile.in_session_frac > 0:
        rows.append(("in sessions", share(profile.in_session_frac)))
    if profile.clients:
        named = list(profile.clients.items())
        shown = [f"{name} {share(n / profile.requests)}" for name, n in named[:MOST_CLIENTS]]
        rows.append((f"clients ({len(named)})", ", ".join(shown)))
    reused = profile.reused_frac
    told = "not recorded" if reused is None else f"{share(reused)} of prompt tokens at best"
    rows.append(("prefix reuse", told))
    return rows


def all_at_once(profile: TraceProfile) -> bool:
    """Whether no request comes later than another, as in a table of lengths alone."""
    return profile.requests > 1 and profile.span_s == 0


def profile_json(profile: TraceProfile) -> dict[str, Any]:
    """Return a trace as values for JSON; what is not a number is null."""
    plain = {
        name: getattr(profile, name)
        for name in profile.__dataclass_fields__
        if name not in ("prompt", "output", "per_minute")
    }
    numbers: dict[str, Any] = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in plain.items()
    }
    for side in ("prompt", "output"):
        lengths: LengthProfile = getattr(profile, side)
        numbers[f"{side}_mean_tokens"] = lengths.mean
        for q, tokens in lengths.quantiles.items():
            numbers[f"{side}_p{round(100 * q)}_tokens"] = tokens
        numbers[f"{side}_longest_tokens"] = lengths.longest
    return numbers


def binned(counts: Any, bins: int) -> list[float]:
    """Return the mean of so many stretches of equal length, fewer if there are not so many."""
    if not len(counts):
        return []
    edges = np.linspace(0, len(counts), min(bins, len(counts)) + 1).round().astype(int)
    return [float(counts[a:b].mean()) for a, b in pairwise(edges)]


def by_length(lengths: LengthProfile) -> tuple[list[int], list[float]]:
    """Return edges [tokens] and requests of lengths in thirds of an octave."""
    longest = max(len(lengths.counts) - 1, 1)
    edges = [1]
    step = 0
    while edges[-1] <= longest:
        step += 1
        edges.append(max(edges[-1] + 1, round(2.0 ** (step / 3.0))))
    upto = np.concatenate(([0], np.cumsum(lengths.counts)))
    at = np.minimum(np.array(edges), len(lengths.counts))
    counts = np.diff(upto[at]).astype(float).tolist()
    first = next((n for n, count in enumerate(counts) if count), 0)
    return edges[first:], counts[first:]


def bars(values: list[float]) -> str:
    """Return values as a row of bars; what is there at all shows."""
    most = max(values, default=0.0)
    if most <= 0:
        return ""
    steps = len(BARS) - 1
    return "".join(BARS[math.ceil(value / most * steps)] for value in values)
