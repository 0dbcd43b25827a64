"""Ended requests at rest: rows of integers in, columns out, in a file or in memory."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError, InvariantError, nearest
from llmsim.core.integers import packed
from llmsim.results.columns import (
    CALL_COLUMNS,
    CLASS_COLUMNS,
    HANDOFF_COLUMNS,
    OUTCOMES,
    RAW_CLASS_COLUMNS,
    RAW_COLUMNS,
    RAW_HANDOFF_COLUMNS,
    RAW_PROGRAM_COLUMNS,
    REQUEST_COLUMNS,
    Column,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

GATHER_ROWS: Final = 128
"""Rows after which the engine calls `RequestSink.gather`; few, so that they stay in the cache."""

FLUSH_ROWS: Final = 65_536
"""Rows that become columns together; one Parquet row group."""

SPILL_ROWS: Final = 1_000_000
"""Rows kept in memory [requests]; a longer run goes to a temporary file."""

_FINISHED: Final = OUTCOMES.index("finished")
_CATEGORIES: Final = tuple(c.name for c in REQUEST_COLUMNS if c.dtype == "category")


def _shape(programs: bool, classes: bool, handoff: bool) -> tuple[Column, ...]:
    """Return the columns of a table of requests, those included that only some runs have."""
    shape = REQUEST_COLUMNS + CLASS_COLUMNS * classes + CALL_COLUMNS * programs
    return shape + HANDOFF_COLUMNS * handoff


class RequestSink:
    """Takes one row per ended request and keeps them as columns.

    Parameters
    ----------
    pools : sequence of str
        Names that the `pool` integers of a row point into.
    clients : sequence of str, or callable
        The same for `client`; a callable returns the names known so far, for traces whose
        clients turn up while they are read.
    programs : bool
        Whether requests are calls of programs: rows then go on with `columns.RAW_PROGRAM_COLUMNS`.
    slo_classes : sequence of str
        Names that `slo_class` points into; rows then have `columns.RAW_CLASS_COLUMNS` too.
    handoff : bool
        Whether some replicas compute prompts for others: rows then end in
        `columns.RAW_HANDOFF_COLUMNS`.
    path : Path or None
        Parquet file to stream into; None keeps the columns in memory as Arrow tables
        (about 130 bytes per request), and in a temporary file beyond `SPILL_ROWS`.

    Attributes
    ----------
    handoff : bool
    rows : list of tuple of int
        The engine appends here, in the order of `columns.RAW_COLUMNS`, and calls `gather` once
        there are `GATHER_ROWS`. The list is emptied in place, so a bound ``rows.append`` stays
        good.

    Notes
    -----
    The file becomes valid Parquet with `close`, which must therefore run in a ``finally``: after
    Ctrl-C it holds every request that had ended by then.
    """

    def __init__(
        self,
        pools: Sequence[str],
        clients: Sequence[str] | Callable[[], Sequence[str]],
        path: Path | None = None,
        programs: bool = False,
        slo_classes: Sequence[str] = (),
        handoff: bool = False,
    ) -> None:
        classes = len(slo_classes) > 0
        self._raw = RAW_COLUMNS + RAW_CLASS_COLUMNS * classes + RAW_PROGRAM_COLUMNS * programs
        self._raw += RAW_HANDOFF_COLUMNS * handoff
        self._shape = _shape(programs, classes, handoff)
        self.handoff = handoff
        self.rows: list[tuple[int, ...]] = []
        self._gathered: list[bytes] = []  # rows, packed
        self._gathered_rows = 0
        self._names = {"pool": ("", *pools), "outcome": OUTCOMES, "slo_class": ("", *slo_classes)}
        self._clients = clients
        self._path = path
        self._scratch: TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self._tables: list[pa.Table] = []
        self._closed: RequestTable | None = None

    def gather(self) -> None:
        """Pack what is in `rows`, empty it, and flush once `FLUSH_ROWS` are there.

        Raises
        ------
        InvariantError
            As for `flush`.
        """
        numbers = list(itertools.chain.from_iterable(self.rows))
        if len(numbers) != len(self.rows) * len(self._raw):
            raise InvariantError(f"a request was recorded without exactly {len(self._raw)} values")
        self._gathered.append(packed(numbers))
        self._gathered_rows += len(self.rows)
        self.rows.clear()
        if self._gathered_rows >= FLUSH_ROWS:
            self.flush()

    def raw(self) -> npt.NDArray[np.int64]:
        """Return the rows that are not columns yet (n, columns), in the order they came in."""
        flat = np.frombuffer(b"".join(self._gathered), dtype=np.int64)
        rest = np.array(self.rows, dtype=np.int64)
        width = len(self._raw)
        return np.concatenate([flat.reshape(-1, width), rest.reshape(-1, width)])

    def flush(self) -> None:
        """Turn the rows that are there into columns.

        Raises
        ------
        InvariantError
            If a row has the wrong length or points at a name that does not exist.
        """
        if self.rows:
            self.gather()
        if not self._gathered:
            return
        if self._closed is not None:
            raise InvariantError("requests were recorded after the sink was closed")
        table = self._columns()
        self._gathered.clear()
        self._gathered_rows = 0
        self._put(table)

    def close(self) -> RequestTable:
        """Write what there is and return it as a table; a second call returns the same table."""
        if self._closed is None:
            self.flush()
            if self._writer is None and not self._tables:
                self._put(_arrow_schema(self._shape).empty_table())
            if self._path is not None:
                self._writer.close()
                self._closed = RequestTable(self._path, self._scratch)
            else:
                import pyarrow as pa

                whole = pa.concat_tables(self._tables).unify_dictionaries()
                self._closed = RequestTable(whole)
        return self._closed

    def _put(self, table: pa.Table) -> None:
        if self._path is None:
            self._tables.append(table)
            if len(self._tables) * FLUSH_ROWS > SPILL_ROWS:
                self._spill()
            return
        if self._writer is None:
            self._writer = _parquet_writer(self._path, _arrow_schema(self._shape))
        self._writer.write_table(table, row_group_size=FLUSH_ROWS)

    def _spill(self) -> None:
        """Move what is in memory to a temporary file and stream there from now on."""
        self._scratch = TemporaryDirectory(prefix="llmsim-")
        self._path = Path(self._scratch.name) / "requests.parquet"
        tables, self._tables = self._tables, []
        for table in tables:
            self._put(table)

    def _columns(self) -> pa.Table:
        import pyarrow as pa

        flat = np.frombuffer(b"".join(self._gathered), dtype=np.int64)
        # One contiguous column at a time is several times faster to work on than a strided one.
        raw = np.ascontiguousarray(flat.reshape(-1, len(self._raw)).T)
        made = _derive(dict(zip(self._raw, raw, strict=True)))
        schema = _arrow_schema(self._shape)
        arrays = []
        for column in self._shape:
            values = made[column.name]
            if column.dtype == "category":
                arrays.append(self._category(column.name, values))
            else:
                arrays.append(pa.array(values.astype(column.dtype, copy=False)))
        return pa.Table.from_arrays(arrays, schema=schema)

    def _category(self, name: str, codes: npt.NDArray[Any]) -> pa.Array:
        import pyarrow as pa

        if name == "client":
            known = self._clients() if callable(self._clients) else self._clients
            names: tuple[str, ...] = ("", *known)
        else:
            names = self._names[name]
        # "never" (-1) is the empty name at index 0 of all but outcomes
        shifted = codes if name == "outcome" else codes + 1
        if shifted.min() < 0 or shifted.max() >= len(names):
            wrong = int(codes[(shifted < 0) | (shifted >= len(names))][0])
            raise InvariantError(f"a request was recorded with {name} {wrong}, which has no name")
        return pa.DictionaryArray.from_arrays(pa.array(shifted.astype(np.int32)), pa.array(names))


def _derive(column: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[Any]]:
    """Turn raw columns (n,) into those of the table; categories stay integers."""
    arrival, first, end = column["arrival_ns"], column["first_token_ns"], column["end_ns"]
    scheduled, tokens = column["scheduled_ns"], column["output_tokens"]
    finished = column["outcome"] == _FINISHED
    gaps = np.maximum(tokens - 1, 1)
    return column | {
        "arrival_s": arrival * 1e-9,
        "queue_s": np.where(scheduled >= 0, (scheduled - arrival) * 1e-9, np.nan),
        "ttft_s": np.where(first >= 0, (first - arrival) * 1e-9, np.nan),
        "tpot_s": np.where(finished & (tokens >= 2), (end - first) * 1e-9 / gaps, np.nan),
        "itl_max_s": column["itl_max_ns"] * 1e-9,
        "e2e_s": np.where(finished, (end - arrival) * 1e-9, np.nan),
        "end_s": np.where(end >= 0, end * 1e-9, np.nan),
    }


def _arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    import pyarrow as pa

    kinds = {"category": pa.dictionary(pa.int32(), pa.string())}
    return pa.schema(
        [(c.name, kinds.get(c.dtype) or pa.from_numpy_dtype(c.dtype)) for c in columns]
    )


def _parquet_writer(path: Path, schema: pa.Schema) -> Any:
    import pyarrow.parquet as pq

    repeated = (*_CATEGORIES, "slo_class", "replica", "preemptions", "priority")
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in repeated if name in schema.names],
    )


class RequestTable:
    """One row per request, in the order in which they ended; read one column at a time.

    Parameters
    ----------
    source : Path or pyarrow.Table
        A Parquet file, or the columns themselves.
    scratch : TemporaryDirectory or None
        Kept alive as long as the table, when the file lies in it.

    Raises
    ------
    InputError
        If it is no Parquet file, or its columns are not `columns.REQUEST_COLUMNS`; lists all
        that differ.

    Attributes
    ----------
    has_programs : bool
        Whether requests are calls of programs, and `columns.CALL_COLUMNS` are there too.
    has_classes : bool
        Whether there are SLO classes, and `columns.CLASS_COLUMNS`.
    hands_over : bool
        Whether prompts are computed for others, and `columns.HANDOFF_COLUMNS`.
    """

    def __init__(
        self, source: Path | pa.Table, scratch: TemporaryDirectory[str] | None = None
    ) -> None:
        self._source = source
        self._scratch = scratch
        if isinstance(source, Path):
            described, self.n = _describe(source)
        else:
            described, self.n = source.schema, int(source.num_rows)
        self.has_programs = any(c.name in described.names for c in CALL_COLUMNS)
        self.has_classes = any(c.name in described.names for c in CLASS_COLUMNS)
        self.hands_over = any(c.name in described.names for c in HANDOFF_COLUMNS)
        self._shape = _shape(self.has_programs, self.has_classes, self.hands_over)
        name = str(source) if isinstance(source, Path) else "requests"
        _check_schema(name, described, _arrow_schema(self._shape))

    def __len__(self) -> int:
        return self.n

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """Return a numeric column (n,), in the unit that `REQUEST_COLUMNS` gives."""
        column: npt.NDArray[Any] = self._read([name]).column(0).to_numpy()
        return column

    def codes(self, name: str, names: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return a category column (n,) as indices into `names`, -1 for a value not among them."""
        place = {value: i for i, value in enumerate(names)}
        found = [np.empty(0, dtype=np.int32)]
        for chunk in self._read([name]).column(0).chunks:
            # a file keeps one dictionary per row group, each in its own order
            lut = [place.get(value, -1) for value in chunk.dictionary.to_pylist()]
            found.append(np.asarray(lut, dtype=np.int32)[chunk.indices.to_numpy()])
        return np.concatenate(found)

    def categories(self, name: str) -> tuple[str, ...]:
        """Return the values that a category column may hold, those of all row groups, sorted."""
        found: set[str] = set()
        for chunk in self._read([name]).column(0).chunks:
            found.update(chunk.dictionary.to_pylist())
        return tuple(sorted(found))

    def frame(self) -> pd.DataFrame:
        """Return all columns as a DataFrame (n, columns), sorted by request index."""
        table = self._read([c.name for c in self._shape]).unify_dictionaries()
        frame: pd.DataFrame = table.to_pandas()
        return frame.sort_values("request", kind="stable", ignore_index=True)

    def write(self, path: Path) -> None:
        """Write the table as a Parquet file."""
        if isinstance(self._source, Path):
            shutil.copyfile(self._source, path)
            return
        with _parquet_writer(path, self._source.schema) as writer:
            writer.write_table(self._source, row_group_size=FLUSH_ROWS)

    def _read(self, names: list[str]) -> pa.Table:
        import pyarrow.parquet as pq

        if isinstance(self._source, Path):
            with pq.ParquetFile(self._source) as file:
                return file.read(columns=names)
        return self._source.select(names)


def _describe(path: Path) -> tuple[pa.Schema, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow, int(file.metadata.num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        fault = Fault(str(path), "", f"cannot be read as Parquet: {error}")
        raise InputError(str(path), [fault]) from error


def _check_schema(source: str, found: pa.Schema, wanted: pa.Schema) -> None:
    faults = [
        Fault(source, name, "this column is unknown.", nearest(name, wanted.names))
        for name in found.names
        if name not in wanted.names
    ]
    for field in wanted:
        if field.name not in found.names:
            faults.append(Fault(source, field.name, "this column is missing"))
        elif found.field(field.name).type != field.type:
            kind = found.field(field.name).type
            faults.append(Fault(source, field.name, f"has type {kind}, not {field.type}"))
    if faults:
        raise InputError(source, faults)
