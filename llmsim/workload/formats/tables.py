"""Any table with a row per request: CSV, JSON lines or Parquet, with a map of its columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import TraceError
from llmsim.workload.cells import FLAG, NUMBER, STAMP, STAMP_UTC, TEXT, TIMES, TOKENS, Kind
from llmsim.workload.chunk import Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.csvrows import CsvReader, cells_of, delimiter_of
from llmsim.workload.csvrows import Table as Cells
from llmsim.workload.formats.jsonrecords import (
    Record,
    RecordReader,
    shown,
    time_of,
    tokens_of,
)
from llmsim.workload.formats.jsonvalues import first_value
from llmsim.workload.formats.naming import Clients, session_ids
from llmsim.workload.formats.paced import PacedFile, pace
from llmsim.workload.formats.parquetrows import parquet_columns, parquet_tables
from llmsim.workload.formats.roles import Roles
from llmsim.workload.headers import wrong_format
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import Damage, ReplayWorkload, Transform
from llmsim.workload.rows import Rows
from llmsim.workload.tracefile import find_trace, first_lines, line_blocks

Read = Callable[[], Iterator[tuple[Rows, Damage]]]
"""Starts a pass over the rows of a file, and what is wrong in it."""


@dataclass(frozen=True, kw_only=True)
class TableFile(PacedFile):
    """What the three kinds of table let you choose.

    Parameters
    ----------
    columns : mapping of str to str, optional
        Role -> the table's own name: ``arrival``, ``prompt_tokens``, ``output_tokens``,
        ``session``, ``client``, ``failed``. A role that is left out is looked for under its usual
        names; a table without arrivals is paced by `rate_rps`.
    time_unit : {"s", "ms", "us", "ns", "stamp"}, optional
        Unit of numbers in the column of arrivals, or dates such as ``2024-05-10T00:00:00Z``;
        absent: by the end of the column's name (``_s``, ``_ms``, ``_us``, ``_ns``), or by a first
        row that is a date.
    failed : {"drop", "inject"}
        Rows that the column ``failed`` marks: leave them out, or keep them as failures that load
        nothing.
    """

    columns: dict[str, str] | None = None
    time_unit: Literal["s", "ms", "us", "ns", "stamp"] | None = None
    failed: Literal["drop", "inject"] = "drop"

    kind: ClassVar[str] = ""

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file.

        Parameters
        ----------
        seed : int
            For the times, where the table has none and `rate_rps` is given.
        near : Path or None
            Folder that a relative path starts from.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or of another kind, or a column is missing; with the nearest
            that is there.
        """
        check_parameters(self, f"trace '{self.kind}'")
        path = find_trace(self.path, near)
        clients = Clients()
        roles, classes, read = self._reading(path, clients)
        return ReplayWorkload(
            path,
            self,
            read,
            clients=lambda: tuple(clients.names),
            classes=lambda: tuple(classes.names),
            transform=self._pace(seed, roles),
            drop_failed=self.failed == "drop",
        )

    @abstractmethod
    def _reading(self, path: Path, clients: Clients) -> tuple[Roles, ClassColumn, Read]:
        """Return which column is what, the SLO classes, and what starts a pass over the rows."""

    def _roles(self, path: Path, names: Sequence[str], first: Mapping[str, Any]) -> Roles:
        paced = self.rate_rps is not None
        return Roles.find(path, self.columns, self.time_unit, names, first, paced=paced)

    def _pace(self, seed: int, roles: Roles) -> Transform:
        if roles.arrival is not None:
            return lambda rows: lambda: _as_they_are
        return pace(seed, self.rate_rps)


@dataclass(frozen=True, kw_only=True)
class CsvTable(TableFile):
    """A CSV file with a header, which also shows what separates cells, and a row per request."""

    kind: ClassVar[str] = "csv"

    def _reading(self, path: Path, clients: Clients) -> tuple[Roles, ClassColumn, Read]:
        lines = first_lines(path, 2)
        delimiter = delimiter_of(lines[0]) if lines else ","
        top = [cells_of(line, delimiter) for line in lines]
        header = [cell.strip() for cell in top[0]] if top else []
        first = dict(zip(header, top[1] if len(top) > 1 else [], strict=False))
        roles = self._roles(path, header, first)
        classes = ClassColumn(path, self.slo_class_column, header, roles.numbers)
        prompt = roles.prompt_tokens
        table = CsvReader(
            path,
            header,
            _kinds(roles, first) | classes.kinds,
            require=lambda row: (
                "" if row[prompt] > 0 else f"{prompt}: expected at least 1 token, read 0"
            ),
            valid=lambda columns: columns[prompt] > 0,
            delimiter=delimiter,
        )

        def read() -> Iterator[tuple[Rows, Damage]]:
            for block in line_blocks(path, skip_lines=1):
                cells = table.read(block)
                yield _to_rows(cells, roles, clients, classes), cells.faults

        return roles, classes, read


@dataclass(frozen=True, kw_only=True)
class ParquetTable(TableFile):
    """A Parquet file with a row per request."""

    kind: ClassVar[str] = "parquet"

    def _reading(self, path: Path, clients: Clients) -> tuple[Roles, ClassColumn, Read]:
        header, first = parquet_columns(path)
        roles = self._roles(path, header, first)
        classes = ClassColumn(path, self.slo_class_column, header, roles.numbers)
        kinds = _kinds(roles, first) | classes.kinds

        def read() -> Iterator[tuple[Rows, Damage]]:
            for cells in parquet_tables(path, kinds, roles.prompt_tokens):
                yield _to_rows(cells, roles, clients, classes), cells.faults

        return roles, classes, read


@dataclass(frozen=True, kw_only=True)
class JsonTable(TableFile):
    """JSON lines with an object per request, or one JSON list of them.

    Notes
    -----
    ``segments``, a list of [key, length] pairs, is the identity of a prompt: equal pairs are equal
    tokens. `llmsim trace convert` writes it where a trace has one.
    """

    kind: ClassVar[str] = "jsonl"

    def _reading(self, path: Path, clients: Clients) -> tuple[Roles, ClassColumn, Read]:
        classes = ClassColumn(path, self.slo_class_column)
        first = self._first(path)
        roles = self._roles(path, list(first), first)
        # a key that the first record lacks may come in a later one
        rare = {key: key for key in ("session", "client", "failed") if not getattr(roles, key)}
        roles = replace(roles, **rare)
        reader = RecordReader(path, lambda row: self._record(row, roles), clients, classes)
        return roles, classes, reader.read

    def _first(self, path: Path) -> dict[str, Any]:
        first = first_value(path)
        if not isinstance(first, dict):
            top = first_lines(path, 1)
            expected = "JSON lines, an object per request"
            raise TraceError(str(path), [wrong_format(path, expected, top[0] if top else "")])
        return first

    def _record(self, row: dict[str, Any], roles: Roles) -> Record:
        names = {"prompt_tokens": roles.prompt_tokens, "output_tokens": roles.output_tokens}
        if roles.arrival is not None:
            names["arrival"] = roles.arrival
        missing = [name for name in names.values() if name not in row]
        if missing:
            raise ValueError(f"no {', '.join(missing)} in {shown(row)}")
        time_ns = 0
        if roles.arrival is not None:
            value = _number(row[roles.arrival]) if roles.unit != "stamp" else row[roles.arrival]
            if isinstance(value, str) != (roles.unit == "stamp"):
                expected = "a date" if roles.unit == "stamp" else f"a number of {roles.unit}"
                raise ValueError(f"{roles.arrival}: expected {expected}, read {shown(value)}")
            time_ns = time_of(roles.arrival, value, "s" if roles.unit == "stamp" else roles.unit)
        failed = row.get(roles.failed, False) if roles.failed is not None else False
        if failed not in (True, False):
            raise ValueError(f"{roles.failed}: expected true or false, read {shown(failed)}")
        prompt = tokens_of(roles.prompt_tokens, row[roles.prompt_tokens], 1)
        return Record(
            time_ns,
            prompt,
            tokens_of(roles.output_tokens, row[roles.output_tokens]),
            session=_named(row, roles.session),
            client=_named(row, roles.client),
            failed=bool(failed),
            slo_class=_named(row, self.slo_class_column),
            segments=_segments(row, prompt),
        )


def _number(value: Any) -> Any:
    """Return a number that is written as a text as the number; all else as it is."""
    if not isinstance(value, str) or not NUMBER.fullmatch(value) or not value.isascii():
        return value
    return int(value) if value.isdigit() and len(value) < 20 else float(value)


def _named(row: Mapping[str, Any], key: str | None) -> str:
    value = None if key is None else row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise ValueError(f"{key}: expected a name, read {shown(value)}")
    return str(value)


def _segments(row: Mapping[str, Any], prompt: int) -> tuple[tuple[int, int], ...] | None:
    pieces = row.get("segments")
    if pieces is None:
        return None
    try:
        found = tuple((int(key), int(length)) for key, length in pieces)
    except (TypeError, ValueError, OverflowError):
        expected = "expected a list of [key, length] pairs"
        raise ValueError(f"segments: {expected}, read {shown(pieces)}") from None
    if any(key < 0 or length < 1 for key, length in found):
        raise ValueError(f"segments: expected keys of at least 0, read {shown(pieces)}")
    if sum(length for _, length in found) != prompt:
        raise ValueError(f"segments: their lengths do not add up to the prompt's {prompt} tokens")
    return found


def _kinds(roles: Roles, first: Mapping[str, Any]) -> dict[str, Kind]:
    kinds = {roles.prompt_tokens: TOKENS, roles.output_tokens: TOKENS}
    if roles.arrival is not None:
        dated = str(first.get(roles.arrival, "")).strip()
        zoned = dated.endswith("Z") or dated[-6:-5] in ("+", "-")
        date = STAMP_UTC if zoned else STAMP
        kinds[roles.arrival] = date if roles.unit == "stamp" else TIMES[roles.unit]
    if roles.failed is not None:
        kinds[roles.failed] = FLAG
    return kinds | {name: TEXT for name in (roles.session, roles.client) if name is not None}


def _to_rows(cells: Cells, roles: Roles, clients: Clients, classes: ClassColumn) -> Rows:
    n = len(cells.line)
    time_ns = np.zeros(n, np.int64) if roles.arrival is None else cells.numbers[roles.arrival]
    failed: npt.NDArray[np.bool_] = np.zeros(n, dtype=np.bool_)
    if roles.failed is not None:
        failed = cells.numbers[roles.failed] > 0
    session, client = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int32)
    if roles.session is not None:
        session = session_ids(cells.texts[roles.session], numbered=True)
    if roles.client is not None:
        client = clients.codes(cells.texts[roles.client])
    return Rows(
        time_ns=time_ns,
        prompt_tokens=cells.numbers[roles.prompt_tokens],
        output_tokens=cells.numbers[roles.output_tokens],
        line=cells.line,
        session=session,
        client=client,
        failed=failed,
        slo_class=classes.codes(cells.texts),
    )


def _as_they_are(rows: Rows) -> Rows:
    return rows
