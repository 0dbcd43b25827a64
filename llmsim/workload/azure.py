"""Azure LLM inference traces (Azure/AzurePublicDataset), 2023, 2024 and 2025."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from llmsim.workload.cells import STAMP, STAMP_UTC, TOKENS
from llmsim.workload.chunk import Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.csvrows import CsvReader
from llmsim.workload.headers import match_header
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import Damage, ReplayWorkload, TraceFile
from llmsim.workload.rows import MOST_TOKENS, Rows, plain_rows
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
        return _open(self, "azure", find_trace(self.path, near))


@dataclass(frozen=True, kw_only=True)
class AzureMultimodal(TraceFile):
    """The CSV file of the Azure multimodal inference trace of 2025 (ModServe, SoCC 2025).

    Parameters
    ----------
    tokens_per_image : int [tokens]
        Added to a prompt for each of its images. The publishers do not say whether the context
        tokens count those of images; 0 takes them as they stand.
    """

    tokens_per_image: Annotated[int, Ge(0)] = 0

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file; the seed is not used.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or its header is not that of this trace.
        """
        check_parameters(self, "trace 'azure-2025'")
        path = find_trace(self.path, near)
        return _open(self, "azure-2025", path, self.tokens_per_image)


def _open(options: TraceFile, layout: str, path: Path, image_tokens: int = 0) -> Workload:
    header, names = match_header(path, layout)
    top = first_lines(path, 2)
    stamp = top[1].split(",")[header.index(names["timestamp"])].strip() if len(top) > 1 else ""
    zoned = stamp.endswith("Z") or stamp[-6:-5] in ("+", "-")
    classes = ClassColumn(path, options.slo_class_column, header, list(names.values()))
    kinds = dict.fromkeys(names.values(), TOKENS) | classes.kinds
    kinds[names["timestamp"]] = STAMP_UTC if zoned else STAMP
    prompt = names["context"]
    table = CsvReader(
        path,
        header,
        kinds,
        require=lambda row: _complaint(prompt, row),
        valid=lambda columns: _sound(columns[prompt]),
    )
    return ReplayWorkload(
        path,
        options,
        lambda: _read(path, table, names, classes, image_tokens),
        classes=lambda: tuple(classes.names),
    )


def _read(
    path: Path,
    table: CsvReader,
    names: Mapping[str, str],
    classes: ClassColumn,
    image_tokens: int,
) -> Iterator[tuple[Rows, Damage]]:
    for block in line_blocks(path, skip_lines=1):
        columns = table.read(block)
        prompt = columns.numbers[names["context"]]
        if image_tokens:
            prompt = prompt + image_tokens * columns.numbers[names["images"]]
        rows = plain_rows(
            columns.numbers[names["timestamp"]],
            np.minimum(prompt, MOST_TOKENS),
            columns.numbers[names["generated"]],
            columns.line,
        )
        yield replace(rows, slo_class=classes.codes(columns.texts)), columns.faults


def _sound(prompt: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    sound: npt.NDArray[np.bool_] = prompt > 0
    return sound


def _complaint(prompt: str, row: Mapping[str, int]) -> str:
    return "" if row[prompt] > 0 else f"{prompt}: expected at least 1 token, read 0"
