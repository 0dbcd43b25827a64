"""Which kind of trace a file is, by what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, TraceError
from llmsim.workload.csvrows import cells_of, delimiter_of
from llmsim.workload.formats.roles import NEEDED, USUAL, guess
from llmsim.workload.headers import looks_like
from llmsim.workload.tracefile import find_trace, first_lines, read_some

_TOP_BYTES: Final = 64 * 1024
_PARQUET_MAGIC: Final = b"PAR1"
"""First bytes of a Parquet file (https://parquet.apache.org/docs/file-format/)."""


def detect_kind(path: Path, known: tuple[str, ...] = ()) -> str:
    """Return the kind of a trace.

    Parameters
    ----------
    path : Path
        A file, a folder of a ServeGen pool, or what the tables of one have in front.
    known : tuple of str
        All kinds, for the message.

    Returns
    -------
    str
        A name of the registry of traces.

    Raises
    ------
    TraceError
        If the file cannot be read or is of no kind that can be told by its content.
    """
    pool = path.is_dir() or any(path.parent.glob(f"{escape(path.name)}_arrivals.csv*"))
    if pool and not path.is_file():
        return "servegen"
    path = find_trace(str(path), None)
    top = read_some(path, _TOP_BYTES)
    if top.startswith(_PARQUET_MAGIC):
        return "parquet"
    text = top.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").lstrip()
    line = next((line for line in first_lines(path, 3) if line.strip()), "")
    said = _json_kind if text.startswith(("{", "[")) else _text_kind
    kind = looks_like(line) or said(text, line)
    if not kind:
        if not text:
            raise TraceError(str(path), [Fault(str(path), "", "is empty.")])
        shown = line if len(line) <= 100 else f"{line[:97]}..."
        message = f"no known kind of trace begins with {shown!r}."
        hint = f"Say which kind it is: {', '.join(known)}." if known else ""
        hint += " Of a table with a row per request: kind csv, and `columns` (docs/traces.md)."
        raise TraceError(str(path), [Fault(f"{path}:1", "", message, hint)])
    return kind


def _json_kind(text: str, line: str) -> str:
    if '"total_input_tokens"' in text and '"completed"' in text:
        return "bench-result"
    if '"resourceSpans"' in text and '"gen_ai.' in text:
        return "otel-spans"
    if '"resultType"' in text or '"resourceMetrics"' in text:
        return "vllm-metrics"
    if '"resourceSpans"' in text:
        return "otel-spans"
    kind = _record_kind(_first_record(text, line))
    if text.startswith("["):  # where the first is longer than what was read, it is a text
        return "sharegpt" if kind in ("", "bench-dataset") else kind
    return kind


def _first_record(text: str, line: str) -> dict[str, Any]:
    """Return the first object of a file: its first line, or what begins there, or in a list."""
    found: Any = None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        with suppress(ValueError, RecursionError):
            found = json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())[0]
    if isinstance(found, list):
        found = found[0] if found else None
    return found if isinstance(found, dict) else {}


def _record_kind(row: dict[str, Any]) -> str:
    inner = row.get("response")
    if "usage" in row or "usage" in (inner if isinstance(inner, dict) else {}):
        return "openai-log"
    if isinstance(inner, dict) and isinstance(inner.get("body"), dict):
        return "openai-log"
    if "attributes" in row:
        return "otel-spans"
    if _is_table(row):
        return "jsonl"
    texts = ("conversations", "conversation", "items", "messages", "prompt", "turns")
    return "bench-dataset" if any(key in row for key in texts) else ""


def _is_table(row: dict[str, Any]) -> bool:
    # texts under names such as prompt and response are what a benchmark asks, not lengths
    return _has_roles(row, [key for key, value in row.items() if not isinstance(value, str | list)])


def _text_kind(text: str, line: str) -> str:
    if text.startswith(("# ", "vllm:")) and "vllm:" in text:
        return "vllm-metrics"
    names = cells_of(line, delimiter_of(line))
    return "csv" if _has_roles(names, names) else ""


def _has_roles(names: Iterable[Any], lengths: Iterable[Any]) -> bool:
    """Return whether it is a table: what its columns mean is asked where that cannot be known.

    `lengths` are those of the names that may be of numbers.
    """
    plain = {str(name).strip().lower() for name in names}
    told = [str(name).strip() for name in lengths]
    return all(plain & set(USUAL[role]) or guess(role, told) for role in NEEDED)
