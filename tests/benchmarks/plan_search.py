"""All configurations of a replica on up to 64 GPUs, for a dense and a mixture model, timed.

    python tests/benchmarks/plan_search.py [dense|mixture]

Every combination of tensor parallelism, stages, attention ranks, expert groups, role, weight format
and batch limits is asked what it sustains of six kinds of request; the cheapest fleet of 64 GPUs is
packed from what is left, at the largest rate that 64 GPUs carry. Prints how long it took, how many
there were, and the fleet.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from llmsim.core.errors import InputError
from llmsim.planner import Bucket, Problem, pack
from llmsim.planner.capacity import Limits, Shape
from llmsim.planner.columns import Searched, Space, search
from llmsim.planner.solving import Solver
from llmsim.scenario import Scenario

SHAPES = {
    f"in{prompt}.out{output}": Shape(prompt, output)
    for prompt in (500, 2000, 8000)
    for output in (100, 400)
}
LIMITS = Limits(ttft_s=2.0, tpot_s=0.05)
GPUS = 64

CASES = {
    "dense": (
        "llama-3.1-70b",
        Space(
            ("h100-sxm",),
            tp=(1, 2, 4, 8),
            pp=(1, 2, 4, 8),
            quantisations=("", "fp8"),
            max_num_seqs=(128, 256, 512),
            max_num_batched_tokens=(2048, 8192),
            roles=("mixed", "prefill", "decode"),
            most_gpus=GPUS,
        ),
    ),
    "mixture": (
        "deepseek-v3",
        Space(
            ("h200-sxm",),
            tp=(1, 2, 4, 8),
            pp=(1, 2, 4, 8),
            ep=(1, 8, 16, 32, 64),
            max_num_seqs=(128, 256),
            max_num_batched_tokens=(2048, 8192),
            dp=(1, 2, 4, 8, 16, 32, 64),
            roles=("mixed", "prefill", "decode"),
            most_gpus=GPUS,
        ),
    ),
}


def scenario(model: str, gpu: str) -> Scenario:
    """Return a scenario of one replica, of which the search varies everything."""
    lengths = {"kind": "fixed", "prompt_tokens": 1000, "output_tokens": 100}
    return Scenario.parse(
        {
            "llmsim": 1,
            "name": "search",
            "model": model,
            "traffic": {
                "arrivals": {"kind": "poisson", "rate_rps": 1.0},
                "lengths": lengths,
                "requests": 10,
            },
            "engine": {"max_model_len": 16384},
            "fleet": {"pools": {"main": {"gpu": gpu, "gpu_price_usd_per_hour": 3.0}}},
        }
    )


def largest(found: Searched) -> tuple[float, dict[str, int], float]:
    """Return the largest even mix that 64 GPUs carry, its fleet, and its cost."""
    columns = tuple(each.column for each in found.kept)
    gpu = columns[0].gpu
    low, high, best = 0.0, 512.0, ({}, 0.0)
    for _ in range(8):
        middle = (low + high) / 2
        buckets = tuple(Bucket(name, middle / len(SHAPES)) for name in SHAPES)
        problem = Problem(buckets, columns, usable_frac=0.85, available_gpus={gpu: GPUS})
        problem = replace(problem, port_usable_frac=0.6)
        try:
            packed = pack(problem, Solver(gap_frac=0.02, time_limit_s=5.0), break_ties=False)
        except InputError:
            high = middle
            continue
        low, best = middle, (dict(packed.replicas), packed.usd_per_hour)
    return low, *best


def main(*names: str) -> None:
    """Search, pack and print."""
    for name in names or tuple(CASES):
        model, space = CASES[name]
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        found = search(scenario(model, space.gpus[0]), space, SHAPES, LIMITS)
        searched_s = time.perf_counter() - begun_s
        cpu_s = time.process_time() - cpu_s
        rate, fleet, usd = largest(found)
        whole_s = time.perf_counter() - begun_s
        print(
            f"{model} on up to {GPUS} {space.gpus[0]}: {len(space.choices())} configurations in "
            f"{searched_s:.1f} s ({cpu_s:.1f} s of one core), {len(found.kept)} left; with the "
            f"fleet {whole_s:.1f} s. "
            f"{rate:.0f} requests/s by {fleet}, {usd:.2f} USD/h"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
