"""Recorded requests of a run: replayed as they came, with the identity of their prompts."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llmsim.core.errors import Fault, InputError
from llmsim.core.files import write_whole
from llmsim.fidelity.assumptions import assume
from llmsim.fidelity.cases import Case
from llmsim.workload.mooncake import BLOCK_TOKENS

_ARRIVAL: Final = ("queued_s", "arrival_s")
"""Columns that say when a request arrived at the server, the surest first."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The requests of a case, as a trace that a scenario can replay.

    Parameters
    ----------
    trace : Path
        Mooncake format.
    window : (first, last) or None
        Requests that belong to the case, by index in the trace, the last one excluded.
    """

    trace: Path
    window: tuple[int, int] | None


class RequestFiles:
    """The folder ``requests/`` beside the table: ``NAME_meta.json`` and ``NAME_requests.csv.gz``.

    Parameters
    ----------
    folder : Path
        The folder of measurements.
    out : Path
        Where traces are written.
    cases : iterable of Case
        All cases of the folder: a run in stages is one file and several cases.
    """

    def __init__(self, folder: Path, out: Path, cases: Iterable[Case]) -> None:
        self._out = out
        self._metas: list[tuple[Path, dict[str, Any]]] = []
        for path in sorted((folder / "requests").glob("*_meta.json")):
            self._metas.append((path, json.loads(path.read_text(encoding="utf-8"))))
        self._stages: dict[Path, dict[int, int]] = {}
        for case in cases:
            file, stage, requests = self._file_of(case), _stage(case), case.whole("num_requests")
            if file is not None and stage is not None and requests is not None:
                self._stages.setdefault(file, {})[stage] = requests

    def find(self, case: Case) -> Recorded | None:
        """Return the recorded requests of a case, or None if there are none.

        Raises
        ------
        InputError
            If the file is there but cannot be read.
        """
        path = self._file_of(case)
        if path is None or not path.is_file() or not tells_arrivals(path):
            return None
        period = assume(case).client.get("distinct_prompts", 0)
        trace = self._out / f"{path.name.removesuffix('_requests.csv.gz')}.jsonl"
        if not trace.is_file():
            write_trace(read_requests(path), trace, period)
        stages, stage = self._stages.get(path, {}), _stage(case)
        if stage is None:
            return Recorded(trace, None)
        if set(range(stage + 1)) - set(stages):
            return None  # an earlier stage has no row of its own: where this one begins is unknown
        first = sum(stages[each] for each in range(stage))
        return Recorded(trace, (first, first + stages[stage]))

    def _file_of(self, case: Case) -> Path | None:
        """Return the file whose recorded origin and machine are those of a case."""
        origin = case.text("source_path")
        for path, meta in self._metas:
            if meta.get("gpu", case.text("gpu")) != case.text("gpu"):
                continue
            name = PurePosixPath(meta["path"]).name.removesuffix(".json").rstrip("*")
            folder = meta["path"] if meta["path"].endswith("/") else ""
            if (folder and origin.startswith(folder)) or (not folder and name and name in origin):
                return path.with_name(path.name.replace("_meta.json", "_requests.csv.gz"))
        return None


def tells_arrivals(path: Path) -> bool:
    """Whether a file of requests says when each arrived; else its case is drawn from laws."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    return any(name in header for name in _ARRIVAL)


def _stage(case: Case) -> int | None:
    match = re.search(r"stage_(\d+)_", case.text("source_path"))
    return int(match.group(1)) if match else None


def read_requests(path: Path) -> list[tuple[float, int, int]]:
    """Read (arrival [s], prompt [tokens], output [tokens]) of every request.

    Raises
    ------
    InputError
        If a column is missing or a row is damaged; each fault with its line.
    """
    faults: list[Fault] = []
    found: list[tuple[float, int, int]] = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        arrival = next((name for name in _ARRIVAL if name in header), None)
        if arrival is None:
            raise InputError(
                str(path), [Fault(f"{path}:1", "", f"no column {' or '.join(_ARRIVAL)}")]
            )
        for row in reader:
            try:
                found.append(
                    # A request that failed before it was tokenised has no length; it keeps its
                    # place, on which the identity of prompts depends.
                    (
                        float(row[arrival]),
                        max(1, int(row["input_tokens"])),
                        int(row["output_tokens"]),
                    )
                )
            except (KeyError, TypeError, ValueError) as error:
                faults.append(Fault(f"{path}:{reader.line_num}", "", f"{error!r}"))
    if faults:
        raise InputError(str(path), faults)
    return found


def write_trace(requests: Iterable[tuple[float, int, int]], path: Path, period: int = 0) -> None:
    """Write requests as a Mooncake trace.

    Parameters
    ----------
    requests : iterable of (arrival [s], prompt [tokens], output [tokens])
        In the order they were sent.
    path : Path
    period : int
        Prompts repeat after this many requests; 0: no two are alike.
    """
    lines = []
    blocks: dict[int, list[int]] = {}
    next_id = 0
    for index, (arrival_s, prompt, output) in enumerate(requests):
        member = index % period if period else index
        ids = blocks.setdefault(member, [])
        wanted = -(-prompt // BLOCK_TOKENS)
        while len(ids) < wanted:
            ids.append(next_id)
            next_id += 1
        row: Mapping[str, Any] = {
            "timestamp": round(arrival_s * 1e3, 6),
            "input_length": prompt,
            "output_length": output,
            "hash_ids": ids[:wanted],
        }
        lines.append(json.dumps(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "\n".join(lines) + "\n")
