"""Plans for traces from five kinds of GPU, start to finish, timed.

    python tests/benchmarks/plan_traces.py [azure|burstgpt] [--trace FILE] [--jobs N]

`azure` is the hour of Azure's conversation service in 2023, looked for in `../shared` next to the
checkout; without it there is nothing to time. `burstgpt` is the shipped trace in BurstGPT's shape,
40 times as fast as recorded. With `--jobs 1` the CPU seconds are those of everything.
Simulations are not kept from an earlier call: every one is made.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared" / "traces" / "azure_2023"
AZURE = SHARED / "AzureLLMInferenceTrace_conv.csv.gz"

GPUS = {
    "h100-sxm": {"price": "lambda"},
    "h200-sxm": {"price": "runpod"},
    "b200": {"price": "lambda"},
    "a100-80gb-sxm": {"price": "lambda"},
    "l40s": {},
}

CASES = {
    "azure": {
        "name": "azure-conversation",
        "model": "llama-3.1-70b",
        "slo": {"ttft_s": 2.0, "tpot_s": 0.1, "attained_frac": 0.95},
        "engine": {"max_model_len": 16384},
        "traffic": {"trace": {"kind": "azure-2023", "path": str(AZURE)}},
    },
    "burstgpt": {
        "name": "burstgpt-like",
        "model": "llama-3.1-8b",
        "slo": {"ttft_s": 2.0, "tpot_s": 0.05, "attained_frac": 0.95},
        "traffic": {
            "trace": {
                "kind": "burstgpt",
                "path": "burstgpt-like.csv.gz",
                "rate_scale": 40,
                "failed": "drop",
            }
        },
    },
}


def main() -> None:
    """Plan, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="?", choices=tuple(CASES), default="azure")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--jobs", type=int, default=-1)
    given = parser.parse_args()
    asked = {"llmsim": 1, "gpus": GPUS} | CASES[given.case]
    trace = asked["traffic"]["trace"]
    if given.trace is not None:
        trace["path"] = str(given.trace)
    if given.case == "azure" and not Path(trace["path"]).is_file():
        print(f"skipped: there is no {trace['path']}")
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        from llmsim.cli.looking import engine_is_compiled
        from llmsim.cli.plan_tables import print_plan
        from llmsim.planner.planning import plan
        from llmsim.study.executor import Executor

        begun_s, cpu_s = time.perf_counter(), os.times()
        found = plan(asked, executor=Executor("local", given.jobs))
        seconds, ended = time.perf_counter() - begun_s, os.times()
        spent = ("user", "system", "children_user", "children_system")
        own_s = sum(getattr(ended, key) - getattr(cpu_s, key) for key in spent)
        print_plan(found, Path("-"))
        whose = "" if given.jobs == 1 else " without those of workers that live on"
        engine = "compiled" if engine_is_compiled() else "pure Python"
        runs = sum(len(each.seeds) for each in found.evidence)
        print(
            f"{seconds:.0f} s ({own_s:.0f} s of CPU{whose}), {engine} engine, "
            f"{runs} runs of fleets, {sum(each.runs for each in found.corrected)} of one replica"
        )


if __name__ == "__main__":
    main()
