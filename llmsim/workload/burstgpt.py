"""BurstGPT traces (HPMLL/BurstGPT, arXiv 2401.17644), every published version of the columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, TraceError
from llmsim.core.rng import stream
from llmsim.workload.cells import SECONDS, TEXT, TOKENS
from llmsim.workload.chunk import Workload
from llmsim.workload.classcolumn import ClassColumn
from llmsim.workload.csvrows import CsvReader, Text
from llmsim.workload.formats.naming import session_ids
from llmsim.workload.headers import match_header
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import Damage, ReplayWorkload, RowMap, TraceFile, Transform
from llmsim.workload.reservoir import LengthReservoir, Pairs
from llmsim.workload.rows import Rows
from llmsim.workload.tracefile import find_trace, line_blocks

CLIENTS = (
    "ChatGPT Conversation log",
    "ChatGPT API log",
    "GPT-4 Conversation log",
    "GPT-4 API log",
)
"""Model x log type as published; another pair gets the next index when it is first met."""

RESERVOIR_PAIRS = 16_384
"""Length pairs kept per client for imputing failed rows: quantiles to about 1%, 256 KiB each."""


@dataclass(frozen=True, kw_only=True)
class BurstGPT(TraceFile):
    """A BurstGPT CSV file, with or without `Session ID` and `Elapsed time`.

    Parameters
    ----------
    failed : {"drop", "as_demand", "inject"}
        What becomes of rows whose response has 0 tokens, which the service failed to answer.
        ``drop`` leaves them out. ``as_demand`` makes them ordinary requests with lengths drawn
        from the answered rows of the same model and log type. ``inject`` keeps them as failures
        that load nothing.

    Notes
    -----
    ``as_demand`` reads the file twice: a first pass keeps a uniform sample of up to 16,384 length
    pairs per model x log type (in constant memory), from which each failed row then draws: the
    output only, or the whole pair where the row's prompt is 0 too, as it is in nearly all failed
    rows of the published files. A model x log type without a single answered row draws from all
    answered rows together.

    A row with an answer but without a prompt is damaged. The session is a hash of the text in
    `Session ID`, equal in every process. Times, which are whole seconds in the published files,
    are taken as they stand. `Elapsed time` is not used: it describes the recorded service.
    """

    failed: Literal["drop", "as_demand", "inject"] = "drop"

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file.

        Parameters
        ----------
        seed : int
            For imputed lengths.
        near : Path or None
            Folder that a relative path starts from.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing or its header is not BurstGPT's.
        """
        check_parameters(self, "trace 'burstgpt'")
        path = find_trace(self.path, near)
        file = _File(path, self.slo_class_column)
        return ReplayWorkload(
            path,
            self,
            file.read,
            clients=lambda: tuple(file.clients),
            classes=lambda: tuple(file.classes.names),
            transform=_impute(seed, path) if self.failed == "as_demand" else _keep,
            drop_failed=self.failed == "drop",
        )


class _File:
    """One BurstGPT file: which columns it has, and the client names met in it."""

    def __init__(self, path: Path, class_column: str | None) -> None:
        header, names = match_header(path, "burstgpt")
        numbers = [names[role] for role in ("timestamp", "request", "response")]
        self.classes = ClassColumn(path, class_column, header, numbers)
        kinds = {"timestamp": SECONDS, "request": TOKENS, "response": TOKENS}
        kinds |= {"model": TEXT, "log": TEXT, "session": TEXT}
        self._names = names
        self._csv = CsvReader(
            path,
            header,
            {column: kinds[role] for role, column in names.items() if role in kinds}
            | self.classes.kinds,
            require=self._complaint,
            valid=self._valid,
        )
        self._path = path
        self._index = {name: index for index, name in enumerate(CLIENTS)}
        self.clients = list(CLIENTS)

    def read(self) -> Iterator[tuple[Rows, Damage]]:
        """Yield the rows in file order, with the damage found in them."""
        names = self._names
        for block in line_blocks(self._path, skip_lines=1):
            table = self._csv.read(block)
            output = table.numbers[names["response"]]
            session = (
                session_ids(table.texts[names["session"]])
                if "session" in names
                else np.full(len(output), -1, dtype=np.int64)
            )
            yield (
                Rows(
                    time_ns=table.numbers[names["timestamp"]],
                    prompt_tokens=table.numbers[names["request"]],
                    output_tokens=output,
                    line=table.line,
                    session=session,
                    client=self._client(table.texts[names["model"]], table.texts[names["log"]]),
                    failed=output == 0,
                    slo_class=self.classes.codes(table.texts),
                ),
                table.faults,
            )

    def _client(self, model: Text, log: Text) -> npt.NDArray[np.int32]:
        """Return client indices, giving new names the next ones in order of the file."""
        pair = model.codes.astype(np.int64) * len(log.values) + log.codes
        distinct, first = np.unique(pair, return_index=True)
        index = np.empty(len(distinct), dtype=np.int32)
        for at in np.argsort(first).tolist():
            code = divmod(int(distinct[at]), len(log.values))
            name = f"{model.values[code[0]]} {log.values[code[1]]}"
            if name not in self._index:
                self._index[name] = len(self.clients)
                self.clients.append(name)
            index[at] = self._index[name]
        return index[np.searchsorted(distinct, pair)]

    def _valid(self, table: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_] | bool:
        prompt, output = table[self._names["request"]], table[self._names["response"]]
        sound: npt.NDArray[np.bool_] = (prompt > 0) | (output == 0)
        return sound

    def _complaint(self, row: Mapping[str, int]) -> str:
        prompt, output = self._names["request"], self._names["response"]
        if row[prompt] > 0 or row[output] == 0:
            return ""
        return f"{prompt}: expected at least 1 token with an answer of {row[output]}, read 0"


def _keep(sound: Callable[[], Iterator[Rows]]) -> Callable[[], RowMap]:
    return lambda: lambda rows: rows


def _impute(seed: int, path: Path) -> Transform:
    """Return the transform that gives failed rows lengths and makes them ordinary requests."""

    def learn(sound: Callable[[], Iterator[Rows]]) -> Callable[[], RowMap]:
        reservoir = LengthReservoir(stream(seed, "trace", "reservoir"), RESERVOIR_PAIRS)
        for rows in sound():
            answered = rows.take(~rows.failed)
            reservoir.offer(answered.client, answered.prompt_tokens, answered.output_tokens)
        if not len(reservoir.pairs()):
            message = "no row was answered, so failed: as_demand has no lengths to draw from"
            raise TraceError(str(path), [Fault(str(path), "failed", message)])
        return lambda: _imputer(reservoir, stream(seed, "trace", "imputed"))

    return learn


def _imputer(reservoir: LengthReservoir, rng: np.random.Generator) -> RowMap:
    def impute(rows: Rows) -> Rows:
        failed = np.flatnonzero(rows.failed)
        if not len(failed):
            return rows
        prompt, output = rows.prompt_tokens.copy(), rows.output_tokens.copy()
        for at, draw in zip(failed.tolist(), rng.random(len(failed)).tolist(), strict=True):
            own: Pairs = reservoir.pairs(int(rows.client[at]))
            pairs = own if len(own) else reservoir.pairs()
            prompt_drawn, output[at] = pairs[int(draw * len(pairs))]
            prompt[at] = prompt[at] or prompt_drawn
        nothing_failed = np.zeros(len(rows), dtype=np.bool_)
        return replace(rows, prompt_tokens=prompt, output_tokens=output, failed=nothing_failed)

    return impute
