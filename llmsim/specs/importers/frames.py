"""What all importers share: words of other tools, frames of rows, and the folder they become."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsim.core.errors import CardError, Fault
from llmsim.core.files import whole_file
from llmsim.specs.importers.floors import without_disturbed, without_host_bound
from llmsim.specs.profile_meta import ProfileMeta, write_meta
from llmsim.specs.profile_rows import ABSENT, COLUMNS, KEY, csv_line, rows_checksum

if TYPE_CHECKING:
    from pandas import DataFrame

GPU_CARDS: Mapping[str, str] = {
    "a100_sxm": "a100-80gb-sxm",
    "a100-80g-sxm": "a100-80gb-sxm",
    "a100-80gb": "a100-80gb-sxm",
    "a100": "a100-80gb-sxm",
    "h100_sxm": "h100-sxm",
    "h100-80g-sxm": "h100-sxm",
    "h100-80gb": "h100-sxm",
    "h100": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "h200-141g-sxm": "h200-sxm",
    "b200_sxm": "b200",
    "b200": "b200",
    "b300_sxm": "b300",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "rtx-pro-6000-96g": "rtx-pro-6000",
    "rtxpro6000": "rtx-pro-6000",
    "rtx_pro_6000_server": "rtx-pro-6000",
    "rtx4090-24g": "rtx-4090",
    "rtx4090": "rtx-4090",
    "a40": "a40",
}
"""GPU cards by the names that other tools give their devices, in lower case."""

FORMATS: Mapping[str, tuple[str, str]] = {
    "float16": ("bf16", "bf16"),
    "half": ("bf16", "bf16"),
    "bfloat16": ("bf16", "bf16"),
    "bf16": ("bf16", "bf16"),
    "fp8": ("fp8", "fp8"),
    "fp8_static": ("fp8", "fp8"),
    "fp8_block": ("fp8_block", "fp8_block"),
    "nvfp4": ("nvfp4", "nvfp4"),
    "int8": ("int8", "int8"),
    "sq": ("int8", "int8"),
    "int8_wo": ("bf16", "int8"),
    "int4_wo": ("bf16", "int4"),
    "w4a16_mxfp4": ("bf16", "mxfp4"),
    "w4a8_mxfp4_mxfp8": ("fp8", "mxfp4"),
    "w4afp8": ("fp8", "int4"),
}
"""(activations, weights) by the words of aiconfigurator."""


@dataclass
class Batch:
    """Rows of one device and engine on their way into a profile.

    Parameters
    ----------
    device : str
        As the source names it.
    profile : str
        Name of the folder to be, such as ``vllm-0.24.0``.
    frames : list of DataFrame
        Columns of `profile_rows`.
    libs : dict of str to str
    notes : list of str
        What was left out, and why.
    """

    device: str
    profile: str
    frames: list[DataFrame] = field(default_factory=list)
    libs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    """Where tables were published.

    Parameters
    ----------
    source : str
        Repository, with commit or version where known.
    licence : str
        With what must be said when rows are passed on.
    """

    source: str
    licence: str


def slug(device: str) -> str:
    """Return the folder name of a device: its GPU card's, or its own in lower case."""
    word = device.lower().removeprefix("nvidia ").strip()
    return GPU_CARDS.get(word.replace(" ", "-"), GPU_CARDS.get(word, word.replace(" ", "-")))


def rows_of(
    op: str, frame: DataFrame, names: Mapping[str, Any], unit_us: float, time: str
) -> DataFrame:
    """Return a frame of profile rows of one operator.

    Parameters
    ----------
    op : str
    frame : DataFrame
        Of the source.
    names : mapping of str to str or value or Series
        Our columns: the name of a column of `frame`, a Series, or a constant.
    unit_us : float [us]
        Unit of the time column.
    time : str
        Its name.
    """
    import pandas as pd

    made: dict[str, Any] = {"op": op}
    for ours, theirs in names.items():
        made[ours] = frame[theirs] if isinstance(theirs, str) and theirs in frame else theirs
    made["t_median_us"] = frame[time].astype(float) * unit_us
    found = pd.DataFrame(made, index=frame.index)
    return found[found["t_median_us"] > 0]


def split_formats(frame: DataFrame, column: str, batch: Batch, what: str) -> DataFrame:
    """Add columns `dtype_a` and `dtype_w`; rows in a format without a word are left out, noted."""
    known = frame[column].isin(list(FORMATS))
    for word, count in frame.loc[~known, column].value_counts().items():
        batch.notes.append(f"{count} {what} rows in format {word} left out")
    kept = frame[known].copy()
    kept["dtype_a"] = kept[column].map({word: pair[0] for word, pair in FORMATS.items()})
    kept["dtype_w"] = kept[column].map({word: pair[1] for word, pair in FORMATS.items()})
    return kept


def write_profile(batch: Batch, origin: Origin, out: Path, *, as_csv: bool = False) -> Path:
    """Write one batch as a profile folder.

    Parameters
    ----------
    batch : Batch
    origin : Origin
    out : Path
        Folder of profiles; the profile lies in ``<device>/<profile>`` below it.
    as_csv : bool
        Write ``rows.csv.gz`` in place of ``rows.parquet``.

    Returns
    -------
    Path
        The profile folder.

    Raises
    ------
    CardError
        If the batch has no rows.
    """
    table = without_disturbed(without_host_bound(_joined(batch), batch), batch)
    device = slug(batch.device)
    folder = out / device / batch.profile
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("rows.csv.gz" if as_csv else "rows.parquet")
    with whole_file(path) as made:
        if as_csv:
            _write_csv(table, made)
        else:
            table.to_parquet(made, index=False)
    for old in folder.glob("rows.*"):
        if old != path:
            old.unlink()
    meta = ProfileMeta(
        profile_id=f"{device}/{batch.profile}",
        origin="imported",
        device={"name": batch.device, **_card(batch.device)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        libs=batch.libs,
        rows_checksum=rows_checksum(path),
        licence=origin.licence,
        source=origin.source,
        notes="; ".join(batch.notes),
    )
    write_meta(folder, meta)
    return folder


def _card(device: str) -> dict[str, str]:
    name = slug(device)
    return {"gpu_card": name} if name in GPU_CARDS.values() else {}


def _joined(batch: Batch) -> DataFrame:
    """Return all rows of a batch with every column; rows of one key become their median."""
    import pandas as pd

    frames = [frame for frame in batch.frames if len(frame)]
    if not frames:
        raise CardError(batch.device, [Fault("", batch.profile, "no rows that llmsim knows.")])
    table = pd.concat(frames, ignore_index=True)
    for column in COLUMNS:
        if column.name not in table:
            table[column.name] = None
    for column in COLUMNS:
        values = table[column.name]
        if column.kind == "text":
            table[column.name] = values.fillna("").astype(str)
        elif column.kind == "float":
            table[column.name] = values.astype(float)
        else:
            table[column.name] = values.fillna(ABSENT).astype("int64")
    table["split"], table["status"] = "fit", "ok"
    key = [name for name in KEY if table[name].nunique(dropna=False) > 1] or list(KEY[:1])
    medians = table.groupby(key, dropna=False, sort=False)["t_median_us"].transform("median")
    repeats = int(table.duplicated(key).sum())
    if repeats:
        batch.notes.append(f"{repeats} repeated rows became the median of their key")
    table["t_median_us"] = medians
    table = table.drop_duplicates(key)
    for column in COLUMNS:
        if column.kind in ("int", "bool"):
            values = table[column.name].astype("Int64")
            table[column.name] = values.mask(values == ABSENT)
    return table[[column.name for column in COLUMNS]]


def _write_csv(table: DataFrame, path: Path) -> None:
    import csv

    names = [column.name for column in COLUMNS]
    # no name inside: that of the file is not yet the one it will have
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw) as packed,
        io.TextIOWrapper(packed, "utf-8", newline="") as file,
    ):
        out = csv.writer(file, lineterminator="\n")
        out.writerow(names)
        for row in table.astype(object).where(table.notna(), None).to_dict("records"):
            out.writerow(csv_line({str(name): value for name, value in row.items()}))
