"""How long the cheapest fleet of a large problem takes, and how near its bound it is.

Run: python tests/benchmarks/packing.py [buckets] [columns] [solver]
"""

from __future__ import annotations

import math
import random
import sys
import time

from llmsim.planner import Bucket, Column, Problem, pack
from llmsim.planner.solving import Solver

GPU_TYPES = 5


def problem(buckets: int, columns: int, seed: int = 0) -> Problem:
    """Columns of all sizes, a price that roughly goes with speed, a fifth of pairs impossible."""
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
        made.append(Column(f"c{number}", gpu, 1 + number % 8, price, rates))
    traffic = tuple(Bucket(f"b{each}", draw.uniform(0.05, 2.0)) for each in range(buckets))
    return Problem(traffic, tuple(made), usable_frac=0.85)


def main(buckets: int = 120, columns: int = 300, solver: str = "cbc") -> None:
    begun_s = time.process_time(), time.perf_counter()
    packed = pack(problem(buckets, columns), Solver(solver, gap_frac=0.005))
    cpu_s, wall_s = time.process_time() - begun_s[0], time.perf_counter() - begun_s[1]
    proof = packed.proof
    print(
        f"{buckets} buckets x {columns} columns, {solver}: {wall_s:.1f} s in all, of which "
        f"{proof.seconds:.1f} s the solver ({cpu_s:.1f} CPU s outside it); "
        f"{packed.usd_per_hour:.2f} USD/h, bound {proof.bound:.2f}, gap {proof.gap_frac:.2%}, "
        f"{proof.status}, {sum(packed.replicas.values())} replicas of {len(packed.replicas)} kinds"
    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3]), *sys.argv[3:4])
