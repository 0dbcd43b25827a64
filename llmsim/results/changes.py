"""What was done about the fleet while it ran: one row per change, in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim.core.errors import Fault, InputError
from llmsim.core.units import NS_PER_S
from llmsim.results.columns import Column

if TYPE_CHECKING:
    import pandas as pd

CHANGES = "changes.parquet"

CHANGE_COLUMNS = (
    Column("time_s", "float64", "s", "When it happened, since the start of the workload"),
    Column("what", "str", "-", "What happened, such as `migrate`, `migrated` or `fail`"),
    Column("replica", "int32", "-", "Replica that it happened to, or the source of a move"),
    Column("other", "int32", "-", "Target of a move; -1 if none"),
    Column("request", "int64", "-", "Request that was moved; -1 if none"),
    Column("length_s", "float64", "s", "How long a moved request sat out; 0 where nobody did"),
)
"""Columns of ``changes.parquet``, which is there if anything changed."""


@dataclass(frozen=True, slots=True)
class FleetChange:
    """One thing that happened to the fleet.

    Parameters
    ----------
    time_ns : int [ns]
    what : str
    replica, other, request : int
        -1 where there is none.
    length_ns : int [ns]
    """

    time_ns: int
    what: str
    replica: int = -1
    other: int = -1
    request: int = -1
    length_ns: int = 0


def changes_frame(changes: Sequence[FleetChange]) -> pd.DataFrame:
    """Return changes as a table of `CHANGE_COLUMNS`."""
    import pandas as pd

    rows = [
        (c.time_ns / NS_PER_S, c.what, c.replica, c.other, c.request, c.length_ns / NS_PER_S)
        for c in changes
    ]
    frame = pd.DataFrame(rows, columns=[column.name for column in CHANGE_COLUMNS])
    return frame.astype({column.name: column.dtype for column in CHANGE_COLUMNS})


def write_changes(changes: Sequence[FleetChange], folder: Path) -> None:
    """Write `changes.parquet` into a run folder, if there is anything to write."""
    if changes:
        changes_frame(changes).to_parquet(folder / CHANGES, compression="zstd", index=False)


def read_changes(folder: Path) -> tuple[FleetChange, ...]:
    """Return the changes of a saved run, none if it has no such file.

    Raises
    ------
    InputError
        If the file cannot be read or lacks a column.
    """
    import pandas as pd

    path = folder / CHANGES
    if not path.is_file():
        return ()
    try:
        frame = pd.read_parquet(path)
        columns = [frame[column.name].tolist() for column in CHANGE_COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(path), [Fault(str(path), "", f"cannot be read: {error}")]) from error
    return tuple(
        FleetChange(
            round(time_s * NS_PER_S), what, replica, other, request, round(length_s * NS_PER_S)
        )
        for time_s, what, replica, other, request, length_s in zip(*columns, strict=True)
    )
