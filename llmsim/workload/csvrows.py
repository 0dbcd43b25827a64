"""CSV blocks to columns: pyarrow at full speed, row by row only where a block has damage.

pyarrow and not pandas: measured on 1,000,000 BurstGPT rows, parsing takes 0.27-0.39 s against
0.43-0.53 s, and the import 0.03 s against 0.2-0.6 s.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault
from llmsim.core.units import NS_PER_S
from llmsim.workload.rows import MOST_TOKENS
from llmsim.workload.tracefile import Block

Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A text column as codes into its distinct values."""

    codes: npt.NDArray[np.int32]
    values: list[str]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a column is read.

    Parameters
    ----------
    arrow : str
        Name of the pyarrow type of the fast path.
    parse : callable
        Reads one cell exactly; raises ValueError saying what was expected.
    """

    arrow: str
    parse: Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Table:
    """The good rows of a block, and what is wrong with the others.

    Parameters
    ----------
    numbers : mapping of str to ndarray of int64 (n,)
        Times [ns] and token counts [tokens] by column.
    texts : mapping of str to Text
    line : ndarray of int64 (n,)
        Line numbers in the file, counted from 1.
    faults : list of (int, Fault)
        One for each damaged row, with its line.
    """

    numbers: Mapping[str, npt.NDArray[np.int64]]
    texts: Mapping[str, Text]
    line: npt.NDArray[np.int64]
    faults: list[tuple[int, Fault]]


_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_WHOLE = re.compile(r"-?\d+")
_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
_LATEST_S = 9.2e9
"""Largest time that fits into int64 nanoseconds [s]."""


def _tokens(cell: str) -> int:
    if not _WHOLE.fullmatch(cell) or not cell.isascii():
        raise ValueError("expected a whole number of tokens")
    if int(cell) < 0:
        raise ValueError("expected no less than 0 tokens")
    if int(cell) > MOST_TOKENS:
        raise ValueError(f"expected at most {MOST_TOKENS} tokens")
    return int(cell)


def _seconds(cell: str) -> int:
    if not _NUMBER.fullmatch(cell) or not cell.isascii():
        raise ValueError("expected a time in seconds")
    value = float(cell)
    if not 0 <= value < _LATEST_S:
        raise ValueError("expected a time of at least 0 s and below 292 years")
    return math.floor(value) * NS_PER_S + round(math.modf(value)[0] * NS_PER_S)


def _stamp(cell: str) -> int:
    match = _STAMP.fullmatch(cell)
    if not match:
        raise ValueError("expected a date and time like 2023-11-16 18:15:46.6805900")
    day, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{zone or '+00:00'}").astimezone(UTC)
    whole = moment - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = whole.days * 86_400 + whole.seconds
    if not 0 <= seconds < _LATEST_S:
        raise ValueError("expected a date from 1970 to 2261")
    return seconds * NS_PER_S + int((fraction or "0").ljust(9, "0"))


TOKENS = Kind("int64", _tokens)
"""Whole tokens [tokens]."""

SECONDS = Kind("float64", _seconds)
"""Seconds since the trace began, read into nanoseconds [ns]."""

STAMP = Kind("timestamp[ns]", _stamp)
"""Date and time without a zone, read into nanoseconds since 1970 [ns]."""

STAMP_UTC = Kind("timestamp[ns, UTC]", _stamp)
"""Date and time with a zone, read into nanoseconds since 1970 [ns]."""

TEXT = Kind("text", str)
"""Text, kept as codes."""


class CsvReader:
    """Reads blocks of one CSV file.

    Parameters
    ----------
    path : Path
        For the `where` of faults.
    header : sequence of str
        The file's own column names, in file order; those not in `kinds` are ignored.
    kinds : mapping of str to Kind
        How to read each wanted column.
    require : callable, optional
        Takes a row (column -> value) that parsed, returns what is wrong with it or "".
    valid : callable, optional
        The same rule on columns; returns a mask (n,) of the good rows.
    """

    def __init__(
        self,
        path: Path,
        header: Sequence[str],
        kinds: Mapping[str, Kind],
        require: Callable[[Mapping[str, int]], str] = lambda row: "",
        valid: Callable[[Mapping[str, Column]], npt.NDArray[np.bool_] | bool] = lambda table: True,
    ) -> None:
        self.path, self.header, self.kinds = path, tuple(header), dict(kinds)
        self.require, self.valid = require, valid

    def read(self, block: Block) -> Table:
        """Return the rows of a block."""
        # Both hide numbers that only one of the two paths would take: hexadecimal, quotes.
        plain = not (b"0x" in block.data or b"0X" in block.data or b'"' in block.data)
        fast = self._fast(block) if plain else None
        return fast if fast is not None else self._exact(block)

    def _fast(self, block: Block) -> Table | None:
        """Return the rows, or None if any line is damaged or blank."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        types = {
            "int64": pa.int64(),
            "float64": pa.float64(),
            "timestamp[ns]": pa.timestamp("ns"),
            "timestamp[ns, UTC]": pa.timestamp("ns", "UTC"),
            "text": pa.dictionary(pa.int32(), pa.string()),
        }
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(block.data),
                arrow_csv.ReadOptions(
                    column_names=list(self.header), use_threads=False, block_size=1 << 30
                ),
                arrow_csv.ParseOptions(ignore_empty_lines=True),
                arrow_csv.ConvertOptions(
                    column_types={name: types[kind.arrow] for name, kind in self.kinds.items()},
                    include_columns=list(self.kinds),
                    null_values=[""],
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        lines = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
        if table.num_rows != lines or any(column.null_count for column in table.columns):
            return None
        numbers: dict[str, npt.NDArray[np.int64]] = {}
        texts: dict[str, Text] = {}
        for name, kind in self.kinds.items():
            column = table.column(name).combine_chunks()
            if kind in (STAMP, STAMP_UTC):
                column = column.cast(pa.int64())
            if kind is TEXT:
                texts[name] = Text(_numpy(column.indices), column.dictionary.to_pylist())
                continue
            values = _whole(kind, column)
            if values is None:
                return None
            numbers[name] = values
        if not np.all(self.valid(numbers)):
            return None
        line = np.arange(block.first_line, block.first_line + lines, dtype=np.int64)
        return Table(numbers, texts, line, [])

    def _exact(self, block: Block) -> Table:
        """Return the good rows, and a fault with line and cells for each damaged one."""
        good: list[dict[str, Any]] = []
        line_numbers: list[int] = []
        faults: list[tuple[int, Fault]] = []
        for offset, raw in enumerate(block.data.split(b"\n")):
            text = raw.decode(errors="replace").removesuffix("\r")
            if not text:
                continue
            row, complaint = self._row(text)
            number = block.first_line + offset
            if complaint:
                faults.append((number, Fault(f"{self.path}:{number}", "", complaint)))
            else:
                good.append(row)
                line_numbers.append(number)
        numbers = {
            name: np.array([row[name] for row in good], dtype=np.int64)
            for name, kind in self.kinds.items()
            if kind is not TEXT
        }
        texts = {
            name: _encode([row[name] for row in good])
            for name, kind in self.kinds.items()
            if kind is TEXT
        }
        return Table(numbers, texts, np.array(line_numbers, dtype=np.int64), faults)

    def _row(self, text: str) -> tuple[dict[str, Any], str]:
        try:
            cells = next(csv.reader([text]), [])
        except csv.Error as error:
            return {}, f"not a row of CSV: {error}"
        if len(cells) != len(self.header):
            short = text if len(text) <= 80 else f"{text[:77]}..."
            expected = f"{len(self.header)} columns ({', '.join(self.header)})"
            return {}, f"expected {expected}, read {len(cells)}: {short!r}"
        row: dict[str, Any] = {}
        wrong: list[str] = []
        for name, cell in zip(self.header, cells, strict=True):
            kind = self.kinds.get(name)
            if kind is None:
                continue
            try:
                row[name] = kind.parse(cell if kind is TEXT else cell.strip(" \t"))
            except ValueError as error:
                wrong.append(f"{name}: {error}, read {cell!r}")
        return row, "; ".join(wrong) or self.require(row)


def _numpy(column: Any) -> Any:
    """Return an arrow column as a NumPy array; pyarrow's own `to_numpy` imports pandas."""
    return np.from_dlpack(column)


def _whole(kind: Kind, column: Any) -> npt.NDArray[np.int64] | None:
    """Return a parsed column in whole units, or None where a value is out of range."""
    if kind is TOKENS:
        tokens: npt.NDArray[np.int64] = _numpy(column)
        inside = not len(tokens) or (tokens.min() >= 0 and tokens.max() <= MOST_TOKENS)
        return tokens if inside else None
    if kind is SECONDS:
        seconds: npt.NDArray[np.float64] = _numpy(column)
        if not np.all((seconds >= 0) & (seconds < _LATEST_S)):
            return None
        # The whole seconds exactly: at 200 days a double resolves only 4 ns.
        whole = np.floor(seconds)
        return whole.astype(np.int64) * NS_PER_S + np.rint((seconds - whole) * NS_PER_S).astype(
            np.int64
        )
    stamps: npt.NDArray[np.int64] = _numpy(column)
    return stamps if not len(stamps) or stamps.min() >= 0 else None


def _encode(values: list[str]) -> Text:
    known: dict[str, int] = {}
    codes = [known.setdefault(value, len(known)) for value in values]
    return Text(np.array(codes, dtype=np.int32), list(known))
