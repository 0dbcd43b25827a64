"""Fit the measured lines of a link card to rows of one library, and print them as YAML.

    python tests/benchmarks/fit_collectives.py TABLES/comm.csv.gz --gpu B200 \\
        --library trtllm-custom-allreduce --link nvlink5

Rows of one node, launched inside CUDA graphs, in the median over versions. Every second size is
fitted, by relative error; the source of each number says how far off the sizes between them are.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from llmsim.costmodel.communication import ways_inside
from llmsim.specs import load_link

LOW, HIGH = 512, 2**28
"""Sizes that are fitted [bytes]."""

SMALL = 2**18
"""All-reduces of decode steps are smaller [bytes]."""


def seconds(terms: np.ndarray, bus_bytes: np.ndarray) -> np.ndarray:
    """Return the times of a line whose logarithms of alpha, bandwidth and norm are given."""
    alpha, rate, norm = np.exp(terms)
    return (alpha**norm + (bus_bytes / rate) ** norm) ** (1.0 / norm)


def fit(sizes: np.ndarray, times: np.ndarray, gpus: int, peak: float) -> np.ndarray:
    """Return the line, as logarithms, that is nearest by relative error and below the peak."""
    bus = 2.0 * (gpus - 1) / gpus * sizes
    start = np.log([times.min(), min(bus[-1] / times[-1], 0.9 * peak), 0.6])
    bounds = np.log([[1e-7, 1e9, 0.3], [1e-3, peak, 4.0]])
    found = least_squares(
        lambda terms: np.log(seconds(terms, bus) / times), start, bounds=bounds, loss="soft_l1"
    )
    return found.x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--gpu", required=True, help="as the table writes it")
    parser.add_argument("--library", required=True)
    parser.add_argument("--link", required=True, help="the card: its peak, its usual lines")
    asked = parser.parse_args()
    card = load_link(asked.link)
    frame = pd.read_csv(asked.table)
    frame = frame[(frame["gpu"] == asked.gpu) & (frame["library"] == asked.library)]
    frame = frame[(frame["op"] == "all_reduce") & frame["bytes"].between(LOW, HIGH)]
    frame = frame[~frame["variant"].fillna("").str.contains("eager")]
    for gpus, part in frame.groupby("n_gpu"):
        best = part.groupby("bytes")["latency_us"].median() * 1e-6
        sizes, times = best.index.to_numpy(float), best.to_numpy()
        terms = fit(sizes[::2], times[::2], gpus, card.bytes_per_s)
        bus = 2.0 * (gpus - 1) / gpus * sizes[1::2]
        error = np.abs(seconds(terms, bus) / times[1::2] - 1.0)
        told = (
            f"fit to {asked.library} {', '.join(sorted(part['lib_version'].unique()))} on "
            f"{asked.gpu}, every second size of 0.5 KiB to 256 MiB; other sizes off by "
            f"{np.median(error):.0%} median, {np.quantile(error, 0.9):.0%} p90; aiconfigurator "
            "tables (Apache-2.0, commit 095f58a51)"
        )
        print(f"{gpus}:")
        units = ("s", "bytes/s", "1")
        for name, value, unit in zip(
            ("alpha_s", "bus_bytes_per_s", "norm"), np.exp(terms), units, strict=True
        ):
            print(f'  {name}: {{value: {value:.3g}, unit: "{unit}", source: "{told}"}}')
        usual = np.min(
            [way.seconds for way in ways_inside("all_reduce", sizes, card, gpus)], axis=0
        )
        small = sizes <= SMALL
        ratio = np.median(usual[small] / times[small])
        print(f"  # the usual line of {asked.link} takes {ratio:.2f} of this, up to 256 KiB")


if __name__ == "__main__":
    main()
