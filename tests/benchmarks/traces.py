"""How fast traces are read and inspected, and in how much memory; prints a table.

::

    python tests/benchmarks/traces.py            # 1 M rows of each kind, then 10.31 M of BurstGPT's
    python tests/benchmarks/traces.py --quick    # without the long one
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = 1_000_000
BURSTGPT_ROWS = 10_310_000
"""Rows of the published BurstGPT collection."""

INSPECT = """
import sys, time
from pathlib import Path
import llmsim as ls
ls.trace
start = time.process_time()
profile = ls.trace.inspect(sys.argv[1], sys.argv[2])
took = time.process_time() - start
status = Path("/proc/self/status").read_text()  # what getrusage says goes on from the parent's
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(profile.requests, took, peak)
"""


def made(folder: Path) -> dict[str, Path]:
    """Write a million rows of each kind of table."""
    import llmsim as ls

    found = {}
    for ending in (".csv", ".csv.gz", ".csv.zst", ".parquet", ".jsonl"):
        path = folder / f"million{ending}"
        ls.trace.convert("", path, "burstgpt-like", {"requests": ROWS}, force=True)
        found[ending] = path
    return found


def with_named_sessions(folder: Path) -> dict[str, Path]:
    """Write a million rows whose sessions are 200,000 texts, most of what such a table costs."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet

    random = np.random.default_rng(1)
    sessions = random.integers(0, 200_000, ROWS).tolist()
    table = pa.table(
        {
            "arrival_s": np.cumsum(random.exponential(0.01, ROWS)),
            "prompt_tokens": random.integers(1, 4000, ROWS),
            "output_tokens": random.integers(1, 900, ROWS),
            "session": [f"session-{n * 0x9E3779B9:032x}" for n in sessions],
        }
    )
    found = {ending: folder / f"named{ending}" for ending in (".csv", ".parquet")}
    csv.write_csv(table, found[".csv"])
    parquet.write_table(table, found[".parquet"])
    return found


def long_file(folder: Path) -> Path:
    """Write 10.31 M rows in BurstGPT's format."""
    from llmsim.workload.burstgpt_csv import csv_lines

    path = folder / "burstgpt.csv"
    with path.open("w") as file:
        for line, text in enumerate(csv_lines(400, 1)):
            file.write(text + "\n")
            if line >= BURSTGPT_ROWS:
                break
    return path


def inspect(path: Path, kind: str) -> tuple[int, float, float]:
    """Inspect a trace in a fresh process: (requests, CPU [s], peak [MiB])."""
    words = [sys.executable, "-c", INSPECT, str(path), kind]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    requests, took, peak = done.stdout.split()
    return int(requests), float(took), float(peak)


def main() -> None:
    """Print a row per file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    print(f"{'file':<16}{'requests':>12}{'CPU [s]':>9}{'rows/s':>12}{'peak [MiB]':>12}")
    with tempfile.TemporaryDirectory() as name:
        files = [(path, end.split(".")[1]) for end, path in made(Path(name)).items()]
        named = with_named_sessions(Path(name))
        files += [(path, end.removeprefix(".")) for end, path in named.items()]
        if not quick:
            files.append((long_file(Path(name)), "burstgpt"))
        for path, kind in files:
            requests, took, peak = inspect(path, kind)
            row = (
                f"{path.name:<16}{requests:>12,}{took:>9.2f}{requests / took:>12,.0f}{peak:>12.0f}"
            )
            print(row, flush=True)


if __name__ == "__main__":
    main()
