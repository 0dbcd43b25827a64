"""Measured serving runs in the tidy long format: one row per case, metric and statistic."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TextIO

from llmsim.core.errors import Fault, InputError, nearest

FILES: Final = ("e2e.csv.gz", "e2e.csv")
"""Names that the table of a folder may have."""

REQUIRED: Final = (
    "case_id",
    "quality",
    "source",
    "model",
    "gpu",
    "engine",
    "arrival",
    "metric",
    "stat",
    "value",
    "unit",
)
"""Columns without which nothing can be scored; every other one may be missing or empty."""

_SI: Final = {"ms": 1e-3, "s": 1.0, "us": 1e-6}
"""Seconds behind a unit of time; other units are kept as they are."""

Key = tuple[str, str]
"""(metric, statistic), such as ``("ttft", "p90")``."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measured run at one operating point.

    Parameters
    ----------
    case_id : str
    quality : str
        ``A`` everything known, ``B`` simulable after a stated assumption, ``C`` not to be scored.
    fields : mapping of str to str
        Every column that describes the run, as written; empty where the source is silent.
    measured : mapping of (metric, stat) to float
        Times in s, rates per s, the rest in the unit of the file.
    line : int
        Where the case begins in its file.
    """

    case_id: str
    quality: str
    fields: Mapping[str, str]
    measured: Mapping[Key, float]
    line: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)

    def text(self, column: str) -> str:
        """Return a column as written; empty when the source is silent."""
        return self.fields.get(column, "")

    def number(self, column: str) -> float | None:
        """Return a column as a finite number, or None when it holds none."""
        try:
            value = float(self.text(column))
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def whole(self, column: str) -> int | None:
        """Return a column as a whole number, or None when it holds none."""
        value = self.number(column)
        return None if value is None else round(value)

    @property
    def model_key(self) -> str:
        """Architecture: models of one shape share it."""
        return self.text("model_key") or self.text("model")

    def with_fields(self, **changed: str) -> Case:
        """Return the case with some columns replaced."""
        return replace(self, fields={**self.fields, **changed})


def find_table(folder: Path) -> Path:
    """Return the table of a folder of measurements.

    Raises
    ------
    InputError
        If the folder has none.
    """
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    what = "there is no such folder." if not folder.is_dir() else f"holds no {FILES[0]}."
    raise InputError(str(folder), [Fault(str(folder), "", what, nearest(FILES[0], there))])


def read_cases(folder: Path) -> list[Case]:
    """Read every case of a folder, in file order.

    Parameters
    ----------
    folder : Path
        Holds ``e2e.csv.gz`` or ``e2e.csv``.

    Raises
    ------
    InputError
        If the table is missing, lacks a column, or holds values that are no numbers; all of the
        faults are listed, each with its line.
    """
    path = find_table(folder)
    faults: list[Fault] = []
    cases: dict[str, Case] = {}
    measured: dict[str, dict[Key, float]] = {}
    for line, row in _rows(path):
        case_id = row["case_id"]
        key = (row["metric"], row["stat"])
        try:
            value = float(row["value"])
        except ValueError:
            faults.append(
                Fault(f"{path}:{line}", "value", f"expected a number, read {row['value']!r}")
            )
            continue
        if case_id not in cases:
            known = {
                name: text
                for name, text in row.items()
                if name not in ("metric", "stat", "value", "unit")
            }
            found = measured[case_id] = {}
            cases[case_id] = Case(case_id, row["quality"], known, found, line)
        measured[case_id][key] = value * _SI.get(row["unit"], 1.0)
    if faults:
        raise InputError(str(path), faults)
    return list(cases.values())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with _open(path) as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        missing = [
            Fault(f"{path}:1", name, "this column is missing.", nearest(name, header))
            for name in REQUIRED
            if name not in header
        ]
        if missing:
            raise InputError(str(path), missing)
        for row in reader:
            yield reader.line_num, {name: text or "" for name, text in row.items() if name}


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def layout_of(case: Case) -> str:
    """Return a model with its precision and split over GPUs.

    Parameters
    ----------
    case : Case

    Returns
    -------
    str
        Such as ``gpt-oss-120b fp4 tp4 ep1``.
    """
    split = (f"{name}{case.number(name) or 1:g}" for name in ("tp", "ep"))
    return " ".join((case.model_key, case.text("quant") or "unquantised", *split))
