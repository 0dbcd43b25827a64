"""Requests written down as a trace that a scenario replays; kept by content."""

from __future__ import annotations

import csv
import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmsim.core.files import whole_file

KIND = "azure-2023"
"""Trace format: one line a request, with its time and two lengths."""

BEGIN = datetime(2023, 1, 1)  # noqa: DTZ001 - the format has no zone
"""Of every file; only what lies between two lines counts."""


def write_requests(
    arrival_s: npt.ArrayLike,
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    folder: Path,
) -> Path:
    """Write requests into a folder, unless they are there; return the file.

    Parameters
    ----------
    arrival_s : array_like of float (n,) [s]
        Not decreasing; kept to a tenth of a microsecond.
    prompt_tokens, output_tokens : array_like of int (n,) [tokens]
    folder : Path
        Made if it is not there.
    """
    ticks = np.rint(np.asarray(arrival_s, dtype=np.float64) * 1e7).astype(np.int64)
    rows = np.column_stack((ticks, np.asarray(prompt_tokens), np.asarray(output_tokens)))
    name = hashlib.blake2b(rows.astype(np.int64).tobytes(), digest_size=12).hexdigest()
    path = folder / f"requests-{name}.csv"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for tick, prompt, output in rows.tolist():
            seconds, rest = divmod(tick, 10_000_000)
            stamp = BEGIN + timedelta(seconds=seconds)
            writer.writerow([f"{stamp:%Y-%m-%d %H:%M:%S}.{rest:07d}", prompt, output])
    return path
