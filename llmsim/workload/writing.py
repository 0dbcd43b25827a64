"""Writes a workload as a table that the kinds `csv`, `jsonl` and `parquet` read back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmsim.core.errors import Fault, InputError, OutputError, nearest
from llmsim.core.files import whole_file
from llmsim.workload.chunk import RequestChunk, Workload

COLUMNS: Final = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "client", "failed")
"""Columns of a written table; ``slo_class`` follows where the trace names classes."""

ENDINGS: Final = (
    ".csv", ".csv.gz", ".csv.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet",
)  # fmt: skip
"""How the name of a written table may end, which says its kind and its packing."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Parameters
    ----------
    path : Path
    requests : int
    prefixes_lost : bool
        The trace says which prompts agree, and this kind of table cannot.
    """

    path: Path
    requests: int
    prefixes_lost: bool


def write_trace(workload: Workload, path: Path, force: bool = False) -> Written:
    """Write a workload as a table, a row per request in order of arrival.

    Parameters
    ----------
    workload : Workload
        With arrivals of its own.
    path : Path
        Its ending says the kind: ``.csv`` or ``.jsonl`` (also ``.gz``, ``.zst``), ``.parquet``.
    force : bool
        Replace a file that is there.

    Returns
    -------
    Written

    Raises
    ------
    InputError
        If the ending is none of these.
    OutputError
        If the file is there or cannot be written; then nothing is left behind.
    TraceError
        If the workload is a damaged trace.
    """
    ending = next((end for end in ENDINGS if path.name.endswith(end)), None)
    if ending is None:
        message = f"cannot tell the kind of table from '{path.name}'."
        hint = nearest("".join(path.suffixes), ENDINGS)
        raise InputError("llmsim trace", [Fault("", str(path), message, hint)])
    if path.exists() and not force:
        raise OutputError(f"{path} is there already; force replaces it")
    kind = ending.split(".")[1]
    count, lost = 0, False
    with whole_file(path) as part, _SINKS[kind](part, ending) as put:
        for chunk in workload.chunks():
            put(chunk, workload)
            count += len(chunk)
            lost = lost or (kind != "jsonl" and chunk.segments is not None)
    return Written(path, count, lost)


Put = Callable[[RequestChunk, Workload], None]


@contextmanager
def _opened(part: Path, ending: str) -> Iterator[Any]:
    """Open a file for bytes, packed as its ending says."""
    if ending.endswith(".gz"):
        import gzip

        # no time stamp and no name inside: the same rows give the same bytes
        with part.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            yield file
    elif ending.endswith(".zst"):
        from pyarrow import CompressedOutputStream, OSFile

        with OSFile(str(part), "wb") as raw, CompressedOutputStream(raw, "zstd") as file:
            yield file
    else:
        with part.open("wb") as file:
            yield file


@contextmanager
def _csv(part: Path, ending: str) -> Iterator[Put]:
    from pyarrow import csv as arrow_csv

    with _opened(part, ending) as file:
        head = True

        def put(chunk: RequestChunk, workload: Workload) -> None:
            nonlocal head
            table = _table(chunk, workload)
            if head:
                file.write(f"{','.join(table.column_names)}\n".encode())
                head = False
            # quotes only where a text needs them: with them a file is read more slowly
            special = any(any(c in name for c in ',"\n\r') for name in workload.clients)
            style = "needed" if special or workload.slo_classes else "none"
            arrow_csv.write_csv(
                table, file, arrow_csv.WriteOptions(include_header=False, quoting_style=style)
            )

        yield put


@contextmanager
def _parquet(part: Path, ending: str) -> Iterator[Put]:
    from pyarrow import parquet

    writer: Any = None

    def put(chunk: RequestChunk, workload: Workload) -> None:
        nonlocal writer
        table = _table(chunk, workload)
        if writer is None:
            writer = parquet.ParquetWriter(str(part), table.schema, compression="zstd")
        writer.write_table(table)

    try:
        yield put
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _jsonl(part: Path, ending: str) -> Iterator[Put]:
    with _opened(part, ending) as file:

        def put(chunk: RequestChunk, workload: Workload) -> None:
            columns = _table(chunk, workload).to_pydict()
            names = list(columns)
            lines = []
            for at, cells in enumerate(zip(*columns.values(), strict=True)):
                row = {n: c for n, c in zip(names, cells, strict=True) if c not in (None, "")}
                if chunk.segments is not None and chunk.segments[at] is not None:
                    row["segments"] = chunk.segments[at]
                lines.append(json.dumps(row, separators=(",", ":")))
            file.write("".join(f"{line}\n" for line in lines).encode())

        yield put


_SINKS: Final = {"csv": _csv, "parquet": _parquet, "jsonl": _jsonl}


def _table(chunk: RequestChunk, workload: Workload) -> Any:
    """Return a chunk as an Arrow table with the columns of a written one."""
    import pyarrow as pa

    columns = {
        "arrival_ns": pa.array(chunk.arrival_ns),
        "prompt_tokens": pa.array(chunk.prompt_tokens),
        "output_tokens": pa.array(chunk.output_tokens),
        "session": pa.array(chunk.session, mask=chunk.session < 0),
        "client": _names(chunk.client, workload.clients),
        "failed": pa.array(chunk.failed),
    }
    if chunk.slo_class is not None and workload.slo_classes:
        columns["slo_class"] = _names(chunk.slo_class, workload.slo_classes)
    return pa.table(columns)


def _names(codes: Any, names: tuple[str, ...]) -> Any:
    import pyarrow as pa

    index = pa.array(np.where(codes < 0, len(names), codes).astype(np.int32))
    return pa.DictionaryArray.from_arrays(index, pa.array([*names, ""])).cast(pa.string())
