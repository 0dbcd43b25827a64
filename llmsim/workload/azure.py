"""Azure LLM inference traces (Azure/AzurePublicDataset), 2023 and 2024."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmsim.workload.chunk import Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.csvrows import STAMP, STAMP_UTC, TOKENS, CsvReader
from llmsim.workload.headers import match_header
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import Damage, ReplayWorkload, TraceFile
from llmsim.workload.rows import Rows, plain_rows
from llmsim.workload.tracefile import find_trace, first_lines, line_blocks


@dataclass(frozen=True, kw_only=True)
class AzureLLM(TraceFile):
    """A CSV file of the Azure LLM inference traces.

    Notes
    -----
    The 2023 files stamp 100 ns without a zone, the 2024 files microseconds with one; the first
    row tells which. A row without prompt tokens is damaged. A row with 0 generated tokens ran its
    prefill all the same and is replayed with one output token.
    """

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file; the seed is not used.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or its header is not that of the Azure traces.
        """
        check_parameters(self, "trace 'azure'")
        path = find_trace(self.path, near)
        header, names = match_header(path, "azure")
        top = first_lines(path, 2)
        zoned = len(top) > 1 and top[1].split(",")[0].strip()[-6:-5] in ("+", "-")
        prompt = names["context"]
        classes = ClassColumn(path, self.slo_class_column, header, list(names.values()))
        table = CsvReader(
            path,
            header,
            {
                names["timestamp"]: STAMP_UTC if zoned else STAMP,
                prompt: TOKENS,
                names["generated"]: TOKENS,
                **classes.kinds,
            },
            require=lambda row: _complaint(prompt, row),
            valid=lambda columns: _sound(columns[prompt]),
        )
        return ReplayWorkload(
            path,
            self,
            lambda: _read(path, table, names, classes),
            classes=lambda: tuple(classes.names),
        )


def _read(
    path: Path, table: CsvReader, names: Mapping[str, str], classes: ClassColumn
) -> Iterator[tuple[Rows, Damage]]:
    for block in line_blocks(path, skip_lines=1):
        columns = table.read(block)
        rows = plain_rows(
            columns.numbers[names["timestamp"]],
            columns.numbers[names["context"]],
            columns.numbers[names["generated"]],
            columns.line,
        )
        yield replace(rows, slo_class=classes.codes(columns.texts)), columns.faults


def _sound(prompt: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    sound: npt.NDArray[np.bool_] = prompt > 0
    return sound


def _complaint(prompt: str, row: Mapping[str, int]) -> str:
    return "" if row[prompt] > 0 else f"{prompt}: expected at least 1 token, read 0"
