"""Trace readers: published trace formats, read as published, in column chunks.

Start with `TraceFile` (in `replay`) for the choices that all formats share. `burstgpt`, `azure`
and `mooncake` each hold one published trace, `formats` what people have besides; `csvrows` and
`tracefile` do the reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.registry import Registry
from llmsim.core.rng import stream
from llmsim.workload.azure import AzureLLM, AzureMultimodal
from llmsim.workload.burstgpt import BurstGPT
from llmsim.workload.chunk import Workload
from llmsim.workload.formats.benchresult import BenchResult
from llmsim.workload.formats.chats import Chats
from llmsim.workload.formats.requestlog import OpenAILog
from llmsim.workload.formats.servegen import ServeGen
from llmsim.workload.formats.spans import GenAISpans
from llmsim.workload.formats.tables import CsvTable, JsonTable, ParquetTable
from llmsim.workload.formats.vllmmetrics import VllmMetrics
from llmsim.workload.lengths import LENGTHS, LengthSampler, Tokens
from llmsim.workload.mooncake import Mooncake
from llmsim.workload.replay import TraceFile
from llmsim.workload.reservoir import LengthReservoir


class TraceReader(Protocol):
    """One trace format; its fields are its YAML parameters."""

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file.

        Parameters
        ----------
        seed : int
            For the draws that a reader makes (imputed lengths); others ignore it.
        near : Path or None
            Folder that a relative path starts from; the scenario file's.

        Raises
        ------
        TraceError
            If the file is missing or is not of this format.
        """
        ...


TRACES: Registry[TraceReader] = Registry("trace")

FILE_KINDS: dict[str, type[TraceFile]] = {
    "burstgpt": BurstGPT,
    "azure-2023": AzureLLM,
    "azure-2024": AzureLLM,
    "azure-2025": AzureMultimodal,
    "mooncake": Mooncake,
    "sharegpt": Chats,
    "bench-dataset": Chats,
    "bench-result": BenchResult,
    "openai-log": OpenAILog,
    "otel-spans": GenAISpans,
    "csv": CsvTable,
    "jsonl": JsonTable,
    "parquet": ParquetTable,
}
"""The formats that llmsim reads from a file with a request in every row or record."""

for _kind, _reader in FILE_KINDS.items():
    TRACES.register(_kind)(_reader)

TRACES.register("servegen")(ServeGen)
TRACES.register("vllm-metrics")(VllmMetrics)


@LENGTHS.register("trace")
@dataclass(frozen=True)
class TraceLengths:
    """Lengths drawn with replacement from the rows of a trace, prompt and output together.

    Parameters
    ----------
    path : str
        The trace file; relative to the scenario file, or the name of a shipped one.
    format : str
        Kind of trace, such as ``burstgpt``, ``azure-2023`` or ``mooncake``; failed rows are left
        out.
    sample_rows : int
        Rows kept to draw from, sampled uniformly from a longer file.
    """

    path: str
    format: str
    sample_rows: Annotated[int, Ge(1)] = 200_000

    def sampler(self, seed: int, near: Path | None, part: str) -> LengthSampler:
        """Return a function that draws lengths.

        Raises
        ------
        InputError
            If the format is none that is read from a file.
        TraceError
            If the file cannot be read.
        """
        if self.format not in FILE_KINDS:
            message = f"unknown trace format '{self.format}'. {nearest(self.format, FILE_KINDS)}"
            raise InputError("lengths 'trace'", [Fault("", "format", message)])
        reservoir = LengthReservoir(stream(seed, "lengths", "sample"), self.sample_rows)
        for chunk in FILE_KINDS[self.format](path=self.path).open(seed, near).chunks():
            group = np.zeros(len(chunk), dtype=np.int32)
            reservoir.offer(group, chunk.prompt_tokens, chunk.output_tokens)
        pairs = reservoir.pairs().astype(np.int32)
        rng = stream(seed, "lengths", part, "row")

        def sample(rows: int) -> tuple[Tokens, Tokens]:
            row = np.floor(rng.random(rows) * len(pairs)).astype(np.int64)
            return pairs[row, 0], pairs[row, 1]

        return sample
