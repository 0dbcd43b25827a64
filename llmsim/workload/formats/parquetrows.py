"""Parquet to columns, a batch of rows at a time; damaged rows by their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, TraceError
from llmsim.core.units import NS_PER_S
from llmsim.workload.cells import FLAG, LATEST_S, STAMP, STAMP_UTC, TEXT, TOKENS, Kind
from llmsim.workload.csvrows import Table, Text, as_numpy
from llmsim.workload.rows import MOST_TOKENS

BATCH_ROWS = 65_536
"""Rows read at once."""

Mask = npt.NDArray[np.bool_]


def parquet_columns(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the names of a Parquet file's columns, and its first row.

    Raises
    ------
    TraceError
        If it is no Parquet file.
    """
    with _open(path) as file:
        names = list(file.schema_arrow.names)
        flat = [name for name in names if _is_flat(file.schema_arrow.field(name).type)]
        batch = next(_batches(path, file, flat, 1), None)
        first = {} if batch is None or not batch.num_rows else batch.slice(0, 1).to_pylist()[0]
    return names, first


def parquet_tables(path: Path, kinds: Mapping[str, Kind], prompt: str) -> Iterator[Table]:
    """Yield the rows of a Parquet file as columns.

    Parameters
    ----------
    path : Path
    kinds : mapping of str to Kind
        Wanted columns.
    prompt : str
        The column whose rows must be at least 1.

    Yields
    ------
    Table
        `line` counts rows from 1.

    Raises
    ------
    TraceError
        If the file is damaged.
    """
    row = 1
    with _open(path) as file:
        for batch in _batches(path, file, list(kinds), BATCH_ROWS):
            yield _table(path, batch, kinds, prompt, row)
            row += batch.num_rows


def _open(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(str(path), memory_map=True)
        list(file.schema_arrow.names)  # damaged ones may be no text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TraceError(str(path), [_damaged(path, error)]) from None
    return file


def _batches(path: Path, file: Any, names: list[str], rows: int) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from file.iter_batches(batch_size=rows, columns=names, use_threads=False)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TraceError(str(path), [_damaged(path, error)]) from None


def _damaged(path: Path, error: Exception) -> Fault:
    return Fault(str(path), "", f"no Parquet file, or a damaged one: {error}".split("\n")[0])


def _is_flat(kind: Any) -> bool:
    from pyarrow import types

    return not types.is_nested(kind)


def _table(path: Path, batch: Any, kinds: Mapping[str, Kind], prompt: str, row: int) -> Table:
    n = batch.num_rows
    bad: dict[int, list[str]] = {}
    numbers: dict[str, npt.NDArray[np.int64]] = {}
    texts: dict[str, Text] = {}
    for name, kind in kinds.items():
        column = batch.column(name)
        if kind is TEXT:
            texts[name] = _text(path, name, column)
            continue
        values, sound, expected = _numbers(path, name, column, kind)
        if name == prompt:
            expected, sound = f"{expected}, at least 1", sound & (values >= 1)
        for at in np.flatnonzero(~sound).tolist():
            read = column[at].as_py()
            bad.setdefault(at, []).append(f"{name}: expected {expected}, read {read!r}")
        numbers[name] = values
    line = np.arange(row, row + n, dtype=np.int64)
    faults = [
        (row + at, Fault(f"{path}:row {row + at}", "", "; ".join(bad[at]))) for at in sorted(bad)
    ]
    if bad:
        kept = np.ones(n, dtype=np.bool_)
        kept[list(bad)] = False
        numbers = {name: values[kept] for name, values in numbers.items()}
        texts = {name: Text(text.codes[kept], text.values) for name, text in texts.items()}
        line = line[kept]
    return Table(numbers, texts, line, faults)


def _filled(column: Any, value: object) -> Any:
    """Return a column with a value for its nulls.

    `fill_null` imports pandas, a third of a second, which a column without nulls need not wait for.
    """
    return column.fill_null(value) if column.null_count else column


def _text(path: Path, name: str, column: Any) -> Text:
    import pyarrow as pa

    try:
        coded = _filled(column.cast(pa.string()), "").dictionary_encode()
    except pa.ArrowException as error:
        message = f"cannot be read as text ({column.type}): {error}"
        raise TraceError(str(path), [Fault(str(path), name, message)]) from None
    return Text(as_numpy(coded.indices), coded.dictionary.to_pylist())


def _numbers(
    path: Path, name: str, column: Any, kind: Kind
) -> tuple[npt.NDArray[np.int64], Mask, str]:
    """Return values, which of them are sound, and what was expected."""
    import pyarrow as pa
    from pyarrow import types

    there = ~as_numpy(column.is_null().cast(pa.int8())).astype(np.bool_)
    own = column.type
    try:
        if kind in (STAMP, STAMP_UTC):
            if types.is_string(own) or types.is_large_string(own):
                column = column.cast(pa.timestamp("ns", "UTC" if kind is STAMP_UTC else None))
            stamps = column.cast(pa.timestamp("ns", getattr(column.type, "tz", None)))
            values = as_numpy(_filled(stamps.cast(pa.int64()), 0))
            return values, there & (values >= 0), "a date from 1970 to 2261"
        if kind is FLAG:
            flags = as_numpy(_filled(column.cast(pa.bool_()), False).cast(pa.int8()))
            return flags.astype(np.int64), there, "true or false"
        if types.is_integer(own):
            values = as_numpy(_filled(column.cast(pa.int64()), 0))
            return _scaled(values, values, there, kind)
        floats = as_numpy(_filled(column.cast(pa.float64()), 0.0))
    except pa.ArrowException as error:
        message = f"cannot be read as {_expected(kind)} ({own}): {error}"
        raise TraceError(str(path), [Fault(str(path), name, message)]) from None
    whole = np.floor(np.where(np.isfinite(floats), floats, -1.0))
    inside = there & np.isfinite(floats) & (np.abs(floats) < LATEST_S * NS_PER_S)
    whole = np.where(inside, whole, 0.0)
    if kind is TOKENS or kind.unit_ns == 1:
        return _scaled(whole.astype(np.int64), floats, inside & (floats == whole), kind)
    values, sound, expected = _scaled(whole.astype(np.int64), floats, inside, kind)
    part = np.rint((np.where(inside, floats, 0.0) - whole) * kind.unit_ns)
    return values + part.astype(np.int64), sound, expected


def _scaled(
    whole: npt.NDArray[np.int64], read: npt.NDArray[Any], there: Mask, kind: Kind
) -> tuple[npt.NDArray[np.int64], Mask, str]:
    if kind is TOKENS:
        sound = there & (whole >= 0) & (whole <= MOST_TOKENS)
        return whole, sound, _expected(kind)
    most = int(LATEST_S * NS_PER_S) // kind.unit_ns
    sound = there & (read >= 0) & (whole < most)
    return np.where(sound, whole, 0) * kind.unit_ns, sound, _expected(kind)


def _expected(kind: Kind) -> str:
    return "a whole number of tokens" if kind is TOKENS else "a time of at least 0"
