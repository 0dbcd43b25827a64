"""Samples of vLLM's histograms: Prometheus' JSON and text, or OpenTelemetry's metrics as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, TraceError
from llmsim.core.files import json_fault
from llmsim.core.units import MIB, NS_PER_S
from llmsim.workload.formats.jsonrecords import shown
from llmsim.workload.tracefile import line_blocks, read_some

LARGEST_BYTES: Final = 512 * MIB
"""A larger JSON export is refused unread: it must be held at once [bytes]."""

_MS_FROM: Final = 10**11
"""A stamp above this is in milliseconds: in seconds it would be the year 5138."""

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+(\S+))?\s*")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Sample = tuple[str, Mapping[str, str], float, float]
"""Where it stands, labels with ``__name__``, time [s], count of requests up to the bound."""


def samples_of(path: Path, wanted: frozenset[str]) -> Iterator[Sample]:
    """Yield every sample of a file, of whichever of the three formats.

    Parameters
    ----------
    path : Path
    wanted : frozenset of str
        Names of the counters, such as ``vllm:request_prompt_tokens_bucket``; of text, others are
        passed over.

    Raises
    ------
    TraceError
        If the file is damaged, or has no times.
    """
    top = read_some(path, 64).removeprefix(b"\xef\xbb\xbf").lstrip()
    yield from _json(path) if top.startswith(b"{") else _text(path, wanted)


def _json(path: Path) -> Iterator[Sample]:
    """Yield the samples of all documents: a query each, or an export each."""
    raw = read_some(path, LARGEST_BYTES + 1)
    sums: dict[tuple[str, ...], list[float]] = {}
    try:
        if len(raw) > LARGEST_BYTES:
            raise ValueError(f"more than {LARGEST_BYTES // MIB} MiB; use the text format")
        for told in _documents(raw.decode("utf-8-sig")):
            if "resourceMetrics" in told:
                yield from _exported(path, told, sums)
            elif not ({"resourceSpans", "resourceLogs"} & set(told)):
                yield from _answered(path, told)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {json_fault(error)}"
        message = f"no answer of Prometheus' query_range, and no export of OpenTelemetry ({what})"
        raise TraceError(str(path), [Fault(str(path), "", message)]) from None


def _documents(text: str) -> Iterator[dict[str, Any]]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found, at = decoder.raw_decode(text, at)
        yield found


def _answered(path: Path, told: dict[str, Any]) -> Iterator[Sample]:
    """Yield the samples of an answer of Prometheus' query_range."""
    data: Any = told.get("data", told)
    if data.get("resultType") == "vector":
        message = "one scrape says nothing of how fast they came."
        fault = Fault(str(path), "", message, "Ask query_range.")
        raise TraceError(str(path), [fault])
    for series in data["result"]:
        labels = {"__name__": ""} | series["metric"]
        where = f"{path}: {labels['__name__']}"
        for at_s, count in series["values"]:
            yield where, labels, float(at_s), float(count)


def _exported(
    path: Path, told: dict[str, Any], sums: dict[tuple[str, ...], list[float]]
) -> Iterator[Sample]:
    """Yield the samples of OTLP/JSON metrics, counts of each bucket made ones up to its bound.

    `sums` carries what was counted so far of histograms that report what came since the last time
    (``AGGREGATION_TEMPORALITY_DELTA``).
    """
    for group in told["resourceMetrics"]:
        resource = group.get("resource", {}).get("attributes", [])
        for scope in group.get("scopeMetrics", []):
            for metric in scope.get("metrics", []):
                name = str(metric["name"]).replace("vllm_", "vllm:", 1) + "_bucket"
                histogram = metric.get("histogram", {})
                delta = histogram.get("aggregationTemporality") in (1, _DELTA)
                for point in histogram.get("dataPoints", []):
                    labels = _labels([*resource, *point.get("attributes", [])])
                    labels["__name__"] = name
                    counts = [float(count) for count in point["bucketCounts"]]
                    times = [int(point["timeUnixNano"]) / NS_PER_S]
                    if delta:
                        key = tuple(f"{k}={v}" for k, v in sorted(labels.items()))
                        before = sums.get(key)
                        if before is None:
                            times.insert(0, int(point["startTimeUnixNano"]) / NS_PER_S)
                            before = [0.0] * len(counts)
                        sums[key] = [a + b for a, b in zip(before, counts, strict=True)]
                        counts = sums[key]
                    bounds = [*map(str, point["explicitBounds"]), "+Inf"]
                    for at_s in times:
                        begun = len(times) > 1 and at_s == times[0]
                        for bound, upto in zip(bounds, accumulate(counts), strict=True):
                            where = f"{path}: {name}"
                            yield where, labels | {"le": bound}, at_s, 0.0 if begun else upto


_DELTA: Final = "AGGREGATION_TEMPORALITY_DELTA"


def _labels(attributes: list[Any]) -> dict[str, str]:
    return {str(each["key"]): str(next(iter(each["value"].values()), "")) for each in attributes}


def _text(path: Path, wanted: frozenset[str]) -> Iterator[Sample]:
    """Yield the samples of OpenMetrics (seconds) or of Prometheus' text (milliseconds)."""
    for block in line_blocks(path):
        text = block.data.decode(errors="replace")
        for line, said in enumerate(text.split("\n"), block.first_line):
            if not said.startswith("vllm:"):
                continue
            where = f"{path}:{line}"
            match = _LINE.fullmatch(said.rstrip("\r"))
            if match is None:
                message = f"expected name{{labels}} value time, read {shown(said)}"
                raise TraceError(where, [Fault(where, "", message)])
            name, labels, value, at = match.groups()
            if name not in wanted:
                continue
            if at is None:
                message = "a sample without a time: one scrape says nothing of how fast they came"
                hint = "Export a range: promtool tsdb dump-openmetrics, or query_range."
                raise TraceError(where, [Fault(where, "", message, hint)])
            told = dict(_LABEL.findall(labels or ""))
            try:
                at_s, count = float(at), float(value)
            except ValueError:
                message = f"expected a count and a time, read {shown(said)}"
                raise TraceError(where, [Fault(where, "", message)]) from None
            yield where, {"__name__": name} | told, at_s / (1e3 if at_s >= _MS_FROM else 1), count
