"""How long the cheapest fleet of a large problem takes, and how near its bound it is.

Run: python tests/benchmarks/packing.py [buckets] [columns] [solver] [apart]

With `apart` a third of the columns computes prompts alone and a third decodes alone; KV goes over
their ports.
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import replace

from llmsim.planner import Bucket, Column, Problem, pack
from llmsim.planner.solving import Solver

GPU_TYPES = 5
ROLES = ("mixed", "prefill", "decode")
FASTER = {"prefill": 3.0, "decode": 1.8}


def problem(buckets: int, columns: int, apart: bool = False, seed: int = 0) -> Problem:
    """Return columns of all sizes at a price that roughly goes with speed, a fifth of pairs out."""
    draw = random.Random(seed)
    made = []
    for number in range(columns):
        speed = draw.uniform(0.5, 8.0)
        rates = {
            f"b{each}": speed * draw.uniform(0.7, 1.3) * math.exp(-each / 60)
            for each in range(buckets)
            if draw.random() < 0.8
        }
        price = speed * draw.uniform(0.8, 1.4)
        gpu = f"g{number % GPU_TYPES}"
        column = Column(f"c{number}", gpu, 1 + number % 8, price, rates)
        made.append(_of_role(column, number) if apart else column)
    traffic = tuple(Bucket(f"b{each}", draw.uniform(0.05, 2.0)) for each in range(buckets))
    return Problem(traffic, tuple(made), usable_frac=0.85)


def _of_role(column: Column, number: int) -> Column:
    """Give a third of the columns to either phase, which is faster at its part than both."""
    role = ROLES[number % 3]
    if role == "mixed":
        return column
    rates = {bucket: FASTER[role] * rate for bucket, rate in column.throughput_rps.items()}
    # longer prompts have more KV; a port of 50 GB/s per GPU
    sizes = {bucket: 0.1e9 * (1 + int(bucket[1:]) / 10) for bucket in rates}
    port = 50e9 * column.gpus
    return replace(
        column, throughput_rps=rates, role=role, handed_bytes=sizes, port_bytes_per_s=port
    )


def main(
    buckets: int = 120, columns: int = 300, solver: str = "cbc", kind: str = "together"
) -> None:
    begun_s = time.process_time(), time.perf_counter()
    packed = pack(problem(buckets, columns, kind == "apart"), Solver(solver, gap_frac=0.005))
    cpu_s, wall_s = time.process_time() - begun_s[0], time.perf_counter() - begun_s[1]
    proof = packed.proof
    print(
        f"{buckets} buckets x {columns} columns, {kind}, {solver}: {wall_s:.1f} s in all, of which "
        f"{proof.seconds:.1f} s the solver ({cpu_s:.1f} CPU s outside it); "
        f"{packed.usd_per_hour:.2f} USD/h, bound {proof.bound:.2f}, gap {proof.gap_frac:.2%}, "
        f"{proof.status}, {sum(packed.replicas.values())} replicas of {len(packed.replicas)} kinds"
    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3]), *sys.argv[3:5])
