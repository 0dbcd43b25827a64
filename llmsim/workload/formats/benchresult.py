"""Results of ``vllm bench serve`` and ``sglang.bench_serving``: which requests they sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmsim.core.errors import Fault, TraceError, nearest
from llmsim.core.files import json_fault
from llmsim.core.units import MIB
from llmsim.workload.cells import LATEST_S
from llmsim.workload.chunk import Workload
from llmsim.workload.formats.jsonrecords import tokens_of
from llmsim.workload.formats.paced import PacedFile, pace
from llmsim.workload.parameters import check_parameters
from llmsim.workload.replay import Damage, ReplayWorkload
from llmsim.workload.rows import Rows, plain_rows
from llmsim.workload.tracefile import find_trace, read_some

LARGEST_BYTES: Final = 512 * MIB
"""A larger file is refused unread: the whole object must be held at once [bytes]."""

NEEDED: Final = ("completed", "total_input_tokens", "total_output_tokens", "duration")
"""Keys that both clients always write."""


@dataclass(frozen=True, kw_only=True)
class BenchResult(PacedFile):
    """The requests of a benchmark's result, with lengths as they were measured.

    Notes
    -----
    Needs the lists of ``--save-detailed`` (vLLM) or ``--output-details`` (SGLang). Requests
    arrive at the file's ``start_times`` where it has them; else at `rate_rps`, else as a Poisson
    process at the file's own ``request_rate``, else (infinite) all at once. Without start times
    the arrivals are a draw, not those of the run. A request that produced nothing has failed and
    is left out. Of JSON lines, to which SGLang appends, the last one counts.
    """

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If the file is missing, no such result, or has no lists of lengths.
        """
        check_parameters(self, "trace 'bench-result'")
        path = find_trace(self.path, near)
        data = read_result(path)
        lists = [key for key in ("input_lens", "output_lens") if not _is_list(data.get(key))]
        if lists:
            hint = "Run the client with --save-detailed (vLLM) or --output-details (SGLang)."
            faults = [
                Fault(str(path), key, "is missing: no length of each.", hint) for key in lists
            ]
            raise TraceError(str(path), faults)
        start = data.get("start_times")
        timed = _is_list(start) and len(start or ()) == len(data["input_lens"])
        rate = self.rate_rps if self.rate_rps is not None else finite_rate(data)
        return ReplayWorkload(
            path,
            self,
            lambda: _read(path, data, timed),
            transform=(lambda rows: lambda: _as_they_are) if timed else pace(seed, rate),
            drop_failed=True,
        )


def read_result(path: Path) -> dict[str, Any]:
    """Return the JSON object of a benchmark's result.

    Parameters
    ----------
    path : Path
        One JSON object; of JSON lines the last one counts, since SGLang appends.

    Raises
    ------
    TraceError
        If it is no such file, too large, or keys are missing; each with the nearest that is there.
    """
    raw = read_some(path, LARGEST_BYTES + 1)
    if len(raw) > LARGEST_BYTES:
        message = f"more than {LARGEST_BYTES // MIB} MiB: no result of a benchmark"
        raise TraceError(str(path), [Fault(str(path), "", message)])
    try:
        text = raw.decode("utf-8-sig")
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            data = json.loads(text)
        except ValueError:
            data = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError) as error:
        message = f"not JSON: {json_fault(error)}"
        raise TraceError(str(path), [Fault(str(path), "", message)]) from None
    if not isinstance(data, dict):
        raise TraceError(str(path), [Fault(str(path), "", "a benchmark result is a JSON object.")])
    faults = [
        Fault(
            str(path),
            key,
            "is missing; this is no result of vllm bench serve or sglang.bench_serving.",
            nearest(key, data),
        )
        for key in NEEDED
        if key not in data
    ]
    if faults:
        raise TraceError(str(path), faults)
    return data


def finite_rate(data: Mapping[str, Any]) -> float | None:
    """Return the rate of a result [requests/s], None where every request was sent at once."""
    try:
        rate = float(data.get("request_rate") or 0.0)
    except (TypeError, ValueError):
        return None
    return rate if math.isfinite(rate) and rate > 0 else None


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _as_they_are(rows: Rows) -> Rows:
    return rows


def _read(path: Path, data: Mapping[str, Any], timed: bool) -> Iterator[tuple[Rows, Damage]]:
    found: list[tuple[int, int, int, int]] = []
    damage: Damage = []
    start = data["start_times"] if timed else [0.0] * len(data["input_lens"])
    # time.perf_counter() of the client, whose zero means nothing and may be anywhere
    first = min((t for t in start if isinstance(t, int | float) and math.isfinite(t)), default=0.0)
    if len(data["output_lens"]) != len(start):
        message = f"{len(data['output_lens'])} output_lens for {len(start)} input_lens"
        raise TraceError(str(path), [Fault(str(path), "output_lens", message)])
    lists = zip(start, data["input_lens"], data["output_lens"], strict=True)
    for row, (at, prompt, output) in enumerate(lists, 1):
        try:
            if not isinstance(at, int | float) or not math.isfinite(at):
                raise ValueError(f"start_times: expected a time in seconds, read {at!r}")
            lengths = tokens_of("input_lens", prompt, 1), tokens_of("output_lens", output)
            if at - first > LATEST_S:
                raise ValueError(
                    f"start_times: expected at most {LATEST_S:g} s, read {at - first:g}"
                )
            found.append((round((at - first) * 1e9), *lengths, row))
        except ValueError as error:
            damage.append((row, Fault(f"{path}:request {row}", "", str(error))))
    table = np.array(sorted(found), dtype=np.int64).reshape(-1, 4)
    rows = plain_rows(table[:, 0], table[:, 1], table[:, 2], table[:, 3])
    yield (
        Rows(
            rows.time_ns,
            rows.prompt_tokens,
            rows.output_tokens,
            rows.line,
            rows.session,
            rows.client,
            rows.output_tokens == 0,
        ),
        damage,
    )
