"""JSON values of a file one at a time: a line each, elements of a list, or written over lines."""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from llmsim.core.errors import Fault, TraceError
from llmsim.core.files import json_fault
from llmsim.workload.tracefile import LONGEST_LINE_BYTES, first_lines, open_trace, read_some

_READ_BYTES = 1 << 20
_SPACE = " \t\r\n"

Shape = Literal["lines", "list", "values"]
"""JSON lines; one list; or values that go on over several lines, one after another."""


def shape_of(path: Path) -> Shape:
    """Return how the JSON values of a file stand in it.

    What is broken is taken for lines, whose reader names the broken ones.
    """
    if read_some(path, 64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return "list"
    top = first_lines(path, 2)
    first = top[0].strip() if top else ""
    if len(top) > 1 and first.startswith("{"):
        try:
            json.loads(first)
        except json.JSONDecodeError as error:
            return "values" if error.pos >= len(first) - 1 else "lines"
        except (ValueError, RecursionError):
            pass
    return "lines"


def first_value(path: Path) -> Any:
    """Return the first value of a file, None where it cannot be read."""
    shape = shape_of(path)
    if shape != "lines":
        return next(values(path, shape == "list"), (1, None))[1]
    top = first_lines(path, 1)
    try:
        return json.loads(top[0]) if top else None
    except (ValueError, RecursionError):
        return None


def values(path: Path, listed: bool) -> Iterator[tuple[int, Any]]:
    """Yield (line, value), holding one value at a time.

    Parameters
    ----------
    path : Path
    listed : bool
        Elements of one JSON list; else values one after another.

    Raises
    ------
    TraceError
        If one is damaged: behind such a place nothing can be read.
    """
    decoder = json.JSONDecoder()
    text, at, line, begun, over = "", 0, 1, not listed, not listed
    with open_trace(path) as file:
        more = _texts(path, file)
        while True:
            skipped = at
            while at < len(text) and text[at] in _SPACE + ("," if listed and begun else ""):
                at += 1
            line += text.count("\n", skipped, at)
            if at == len(text):
                text, at = next(more, ""), 0
                if not text:
                    break
                continue
            if not begun:
                if text[at] != "[":
                    raise _damaged(path, line, f"expected a JSON list, read {text[at : at + 40]!r}")
                begun, at = True, at + 1
                continue
            if listed and text[at] == "]":
                over = True
                break
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                fresh = next(more, "")
                endless = isinstance(error, RecursionError) or len(text) - at > LONGEST_LINE_BYTES
                if endless or not fresh:
                    raise _damaged(path, line, f"not JSON: {json_fault(error)}") from None
                text, at = text[at:] + fresh, 0
                continue
            yield line, value
            line += text.count("\n", at, end)
            at = end
    if not over:
        raise _damaged(path, line, "the list has no end: the file is cut off")


def _texts(path: Path, file: Any) -> Iterator[str]:
    """Yield a file as text, whole characters at a time."""
    decode = codecs.getincrementaldecoder("utf-8-sig")(errors="strict").decode
    try:
        while read := file.read(_READ_BYTES):
            if text := decode(read):
                yield text
        decode(b"", True)
    except UnicodeDecodeError as error:
        raise _damaged(path, 1, f"not UTF-8: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, 1, f"the file is cut off or damaged: {error}") from None


def _damaged(path: Path, line: int, message: str) -> TraceError:
    return TraceError(str(path), [Fault(f"{path}:{line}", "", message)])
