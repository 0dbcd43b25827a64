"""OpenTelemetry spans of model calls, as the collector's file exporter and SDKs write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from llmsim.workload.chunk import Workload
from llmsim.workload.formats.jsonrecords import Record, open_records, shown, time_of, tokens_of
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import TraceFile
from llmsim.workload.tracefile import find_trace

_PROMPT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
"""Attributes of the GenAI semantic conventions, and what they were called before v1.27 (vLLM and
older instrumentation still write these)."""

_OLD_SCOPE: Final = "instrumentationLibrarySpans"
"""What OTLP called ``scopeSpans`` before v0.19."""

_CALLS: Final = ("chat", "text_completion", "generate_content", "completion")
"""``gen_ai.operation.name`` of a call to a model; agents and tools sum up those inside them."""


@dataclass(frozen=True, kw_only=True)
class GenAISpans(TraceFile):
    """Spans with GenAI attributes, as JSON.

    Parameters
    ----------
    failed : {"drop", "inject"}
        Spans with an error status: leave them out, or keep them as failures that load nothing.

    Notes
    -----
    An object is an OTLP/JSON export (``resourceSpans``), or one span with ``attributes`` and
    ``start_time``. A span without token usage, or of an agent or a tool, is no request. The
    session is ``gen_ai.conversation.id``, the client the resource's ``service.name``. A span is
    written when it ends, so `max_disorder_s` is an hour here.
    """

    failed: Literal["drop", "inject"] = "drop"
    max_disorder_s: float = 3600.0

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file; the seed is not used.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or is no JSON.
        """
        check_parameters(self, "trace 'otel-spans'")
        path = find_trace(self.path, near)
        expected = "JSON lines of OpenTelemetry spans (resourceSpans, or attributes)"
        return open_records(path, self, self._records, expected)

    def _records(self, row: dict[str, Any]) -> list[Record]:
        if "resourceMetrics" in row or "resourceLogs" in row:
            return []  # the collector's exporter writes all signals into one file
        if not ("resourceSpans" in row or "attributes" in row):
            raise ValueError(f"no resourceSpans or attributes in {shown(row)}")
        found = (self._record(span, service) for span, service in _spans(row))
        return [record for record in found if record is not None]

    def _record(self, span: dict[str, Any], service: str) -> Record | None:
        told = _attributes(span.get("attributes"))
        prompt, output = (_first(told, keys) for keys in (_PROMPT, _OUTPUT))
        failed = _is_error(span) or "error.type" in told
        if told.get("gen_ai.operation.name", "chat") not in _CALLS:
            return None
        if prompt is None and output is None and not (failed and _is_call(told)):
            return None
        start = span.get("startTimeUnixNano")
        time_ns = (
            time_of("start_time", span.get("start_time"))
            if start is None
            else time_of("startTimeUnixNano", _whole(start), "ns")
        )
        named = told.get(self.slo_class_column or "", "")
        return Record(
            time_ns,
            tokens_of(_PROMPT[0], prompt or 0, 0 if failed else 1),
            tokens_of(_OUTPUT[0], output or 0),
            session=str(told.get("gen_ai.conversation.id", "")),
            client=service,
            failed=failed,
            slo_class=named if isinstance(named, str) else "",
        )


def _spans(row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (span, service) of a line."""
    if "resourceSpans" not in row:
        resource = row.get("resource")
        inner = resource.get("attributes") if isinstance(resource, dict) else None
        yield row, str(_attributes(inner).get("service.name", ""))
        return
    for group in _objects(row["resourceSpans"]):
        resource = group.get("resource")
        inner = resource.get("attributes") if isinstance(resource, dict) else None
        service = str(_attributes(inner).get("service.name", ""))
        for scope in _objects(group.get("scopeSpans", group.get(_OLD_SCOPE, []))):
            for span in _objects(scope.get("spans", [])):
                yield span, service


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"expected a list of objects, read {shown(value)}")
    return value


def _attributes(said: Any) -> dict[str, Any]:
    """Return attributes by name: OTLP/JSON lists key and typed value, SDKs write a mapping."""
    if isinstance(said, dict):
        return said
    if not isinstance(said, list):
        return {}
    return {
        str(each["key"]): _value(each.get("value"))
        for each in said
        if isinstance(each, dict) and "key" in each
    }


def _value(typed: Any) -> Any:
    if not isinstance(typed, dict):
        return typed
    if "intValue" in typed:  # 64-bit integers are strings in OTLP/JSON
        return _whole(typed["intValue"])
    return next(iter(typed.values()), None)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _first(told: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((told[name] for name in names if name in told), None)


def _is_call(told: dict[str, Any]) -> bool:
    return "gen_ai.operation.name" in told or "gen_ai.request.model" in told


def _is_error(span: dict[str, Any]) -> bool:
    status = span.get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else None
    return code in (2, "STATUS_CODE_ERROR", "ERROR")
