"""JSON objects of a file to rows: one record at a time, each with its line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmsim.core.errors import Fault, TraceError
from llmsim.core.files import json_fault
from llmsim.workload.cells import LATEST_S, UNITS_NS, read_stamp, whole_ns
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.formats.jsonvalues import shape_of, values
from llmsim.workload.formats.naming import Clients, session_number
from llmsim.workload.headers import wrong_format
from llmsim.workload.replay import Damage, ReplayWorkload, TraceFile
from llmsim.workload.rows import MOST_TOKENS, Rows
from llmsim.workload.tracefile import Block, first_lines, line_blocks

LIST_ROWS = 4096
"""Records that are handed on together where they do not stand on lines."""


class Record(NamedTuple):
    """What one record of a file says of a request.

    Parameters
    ----------
    time_ns : int [ns]
    prompt, output : int [tokens]
    session, client, slo_class : str
        Empty where there is none.
    failed : bool
    segments : tuple of (int, int) or None
    """

    time_ns: int
    prompt: int
    output: int
    session: str = ""
    client: str = ""
    failed: bool = False
    slo_class: str = ""
    segments: tuple[tuple[int, int], ...] | None = None


Parse = Callable[[dict[str, Any]], "Record | list[Record] | None"]
"""Reads a JSON object; None where it is about something else; ValueError says what is wrong."""


@dataclass(slots=True)
class RecordReader:
    """Turns the JSON objects of one file into rows.

    Parameters
    ----------
    path : Path
    parse : Parse
    clients : Clients
    classes : ClassColumn
    """

    path: Path
    parse: Parse
    clients: Clients
    classes: ClassColumn

    def read(self) -> Iterator[tuple[Rows, Damage]]:
        """Yield the rows of a file: an object a line, a list of them, or objects over lines.

        Raises
        ------
        TraceError
            If what is not on lines is damaged: behind such a place nothing can be read.
        """
        shape = shape_of(self.path)
        if shape == "lines":
            for block in line_blocks(self.path):
                yield self._gather(_objects(block))
            return
        held: list[tuple[int, Any]] = []
        for found in values(self.path, shape == "list"):
            held.append(found)
            if len(held) >= LIST_ROWS:
                yield self._gather(iter(held))
                held = []
        yield self._gather(iter(held))

    def _gather(self, objects: Iterator[tuple[int, Any]]) -> tuple[Rows, Damage]:
        found: list[tuple[int, Record]] = []
        damage: Damage = []
        for line, row in objects:
            try:
                if isinstance(row, ValueError):
                    raise row
                if not isinstance(row, dict):
                    raise ValueError(f"expected a JSON object, read {shown(row)}")
                said = self.parse(row)
            except ValueError as error:
                damage.append((line, Fault(f"{self.path}:{line}", "", str(error))))
                continue
            records = said if isinstance(said, list) else [] if said is None else [said]
            found += [(line, record) for record in records]
        return self._rows(found), damage

    def _rows(self, found: list[tuple[int, Record]]) -> Rows:
        n = len(found)
        pieces: Any = None
        if any(record.segments is not None for _, record in found):
            pieces = np.fromiter((r.segments for _, r in found), dtype=np.object_, count=n)
        named = self.classes.name is not None
        codes = [self.classes.code(record.slo_class) for _, record in found] if named else []
        return Rows(
            time_ns=np.array([r.time_ns for _, r in found], dtype=np.int64),
            prompt_tokens=np.array([r.prompt for _, r in found], dtype=np.int64),
            output_tokens=np.array([r.output for _, r in found], dtype=np.int64),
            line=np.array([line for line, _ in found], dtype=np.int64),
            session=np.array([session_number(r.session) for _, r in found], dtype=np.int64),
            client=np.array([self.clients.code(r.client) for _, r in found], dtype=np.int32),
            failed=np.array([r.failed for _, r in found], dtype=np.bool_),
            segments=pieces,
            slo_class=np.array(codes, dtype=np.int16) if named else None,
        )


def open_records(path: Path, options: TraceFile, parse: Parse, expected: str) -> ReplayWorkload:
    """Return the workload of a file of JSON objects.

    Parameters
    ----------
    path : Path
    options : TraceFile
    parse : Parse
    expected : str
        What the file should hold, for the message where it does not.

    Raises
    ------
    TraceError
        If it does not begin with a JSON object or a list.
    """
    top = first_lines(path, 1)
    if not top or not top[0].lstrip().startswith(("{", "[")):
        raise TraceError(str(path), [wrong_format(path, expected, top[0] if top else "")])
    clients, classes = Clients(), ClassColumn(path, options.slo_class_column)
    return ReplayWorkload(
        path,
        options,
        RecordReader(path, parse, clients, classes).read,
        clients=lambda: tuple(clients.names),
        classes=lambda: tuple(classes.names),
        drop_failed=getattr(options, "failed", "inject") == "drop",
    )


def _objects(block: Block) -> Iterator[tuple[int, Any]]:
    for line, raw in enumerate(block.data.split(b"\n"), block.first_line):
        if not raw.strip():
            continue
        try:
            yield line, json.loads(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw)
        except (ValueError, RecursionError) as error:
            yield line, ValueError(f"not a line of JSON ({json_fault(error)}): {shown(raw)}")


def shown(value: Any) -> str:
    """Return a value as it is quoted in a message, cut after 80 characters."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def tokens_of(name: str, value: Any, least: int = 0) -> int:
    """Return a number of tokens, or say why it is none.

    Parameters
    ----------
    name : str
        What the file calls it.
    value : Any
        A whole number; 12.0 is one, and "12", as exports of 64-bit columns have it; true is not.
    least : int [tokens]

    Raises
    ------
    ValueError
        If it is no whole number, below `least` or above 2^31 - 1.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    whole = isinstance(value, float) and value.is_integer()
    if not (whole or isinstance(value, int)) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number of tokens, read {shown(value)}")
    if not least <= value <= MOST_TOKENS:
        raise ValueError(f"{name}: expected {least} to {MOST_TOKENS} tokens, read {shown(value)}")
    return int(value)


def time_of(name: str, value: Any, unit: str = "s") -> int:
    """Return a time [ns]: a number in a unit, or text such as 2024-05-10T00:00:00.5Z.

    Raises
    ------
    ValueError
        If it is neither, not finite, negative or after 2261.
    """
    if isinstance(value, str):
        try:
            return read_stamp(value.strip())
        except ValueError as error:
            raise ValueError(f"{name}: {error}, read {shown(value)}") from None
    unit_ns = UNITS_NS[unit]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: expected a time, read {shown(value)}")
    if not 0 <= value < LATEST_S * (UNITS_NS["s"] // unit_ns):
        raise ValueError(f"{name}: expected a time from 0 s to 292 years, read {shown(value)}")
    return value * unit_ns if isinstance(value, int) else whole_ns(value, unit_ns)
