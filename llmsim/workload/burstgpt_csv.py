"""Writes BurstGPT-like traffic as a BurstGPT CSV file; this made `traces/burstgpt-like.csv.gz`.

::

    python -m llmsim.workload.burstgpt_csv --days 2 --seed 2 traces/burstgpt-like.csv.gz
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmsim.core.files import whole_file
from llmsim.core.units import NS_PER_S
from llmsim.workload import burstgpt_fit as fit
from llmsim.workload.burstgpt import CLIENTS
from llmsim.workload.burstgpt_like import like_days
from llmsim.workload.headers import BURSTGPT


def csv_lines(days: int, seed: int, rate_rps: float = fit.FILE_1_RATE_RPS) -> Iterator[str]:
    """Yield the lines of a generated BurstGPT CSV file, the header first, without line ends.

    Parameters
    ----------
    days : int [days]
    seed : int
    rate_rps : float [requests/s]
        Mean rate; that of BurstGPT_1.csv unless given.

    Notes
    -----
    Whole seconds, sessions as UUIDs for conversations only, and 0 tokens in failed rows, as in
    the published files. The elapsed time lies on a straight line through the output tokens.
    """
    yield ",".join(BURSTGPT)
    for _, rows in zip(range(days), like_days(rate_rps, seed), strict=False):
        seconds = rows.time_ns // NS_PER_S
        prompt = np.where(rows.failed, 0, rows.prompt_tokens)
        output = np.where(rows.failed, 0, rows.output_tokens)
        columns = (seconds, rows.session, rows.client, prompt, output)
        for at_s, session, client, request, response in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            model, log = CLIENTS[client].split(" ", 1)
            base_s, per_token_s = fit.ELAPSED_S[model]
            elapsed_s = round(base_s + per_token_s * response) if response else 0
            name = _uuid(seed, session) if session >= 0 else ""
            total = request + response
            yield f"{at_s},{name},{elapsed_s},{model},{request},{response},{total},{log}"


def write_csv(path: Path, days: int, seed: int, rate_rps: float = fit.FILE_1_RATE_RPS) -> None:
    """Write a generated BurstGPT CSV file, gzipped if the name ends in ``.gz``.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = "".join(f"{line}\n" for line in csv_lines(days, seed, rate_rps)).encode()
    # No time stamp in the gzip header: the same arguments give the same bytes.
    data = gzip.compress(text, 9, mtime=0) if path.name.endswith(".gz") else text
    with whole_file(path) as made:
        made.write_bytes(data)


def _uuid(seed: int, session: int) -> str:
    text = hashlib.blake2b(f"{seed}/{session}".encode(), digest_size=16).hexdigest()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write BurstGPT-like traffic as a CSV file.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--rate-rps", type=float, default=fit.FILE_1_RATE_RPS)
    chosen = parser.parse_args(arguments)
    write_csv(chosen.path, chosen.days, chosen.seed, chosen.rate_rps)


if __name__ == "__main__":
    main()
