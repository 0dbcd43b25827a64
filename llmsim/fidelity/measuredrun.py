"""A run of the reference engine, read back: every request, every step, every decision."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.core.units import NS_PER_S
from llmsim.workload.headers import looks_like
from llmsim.workload.readers import FILE_KINDS
from llmsim.workload.tracefile import find_trace, first_lines

Decision = tuple[int, int, int]
"""(request, new tokens, tokens computed before)."""


@dataclass(frozen=True, slots=True)
class MeasuredRequest:
    """One request of a run.

    Parameters
    ----------
    arrival_ns : int [ns]
        Since the run began.
    prompt, output : int [tokens]
    ttft_s, e2e_s : float [s]
        NaN for one that had not ended when the run was stopped.
    """

    arrival_ns: int
    prompt: int
    output: int
    ttft_s: float
    e2e_s: float


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step of a run.

    Parameters
    ----------
    start_ns, duration_ns : int [ns]
    phase : str
        ``context``, ``decode`` or ``mixed``.
    decisions : tuple of (request, new, before)
        In the order of the scheduler.
    preempted : tuple of int
    launch_s, device_s : float [s]
        Of it: from the first launch to the last, and from the first kernel to the last one's end;
        0 where they were not measured.
    """

    start_ns: int
    duration_ns: int
    phase: str
    decisions: tuple[Decision, ...]
    preempted: tuple[int, ...]
    launch_s: float = 0.0
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """What the files of a run say.

    Parameters
    ----------
    requests : tuple of MeasuredRequest
        By index.
    steps : tuple of MeasuredStep
    meta : mapping
    """

    requests: tuple[MeasuredRequest, ...]
    steps: tuple[MeasuredStep, ...]
    meta: Mapping[str, Any]


def read_run(folder: Path, name: str = "reference") -> MeasuredRun:
    """Read the files that ``llmsim_kernels.engine`` wrote, gzipped or not.

    Parameters
    ----------
    folder : Path
    name : str
        First part of the files' names.

    Raises
    ------
    InputError
        If a file or a column is missing, or a request has not ended; every fault with its line.
    """
    meta_path = folder / f"{name}_meta.json"
    if not meta_path.is_file():
        there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        fault = Fault(str(meta_path), "", "no such file.", nearest(meta_path.name, there))
        raise InputError(str(folder), [fault])
    decided: dict[int, list[Decision]] = {}
    for row in _rows(folder / f"{name}_decisions.csv"):
        part = (int(row["request"]), int(row["new_tokens"]), int(row["computed_before"]))
        decided.setdefault(int(row["step"]), []).append(part)
    steps = [
        MeasuredStep(
            _ns(row["start_s"]),
            round(float(row["latency_ms"]) * 1e6),
            row["phase"],
            tuple(decided.get(number, ())),
            tuple(int(word) for word in row["preempted"].split()),
            float(row.get("launch_ms") or 0.0) / 1e3,
            float(row.get("device_ms") or 0.0) / 1e3,
        )
        for number, row in enumerate(_rows(folder / f"{name}_steps.csv"))
    ]
    meta = json.loads(meta_path.read_text(encoding="utf-8"))
    stopped = meta.get("stop_s") is not None
    requests = _requests(folder / f"{name}_requests.csv", stopped=stopped)
    return MeasuredRun(requests, tuple(steps), meta)


def _requests(path: Path, *, stopped: bool) -> tuple[MeasuredRequest, ...]:
    found, faults = [], []
    for line, row in enumerate(_rows(path), 2):
        if row["error"] and not stopped:
            faults.append(Fault(f"{path}:{line}", "error", row["error"]))
            continue
        found.append(
            MeasuredRequest(
                _ns(row["arrival_s"]),
                int(row["input_tokens"]),
                int(row["output_tokens"]),
                float(row["ttft_s"] or "nan"),
                float(row["e2e_s"] or "nan"),
            )
        )
    if faults:
        raise InputError(str(path), faults)
    return tuple(found)


def _ns(text: str) -> int:
    return round(float(text) * NS_PER_S)


def _rows(path: Path) -> Sequence[dict[str, str]]:
    packed = path.with_name(f"{path.name}.gz")
    if not path.is_file() and not packed.is_file():
        raise InputError(str(path), [Fault(str(path), "", "no such file.")])
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        text = gzip.decompress(packed.read_bytes()).decode()
    return list(csv.DictReader(text.splitlines()))


def known_trace(path: Path, minutes: float) -> list[tuple[float, int, int]] | None:
    """Read the first minutes of a trace in one of the published formats.

    Parameters
    ----------
    path : Path
    minutes : float [min]
        After the first row.

    Returns
    -------
    list of (arrival [s], prompt, output [tokens]) or None
        None if the file is in none of them.

    Raises
    ------
    TraceError
        If the file is missing or damaged.
    """
    (first, *_) = [*first_lines(find_trace(str(path), None), 1), ""]
    kind = looks_like(first)
    if not kind:
        return None
    workload = FILE_KINDS[kind](path=str(path), end_s=60.0 * minutes).open(0, None)
    found: list[tuple[float, int, int]] = []
    for chunk in workload.chunks():
        kept = ~chunk.failed
        arrivals = (chunk.arrival_ns[kept] / NS_PER_S).tolist()
        lengths = (chunk.prompt_tokens[kept].tolist(), chunk.output_tokens[kept].tolist())
        found += zip(arrivals, *lengths, strict=True)
    return found
