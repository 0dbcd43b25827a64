"""Traffic from vLLM's own metrics: how many requests a scrape counted, and how long they were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from llmsim.core.errors import Fault, TraceError
from llmsim.core.rng import stream
from llmsim.workload.chunk import Workload
from llmsim.workload.formats.generated import Floats, Generated, GeneratedWorkload, made_rows
from llmsim.workload.formats.metricsamples import samples_of
from llmsim.workload.parameters import check_parameters
from llmsim.workload.rows import Rows
from llmsim.workload.tracefile import find_trace

PROMPT: Final = "vllm:request_prompt_tokens_bucket"
OUTPUT: Final = "vllm:request_generation_tokens_bucket"
"""Histograms of finished requests (vLLM, docs/design/metrics.md)."""

MOST_REQUESTS: Final = 100_000_000
"""Between two scrapes: more in one piece would not fit into memory."""

Series = dict[tuple[str, ...], dict[float, float]]
"""Labels but `le` -> of each time [s] a count."""


@dataclass(slots=True)
class _Counts:
    """Counts of one histogram by bound, label set and time."""

    by_bound: dict[float, Series] = field(default_factory=dict)

    def add(self, labels: Mapping[str, str], at_s: float, count: float) -> None:
        rest = tuple(sorted(f"{k}={v}" for k, v in labels.items() if k not in ("le", "__name__")))
        bound = float(labels["le"])
        self.by_bound.setdefault(bound, {}).setdefault(rest, {})[at_s] = count

    def increases(self) -> dict[float, dict[tuple[float, float], float]]:
        """Return bound -> (from, to) -> requests.

        Where any bound of a label set fell, the server was started anew and all of its counts
        began at 0 in between.
        """
        fell = {
            (labels, span)
            for series in self.by_bound.values()
            for labels, counts in series.items()
            for span in pairwise(sorted(counts))
            if counts[span[1]] < counts[span[0]]
        }
        found: dict[float, dict[tuple[float, float], float]] = {}
        for bound, series in self.by_bound.items():
            into = found.setdefault(bound, {})
            for labels, counts in series.items():
                for span in pairwise(sorted(counts)):
                    before = 0.0 if (labels, span) in fell else counts[span[0]]
                    into[span] = into.get(span, 0.0) + counts[span[1]] - before
        return found


@dataclass(frozen=True, kw_only=True)
class VllmMetrics(Generated):
    """Traffic made from a Prometheus or OpenTelemetry export of a vLLM server's metrics.

    Notes
    -----
    Needs the raw counters ``vllm:request_prompt_tokens_bucket`` and
    ``vllm:request_generation_tokens_bucket`` over time: the JSON that Prometheus' ``query_range``
    returns for them (a matrix; one or several answers), text with a time stamp on each line, such
    as ``promtool tsdb dump-openmetrics`` writes, or the histograms in OTLP/JSON
    (``resourceMetrics``, as the OpenTelemetry collector's file exporter writes them). Between two
    scrapes as many requests arrive as were counted, at random; how bursty they were within is not
    in these metrics. vLLM counts a request when it has finished, so that everything comes an
    answer later than it was sent. Prompt and output are drawn by themselves, evenly within a
    bucket, and no longer than the last bound.
    """

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the traffic.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or damaged, or lacks one of the histograms.
        """
        check_parameters(self, "trace 'vllm-metrics'")
        path = find_trace(self.path, near)
        found = {PROMPT: _Counts(), OUTPUT: _Counts()}
        for where, labels, at_s, count in samples_of(path, frozenset(found)):
            name = labels["__name__"]
            if name in found:
                _check(where, labels, at_s, count)
                found[name].add(labels, at_s, count)
        lacking = [name for name, counts in found.items() if len(counts.by_bound) < 2]
        if lacking:
            message = "no such histogram over time in this file"
            raise TraceError(str(path), [Fault(str(path), name, message) for name in lacking])
        prompt, output = grown = [_by_time(counts) for counts in found.values()]
        once = [name for name, spans in zip(found, grown, strict=True) if not spans]
        if once:
            message = "no counter of it was scraped twice: what came in between is not known"
            raise TraceError(str(path), [Fault(str(path), name, message) for name in once])
        return GeneratedWorkload(path, self, lambda: _rows(self, prompt, output, seed))


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Requests of one stretch of time by length.

    Parameters
    ----------
    bounds : ndarray of float (n,) [tokens]
        Upper ones, finite, ascending.
    upto : ndarray of float (n,)
        Requests no longer than that.
    total : float
    """

    bounds: Floats
    upto: Floats
    total: float

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Return lengths [tokens], even within a bucket."""
        edges = np.concatenate(([0.0], self.bounds))
        share = np.concatenate(([0.0], np.maximum.accumulate(self.upto)))
        if self.total <= 0:
            return np.ones(count)
        drawn = rng.random(count) * self.total
        at = np.minimum(drawn, share[-1])
        # whole tokens of a bucket (low, high] are low + 1 ... high, each as likely
        right = np.clip(np.searchsorted(share, at, side="left"), 1, len(edges) - 1)
        width = share[right] - share[right - 1]
        part = np.where(width > 0, (at - share[right - 1]) / np.where(width > 0, width, 1.0), 1.0)
        low, high = np.floor(edges[right - 1]), np.floor(edges[right])
        lengths = np.ceil(low + part * (high - low))
        lengths[drawn > share[-1]] = math.floor(edges[-1])  # how far beyond it is not known
        whole: Floats = np.maximum(lengths, 1.0)
        return whole


def _by_time(counts: _Counts) -> dict[tuple[float, float], _Histogram]:
    grown = counts.increases()
    bounds = sorted(bound for bound in grown if math.isfinite(bound))
    spans = sorted({span for by_span in grown.values() for span in by_span})
    found = {}
    for span in spans:
        upto = np.array([grown[bound].get(span, 0.0) for bound in bounds])
        whole = grown.get(math.inf, {}).get(span, float(upto[-1]) if len(upto) else 0.0)
        found[span] = _Histogram(np.array(bounds), upto, max(whole, 0.0))
    return found


def _rows(
    options: VllmMetrics,
    prompt: Mapping[tuple[float, float], _Histogram],
    output: Mapping[tuple[float, float], _Histogram],
    seed: int,
) -> Iterator[Rows]:
    rng = stream(seed, "vllm-metrics")
    origin_s = min(span[0] for span in prompt)
    owed = 0.0
    for span, histogram in prompt.items():
        # what scaling leaves of a request is carried on, so that none is lost in the long run
        owed += histogram.total * options.rate_scale
        count = int(owed + 1e-9)
        owed -= count
        if not count:
            continue
        if count > MOST_REQUESTS:
            message = f"{count:g} requests between two scrapes, at most {MOST_REQUESTS:g}"
            raise TraceError(options.path, [Fault(options.path, "", message)])
        at_s = np.sort(span[0] - origin_s + rng.random(count) * (span[1] - span[0]))
        answers = output.get(span, histogram)
        yield made_rows(at_s, histogram.draw(rng, count), answers.draw(rng, count))


def _check(where: str, labels: Mapping[str, str], at_s: float, count: float) -> None:
    try:
        bound = float(labels.get("le", ""))
    except ValueError:
        bound = math.nan
    wrong = "le: expected a bound" if math.isnan(bound) else ""
    if not (math.isfinite(at_s) and 0 <= at_s < 9.2e9):
        wrong = f"expected a time in seconds since 1970, read {at_s!r}"
    elif not (math.isfinite(count) and count >= 0):
        wrong = f"expected a count of at least 0, read {count!r}"
    if wrong:
        raise TraceError(where, [Fault(where, labels["__name__"], wrong)])
