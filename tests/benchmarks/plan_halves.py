"""Plans made on the first half of recorded traces, simulated on their second halves.

    python tests/benchmarks/plan_halves.py [azure|azure-70b|mooncake|arena ...] [--jobs N]

The traces are looked for in `../shared` next to the checkout. A promise is kept on the second half
if the upper 95% bound of attainment, over blocks drawn anew under three seeds, reaches the target;
the half as recorded is printed beside. Where it is not kept, a two-sample test (Kolmogorov-Smirnov)
says whether prompts or outputs of the halves differ, and a plan is made on the second half.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

TRACES = Path(__file__).parents[3] / "shared" / "traces"
SEEDS = 3
BLOCK_S = 60.0

PRICES = {
    "h100-sxm": {"usd_per_hour": 4.0},
    "a100-80gb-sxm": {"usd_per_hour": 2.0},
    "l40s": {"usd_per_hour": 1.0},
}
AZURE = {
    "kind": "azure-2023",
    "path": str(TRACES / "azure_2023" / "AzureLLMInferenceTrace_conv.csv.gz"),
}

CASES = {
    "azure": {
        "half_s": 1750.0,
        "trace": AZURE | {"rate_scale": 4.0},
        "asked": {
            "model": "llama-3.1-8b",
            "slo": {"ttft_s": 1.0, "tpot_s": 0.04, "attained_frac": 0.95},
            "engine": {"max_model_len": 16384},
            "search": {"tp": [1]},
        },
    },
    "azure-70b": {
        "half_s": 1750.0,
        "trace": AZURE,
        "asked": {
            "model": "llama-3.1-70b",
            "slo": {"ttft_s": 2.0, "tpot_s": 0.1, "attained_frac": 0.95},
            "engine": {"max_model_len": 16384},
        },
    },
    "mooncake": {
        "half_s": 1768.0,
        "trace": {
            "kind": "mooncake",
            "path": str(TRACES / "mooncake" / "conversation_trace.jsonl.gz"),
            "spread_ticks": True,
            "max_prompt_tokens": 60000,
        },
        "asked": {
            "model": "llama-3.1-8b",
            "slo": {"ttft_s": 10.0, "tpot_s": 0.1, "attained_frac": 0.9},
            "engine": {"max_model_len": 65536},
            "search": {"tp": [1, 2]},
        },
    },
    "arena": {
        "half_s": 300.0,
        "trace": {
            "kind": "csv",
            "path": str(TRACES / "multitenant_arena" / "arena_multitenant.csv.gz"),
            "columns": {
                "arrival": "arrival_s",
                "prompt_tokens": "input_tokens",
                "output_tokens": "output_tokens",
            },
            "rate_scale": 8.0,
        },
        "asked": {
            "model": "llama-3.1-8b",
            "slo": {"ttft_s": 1.0, "tpot_s": 0.04, "attained_frac": 0.95},
            "search": {"tp": [1]},
        },
    },
}


def half(name: str, jobs: int) -> None:
    """Plan on the first half of a trace, simulate on the second, and print what came out."""
    import llmsim as ls
    from llmsim.planner.judging import bounds
    from llmsim.scenario import Scenario
    from llmsim.study.executor import Executor

    case = CASES[name]
    if not Path(case["trace"]["path"]).is_file():
        print(f"{name}: skipped, there is no {case['trace']['path']}")
        return
    asked = {"llmsim": 1, "name": name, "gpus": PRICES} | case["asked"]
    target = asked["slo"]["attained_frac"]
    first = {"trace": case["trace"] | {"end_s": case["half_s"]}}
    second = {"trace": case["trace"] | {"start_s": case["half_s"]}}
    here = Executor("local", jobs)
    begun_s = time.perf_counter()
    made = ls.plan(asked | {"traffic": first}, executor=here)
    fleet = " + ".join(f"{count} x {each}" for each, count in made.replicas.items())
    print(f"{name}: {fleet}, {made.usd_per_hour:.2f} USD/h, {made.outcome}", flush=True)
    if made.proof is not None:
        own = made.proof
        print(f"  first half: {np.mean(own.attained_frac):.2%}, at least {own.low_frac:.2%}")
    other = Scenario.parse(yaml.safe_load(made.scenario_yaml) | {"traffic": second})
    recorded = ls.run(other).metrics["slo_attained_frac"]
    drawn = [
        ls.run(other, {"traffic.resample_s": BLOCK_S, "seed": 100 + seed}).metrics
        for seed in range(SEEDS)
    ]
    attained = [run["slo_attained_frac"] for run in drawn]
    low, high = bounds(attained, [run["requests"] for run in drawn], 0.05)
    kept = "kept" if high >= target else "not kept"
    print(
        f"  second half: {recorded:.2%} as recorded, {np.mean(attained):.2%} in blocks "
        f"({low:.2%} to {high:.2%}), {target:.0%} promised: {kept}"
    )
    if high < target:
        excused(asked, first, second, here)
    print(f"  {time.perf_counter() - begun_s:.0f} s", flush=True)


def excused(asked: dict, first: dict, second: dict, here: object) -> None:
    """Print whether the halves differ, and what a plan of the second half attains."""
    from scipy.stats import ks_2samp

    import llmsim as ls
    from llmsim.planner.reading import read_plan
    from llmsim.planner.traffic import sample_of

    samples = [sample_of(read_plan(asked | {"traffic": each}).scenario) for each in (first, second)]
    for key in ("prompt_tokens", "output_tokens"):
        one, two = (getattr(each, key) for each in samples)
        print(f"  {key}: p = {ks_2samp(one, two).pvalue:.2g} that both halves are alike")
    rates = ", ".join(f"{each.rate_rps:.3g}" for each in samples)
    print(f"  requests/s of the halves: {rates}")
    again = ls.plan(asked | {"traffic": second}, executor=here)
    fleet = " + ".join(f"{count} x {each}" for each, count in again.replicas.items())
    print(f"  a plan of the second half: {fleet}, {again.usd_per_hour:.2f} USD/h, {again.outcome}")


def main() -> None:
    """Go through the traces that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=list(CASES))
    parser.add_argument("--jobs", type=int, default=-1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for name in given.cases:
            half(name, given.jobs)


if __name__ == "__main__":
    main()
