"""Every step of a run, merged ones as one row: where the time of each replica went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError

if TYPE_CHECKING:
    import pandas as pd

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepLog:
    """Steps in order of replica and start; a stretch of merged decode steps is one row.

    Parameters
    ----------
    replica : ndarray of int64 (rows,)
        Index within the fleet.
    start_ns, end_ns : ndarray of int64 (rows,) [ns]
    steps : ndarray of int64 (rows,)
        How many; more than one only of decodes.
    decoding : ndarray of int64 (rows,) [requests]
        Who got a token in each of them.
    running : ndarray of int64 (rows,) [requests]
    kv_blocks : ndarray of int64 (rows,) [blocks]
        In use at the end.
    prefill_tokens : ndarray of int64 (rows,) [tokens]
    output_tokens : ndarray of int64 (rows,) [tokens]
        As computed, those that prompts ended with included; a timeline counts them once where
        another replica, after a handing over or an abort, gives them anew.
    """

    replica: Ints
    start_ns: Ints
    end_ns: Ints
    steps: Ints
    decoding: Ints
    running: Ints
    kv_blocks: Ints
    prefill_tokens: Ints
    output_tokens: Ints

    @classmethod
    def of(cls, logged: Mapping[int, Sequence[Ints]]) -> StepLog:
        """Return the log of what meters kept.

        Parameters
        ----------
        logged : mapping of int to sequence of ndarray (12, n)
            Columns as `Meter.log` takes them, by replica.
        """
        parts = []
        for index, blocks in logged.items():
            table = np.concatenate([np.empty((12, 0), np.int64), *blocks], axis=1)
            start, end, ticks, members, running, _, blocks_end, prefill, logits, *_ = table
            parts.append(
                np.stack(
                    (
                        np.full(len(start), index),
                        start,
                        end,
                        np.maximum(ticks, 1),
                        np.where(ticks > 0, members, 0),
                        running,
                        blocks_end,
                        prefill,
                        ticks * members + logits,
                    )
                )
            )
        table = np.concatenate([np.empty((9, 0), np.int64), *parts], axis=1)
        # rows of no duration correct what was counted before
        table = table[:, table[2] > table[1]]
        return cls(*table[:, np.lexsort((table[1], table[0]))])

    def __len__(self) -> int:
        return len(self.replica)

    def frame(self) -> pd.DataFrame:
        """Return a row per step, in nanoseconds, requests, blocks and tokens."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name) for name in COLUMNS})

    def write(self, path: Path) -> None:
        """Write ``steps.parquet``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: pa.array(getattr(self, name)) for name in COLUMNS}
        pq.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> StepLog | None:
        """Read ``steps.parquet``; None where there is none.

        Raises
        ------
        InputError
            If it is not what `write` wrote.
        """
        if not path.is_file():
            return None
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table: pa.Table = pq.read_table(path, columns=list(COLUMNS))
            return cls(*(table.column(name).to_numpy().astype(np.int64) for name in COLUMNS))
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            raise InputError(
                str(path), [Fault(str(path), "", f"holds no steps: {error}")]
            ) from None


COLUMNS = tuple(each.name for each in fields(StepLog))
"""Columns of ``steps.parquet``."""
