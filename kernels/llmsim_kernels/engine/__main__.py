"""``python -m llmsim_kernels.engine --trace T --model M``: replay a trace, write what it took."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from llmsim.core.errors import Fault, LlmsimError, TraceError
from llmsim.specs.load import load_model
from llmsim_kernels.engine.replay import TraceRequest, run_reference
from llmsim_kernels.engine.scheduler import EngineSettings

_NAMES = (
    ("arrival_s", "workload_arrival_s"),
    ("prompt_tokens", "input_tokens"),
    ("output_tokens",),
)
"""Columns of a trace, under any of their names."""


def read_trace(path: Path) -> list[TraceRequest]:
    """Read a CSV of arrivals and lengths, in order of arrival.

    Parameters
    ----------
    path : Path
        With the columns arrival_s, prompt_tokens (or input_tokens) and output_tokens.

    Raises
    ------
    TraceError
        With every missing column, or every row that is no request.
    """
    with open(path, encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        names = table.fieldnames or []
        columns = [next((n for n in choice if n in names), "") for choice in _NAMES]
        faults = [
            Fault(f"{path}:1", choice[0], "no such column.", f"Read: {', '.join(names)}.")
            for choice, column in zip(_NAMES, columns, strict=True)
            if not column
        ]
        if faults:
            raise TraceError(str(path), faults)
        found = []
        for line, row in enumerate(table, 2):
            try:
                when, prompt, output = (float(row[column]) for column in columns)
                found.append(TraceRequest(when, int(prompt), int(output)))
            except (TypeError, ValueError):
                cells = ", ".join(f"{row[column]!r}" for column in columns)
                faults.append(Fault(f"{path}:{line}", "", f"not three numbers: {cells}"))
    if faults:
        raise TraceError(str(path), faults)
    return sorted(found, key=lambda request: request.arrival_s)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llmsim_kernels.engine", description=__doc__)
    usual = EngineSettings()
    parser.add_argument("--trace", type=Path, required=True, help="CSV of arrivals and lengths")
    parser.add_argument("--model", required=True, help="model card, or a path to a config.json")
    parser.add_argument("--minutes", type=float, default=3.0, help="of the trace")
    parser.add_argument("--out", type=Path, default=Path("runs/reference"), help="folder")
    parser.add_argument("--name", default="reference", help="first part of the files' names")
    parser.add_argument("--device", default="", help="cpu, cuda:0; default: a GPU if there is one")
    parser.add_argument("--offline", action="store_true", help="everybody arrives at time 0")
    parser.add_argument("--max-num-seqs", type=int, default=usual.max_num_seqs)
    parser.add_argument("--max-num-batched-tokens", type=int, default=usual.max_num_batched_tokens)
    parser.add_argument("--max-model-len", type=int, default=usual.max_model_len)
    parser.add_argument("--kv-blocks", type=int, default=0, help="default: as many as fit")
    given = parser.parse_args(arguments)
    settings = EngineSettings(
        given.max_num_seqs,
        given.max_num_batched_tokens,
        given.max_model_len,
        kv_blocks=given.kv_blocks,
    )
    try:
        run = run_reference(
            read_trace(given.trace),
            load_model(given.model),
            settings,
            device=given.device,
            minutes=given.minutes,
            offline=given.offline,
            out=given.out,
            name=given.name,
        )
    except (LlmsimError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    busy_s = sum(step.seconds for step in run.steps)
    told = f"{len(run.requests)} requests, {len(run.steps)} steps, {busy_s:.2f} s busy"
    sys.stdout.write(f"{given.out}: {told}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
