"""Rows of a kernel profile: what each column means, reading, writing and checking them.

A profile is a folder ``profiles/<device>/<id>/`` with `rows.csv` (or ``.csv.gz``, or
``.parquet``) and `meta.json` (see `llmsim.specs.profile_meta`). One row is one operator at one
shape. CSV is the contract: a header with the names of `COLUMNS` in any order, absent columns and
empty cells for what does not apply. Rows that could not be measured stay, with their status:
absence is information.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmsim.core.errors import CardError, Fault, nearest

ABSENT = -1
"""What an integer column holds in memory where the cell is empty."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `rows.csv`.

    Parameters
    ----------
    name : str
    kind : str
        ``text``, ``int`` (at least 0), ``float`` (at least 0) or ``bool``.
    unit : str
        Empty for text.
    meaning : str
    in_key : bool
        Part of what makes a row unique.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    in_key: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("op", "text", "", "operator, a key of OPS"),
    Column("kernel_id", "text", "", "kernel that ran, such as torch.linear or triton.decode.v1"),
    Column("libs", "text", "", "library versions of this row; empty for those of meta.json"),
    Column("dtype_a", "text", "", "type of the activations, a word of DTYPES"),
    Column("dtype_w", "text", "", "type of the weights"),
    Column("dtype_kv", "text", "", "type of the KV cache"),
    Column("dtype_out", "text", "", "type of the result"),
    Column("phase", "text", "", "prefill, decode, mixed, or empty where it does not matter"),
    Column("m", "int", "tokens", "rows of the activations"),
    Column("n", "int", "1", "columns of the result"),
    Column("k", "int", "1", "inner dimension"),
    Column("batch", "int", "requests", "prefilling, or decoding where the phase is decode"),
    Column("q_len", "int", "tokens", "new tokens of each request"),
    Column("kv_len", "int", "tokens", "prefill: cached before the new ones; decode: whole context"),
    Column("decode_batch", "int", "requests", "decoding beside the prefills of a mixed launch"),
    Column("decode_kv_len", "int", "tokens", "context of each of those, its new token included"),
    Column("heads_q", "int", "1", "query heads on this GPU"),
    Column("heads_kv", "int", "1", "KV heads on this GPU"),
    Column("head_dim", "int", "1", "width of one head"),
    Column("window", "int", "tokens", "sliding window; 0 for none"),
    Column("page", "int", "tokens", "KV block"),
    Column("experts", "int", "1", "routed experts of the layer"),
    Column("experts_local", "int", "1", "those on this GPU"),
    Column("topk", "int", "1", "experts of one token"),
    Column("hidden", "int", "1", "model width"),
    Column("inter", "int", "1", "width inside an expert or MLP, on this GPU"),
    Column("tokens", "int", "tokens", "tokens in the step; for experts, of all its ranks together"),
    Column("skew", "float", "1", "experts: exponent of the power law of load; decode: max/mean"),
    Column("message_bytes", "int", "bytes", "tensor on each GPU, or size of a copy"),
    Column("gpus", "int", "GPUs", "size of the group of a collective"),
    Column("nodes", "int", "nodes", "that the group spans"),
    Column("group", "int", "1", "weights or values that share one scale"),
    Column("vocab", "int", "1", "vocabulary on this GPU"),
    Column("logit_rows", "int", "rows", "rows that are sampled"),
    Column("layers", "int", "layers", "of a whole-model row"),
    Column("variant", "text", "", "what else tells rows apart: algorithm, direction, sub-kernel"),
    Column("cold", "bool", "1", "weights and KV came from memory, not from cache"),
    Column("graph", "bool", "1", "replayed from a captured graph"),
    Column("t_median_us", "float", "us", "median time of one call", in_key=False),
    Column("t_min_us", "float", "us", "shortest time of one call", in_key=False),
    Column("t_mad_us", "float", "us", "median absolute deviation", in_key=False),
    Column("repeats", "int", "1", "timed replays", in_key=False),
    Column("flops", "float", "FLOP", "of one call, two per multiply-add", in_key=False),
    Column("moved_bytes", "float", "bytes", "that one call must move", in_key=False),
    Column("sm_clock_mhz", "float", "MHz", "of the multiprocessors", in_key=False),
    Column("mem_clock_mhz", "float", "MHz", "of the memory", in_key=False),
    Column("power_w", "float", "W", "board power while it ran", in_key=False),
    Column("split", "text", "", "fit or holdout; holdout rows are never fitted", in_key=False),
    Column("status", "text", "", "ok, oom, unsupported or error", in_key=False),
    Column("note", "text", "", "why a row has no time", in_key=False),
    Column("ts", "text", "", "when it was measured, ISO 8601 UTC", in_key=False),
)
BY_NAME: Mapping[str, Column] = {column.name: column for column in COLUMNS}
KEY: tuple[str, ...] = tuple(column.name for column in COLUMNS if column.in_key)
"""The columns that together make a row unique."""

DTYPES = (
    *("fp32", "fp16", "bf16", "fp8", "fp8_block", "int8", "int4", "w2", "w3", "w5", "w6", "w7"),
    *("nvfp4", "mxfp4"),
)
"""Words for number formats; ``w2`` to ``w7`` are weight-only widths, int4 the usual one."""

OPS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("batch", "q_len", "kv_len", "heads_q", "heads_kv", "head_dim"),
    "attention_decode": ("batch", "kv_len", "heads_q", "heads_kv", "head_dim"),
    "attention_mixed": (
        *("batch", "q_len", "kv_len", "decode_batch", "decode_kv_len"),
        *("heads_q", "heads_kv", "head_dim"),
    ),
    "mla_prefill": ("batch", "q_len", "kv_len", "heads_q"),
    "mla_decode": ("batch", "kv_len", "heads_q"),
    "moe": ("tokens", "hidden", "inter", "topk", "experts", "experts_local"),
    "norm": ("tokens", "hidden"),
    "rope": ("tokens", "heads_q", "heads_kv", "head_dim"),
    "kv_write": ("tokens", "heads_kv", "head_dim"),
    "activation": ("tokens", "inter"),
    "residual_add": ("tokens", "hidden"),
    "act_quant": ("tokens", "hidden"),
    "gather": ("tokens", "hidden"),
    "recurrent_prefill": ("tokens", "heads_q", "head_dim"),
    "recurrent_decode": ("batch", "heads_q", "head_dim"),
    "sampler": ("logit_rows", "vocab"),
    "memcpy": ("message_bytes",),
    "all_reduce": ("message_bytes", "gpus"),
    "all_gather": ("message_bytes", "gpus"),
    "reduce_scatter": ("message_bytes", "gpus"),
    "all_to_all": ("message_bytes", "gpus"),
    "p2p": ("message_bytes", "gpus"),
    "ep_dispatch": ("tokens", "hidden", "topk", "experts", "gpus"),
    "ep_combine": ("tokens", "hidden", "topk", "experts", "gpus"),
    "ceiling": ("variant",),
    "host": ("variant",),
    "energy": ("variant",),
    "whole_model": ("variant",),
    "probe": ("variant",),
}
"""Operators, and the columns that every row of one must fill."""

PHASES = ("", "prefill", "decode", "mixed")
SPLITS = ("fit", "holdout")
STATUSES = ("ok", "oom", "unsupported", "error")
_WORDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("dtype_a", "dtype_w", "dtype_kv", "dtype_out"), ("", *DTYPES)),
    "op": tuple(OPS),
    "phase": PHASES,
    "split": SPLITS,
    "status": STATUSES,
}
_DEFAULTS: Mapping[str, Any] = {"split": "fit", "status": "ok"}
_MAX_FAULTS = 50  # a wrong column is wrong on every line: enough to see the pattern


def row_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what makes a row unique, as text: equal before writing and after reading.

    Parameters
    ----------
    row : mapping of str to value
        None, NaN, empty and `ABSENT` are the same: does not apply.
    """
    return tuple(_cell(BY_NAME[name], row.get(name)) for name in KEY)


def _cell(column: Column, value: Any) -> str:
    """Return the CSV cell of a value."""
    if value is None or value == "":
        return ""
    if column.kind == "text":
        return str(value)
    if column.kind == "bool":
        return "" if value == ABSENT else "1" if value else "0"
    number = float(value)
    if number != number or (column.kind == "int" and number == ABSENT):
        return ""
    if column.kind == "int":
        return str(int(number))
    return repr(number).removesuffix(".0")


def csv_line(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row in the order of `COLUMNS`, for a `csv.writer`.

    Raises
    ------
    CardError
        If the row has a column that does not exist.
    """
    unknown = [name for name in row if name not in BY_NAME]
    if unknown:
        faults = [Fault("", name, "unknown column.", nearest(name, BY_NAME)) for name in unknown]
        raise CardError("profile row", faults)
    return [_cell(column, row.get(column.name, _DEFAULTS.get(column.name))) for column in COLUMNS]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, append: bool = False) -> int:
    """Write rows to ``rows.csv`` or ``rows.csv.gz``; a new file gets its header.

    Parameters
    ----------
    path : Path
    rows : iterable of mapping
    append : bool
        Add to what is there (each row is flushed when the file is closed).

    Returns
    -------
    int [rows]
        Written.
    """
    import csv
    import gzip

    fresh = not (append and path.exists() and path.stat().st_size)
    mode = "wt" if fresh else "at"
    opened: Any = gzip.open if path.suffix == ".gz" else open
    count = 0
    with opened(path, mode, encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        if fresh:
            out.writerow([column.name for column in COLUMNS])
        for row in rows:
            out.writerow(csv_line(row))
            count += 1
    return count


@dataclass(frozen=True)
class ProfileTable:
    """All rows of one profile, by column.

    Parameters
    ----------
    source : str
        File they come from.
    columns : mapping of str to ndarray (rows,)
        Every column of `COLUMNS`: text as objects, integers with `ABSENT`, floats with NaN, bools
        as integers 0, 1 or `ABSENT`.
    """

    source: str
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def where(self, keep: NDArray[np.bool_], names: Iterable[str] | None = None) -> ProfileTable:
        """Return the rows that a mask keeps, of all columns or of some."""
        index = np.flatnonzero(keep)
        wanted = self.columns if names is None else dict.fromkeys(names)
        return ProfileTable(self.source, {name: self.columns[name][index] for name in wanted})

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Rows with a time, of either split."""
        timed = self.columns["t_median_us"] > 0
        return np.asarray((self.columns["status"] == "ok") & timed)

    def row(self, index: int) -> dict[str, Any]:
        """Return one row as a mapping, empty cells left out."""
        found = {}
        for name, column in self.columns.items():
            if _cell(BY_NAME[name], column[index]):
                found[name] = column[index]
        return found


def table_of(source: str, columns: Mapping[str, NDArray[Any]], count: int) -> ProfileTable:
    """Return a table of the given columns, the others filled with what is absent.

    Parameters
    ----------
    source : str
    columns : mapping of str to ndarray (count,)
        Names of `COLUMNS`.
    count : int [rows]
    """
    whole: dict[str, NDArray[Any]] = {}
    for column in COLUMNS:
        if column.name in columns:
            whole[column.name] = columns[column.name]
        elif column.kind == "text":
            whole[column.name] = np.full(count, _DEFAULTS.get(column.name, ""), dtype=object)
        elif column.kind == "float":
            whole[column.name] = np.full(count, np.nan)
        else:
            whole[column.name] = np.full(count, ABSENT, dtype=np.int64)
    return ProfileTable(source, whole)


def find_rows(folder: Path) -> Path:
    """Return the rows file of a profile folder.

    Raises
    ------
    CardError
        If there is none.
    """
    for name in ("rows.parquet", "rows.csv.gz", "rows.csv"):
        if (folder / name).is_file():
            return folder / name
    fault = Fault(str(folder), "", "no rows.csv, rows.csv.gz or rows.parquet.")
    raise CardError(str(folder), [fault])


def read_rows(path: Path) -> ProfileTable:
    """Read a rows file.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.csv.gz`` or ``.parquet``, or the profile folder.

    Raises
    ------
    CardError
        With every unknown column, or the first cell that is not of its column's kind.
    """
    import pyarrow as pa

    path = find_rows(path) if path.is_dir() else path
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CardError(path.name, [Fault(str(path), "", f"cannot be read: {error}")]) from None
    faults = [
        Fault(f"{path}:1", name, "unknown column.", nearest(name, BY_NAME))
        for name in table.column_names
        if name not in BY_NAME
    ]
    if "op" not in table.column_names or "t_median_us" not in table.column_names:
        faults.append(Fault(f"{path}:1", "", "columns 'op' and 't_median_us' must be there."))
    if faults:
        raise CardError(path.name, faults)
    columns = {name: _array(BY_NAME[name], table.column(name)) for name in table.column_names}
    return table_of(str(path), columns, table.num_rows)


def _read_csv(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    kinds = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.int64()}
    options = csv.ConvertOptions(
        column_types={column.name: kinds[column.kind] for column in COLUMNS},
        null_values=["", "nan", "NaN"],
        strings_can_be_null=False,
        quoted_strings_can_be_null=False,
    )
    return csv.read_csv(str(path), convert_options=options)


def _read_parquet(path: Path) -> Any:
    from pyarrow import parquet

    words = [column.name for column in COLUMNS if column.kind == "text"]
    # not read_table, which imports pandas; texts stay dictionaries, which decodes them once
    return parquet.ParquetFile(str(path), read_dictionary=words).read()


def _array(column: Column, values: Any) -> NDArray[Any]:
    """Turn an Arrow column into the arrays that `ProfileTable` describes."""
    import pyarrow.compute as pc

    if column.kind == "text":
        encoded = pc.dictionary_encode(values).unify_dictionaries().combine_chunks()
        words = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)
        indices = pc.fill_null(encoded.indices, len(words) - 1)
        if _DEFAULTS.get(column.name):
            words[words == ""] = _DEFAULTS[column.name]
        return np.asarray(words[indices.to_numpy(zero_copy_only=False)])
    if values.null_count == len(values):
        absent = np.nan if column.kind == "float" else ABSENT
        return np.full(len(values), absent, dtype=float if column.kind == "float" else np.int64)
    if column.kind == "float":
        return np.asarray(values.to_numpy(), dtype=float)
    return np.asarray(pc.fill_null(values.cast("int64"), ABSENT).to_numpy())


def check_rows(table: ProfileTable) -> list[Fault]:
    """Return everything that is wrong with the rows, each with its line; at most 50 faults.

    Parameters
    ----------
    table : ProfileTable

    Notes
    -----
    Words, signs, the columns that an operator needs, a time where the status is ok, and
    duplicates. Whether the times are physically possible takes a device: see
    `llmsim.costmodel.measured`.
    """
    faults: list[Fault] = []

    def note(bad: NDArray[np.bool_], path: str, message: str, hint: str = "") -> None:
        for index in np.flatnonzero(bad)[: _MAX_FAULTS - len(faults)]:
            where = f"{table.source}:{index + 2}"
            value = table[path][index] if path in BY_NAME else ""
            text = message.format(value=value, op=table["op"][index])
            faults.append(Fault(where, path, text, hint))

    for name, words in _WORDS.items():
        column = table[name]
        for word in {str(value) for value in column} - set(words):
            note(column == word, name, "unknown word '{value}'.", nearest(word, words))
    for kind in COLUMNS:
        if kind.kind != "text":
            values = table[kind.name]
            absent = np.isnan(values) if kind.kind == "float" else values == ABSENT
            note((values < 0) & ~absent, kind.name, "must not be negative (got {value}).")
    for op, needed in OPS.items():
        of_op = table["op"] == op
        for name in needed:
            empty = table[name] == ("" if BY_NAME[name].kind == "text" else ABSENT)
            note(of_op & empty, name, "is empty, and {op} needs it.")
    timed = table["t_median_us"] > 0
    note((table["status"] == "ok") & ~timed, "t_median_us", "needs a time (got {value}).")
    note(~_first_of_key(table), "", "stands twice: same operator, kernel, types and shape.")
    return faults


def _first_of_key(table: ProfileTable) -> NDArray[np.bool_]:
    """Return True for each row whose key has not stood before."""
    first = np.ones(len(table), dtype=bool)
    if not len(table):
        return first
    codes = np.column_stack(
        [np.unique(table[name].astype(str), return_inverse=True)[1].ravel() for name in KEY]
    )
    _, index = np.unique(codes, axis=0, return_index=True)
    first[:] = False
    first[index] = True
    return first


def rows_checksum(path: Path) -> str:
    """Return the SHA-256 of the rows file, of its text where it is compressed CSV.

    Parameters
    ----------
    path : Path
    """
    import gzip

    opened = gzip.open if path.suffix == ".gz" else open
    digest = hashlib.sha256()
    with opened(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
