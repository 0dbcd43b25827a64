"""A plan for the Azure 2023 conversation hour from five kinds of GPU, start to finish, timed.

    python tests/benchmarks/plan_azure.py [--trace FILE] [--jobs N]

Simulations are not kept from an earlier call: every one is made. The trace is looked for in
`../shared` next to the checkout; without it there is nothing to time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared" / "traces" / "azure_2023"
TRACE = SHARED / "AzureLLMInferenceTrace_conv.csv.gz"

ASKED = {
    "llmsim": 1,
    "name": "azure-conversation",
    "model": "llama-3.1-70b",
    "slo": {"ttft_s": 2.0, "tpot_s": 0.1, "attained_frac": 0.95},
    "engine": {"max_model_len": 16384},
    "gpus": {
        "h100-sxm": {"price": "lambda"},
        "h200-sxm": {"price": "runpod"},
        "b200": {"price": "lambda"},
        "a100-80gb-sxm": {"price": "lambda"},
        "l40s": {},
    },
}


def main() -> None:
    """Plan, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--jobs", type=int, default=-1)
    given = parser.parse_args()
    if not given.trace.is_file():
        print(f"skipped: there is no {given.trace}")
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        from llmsim.cli.looking import engine_is_compiled
        from llmsim.cli.plan_tables import print_plan
        from llmsim.planner.planning import plan
        from llmsim.study.executor import Executor

        trace = {"kind": "azure-2023", "path": str(given.trace)}
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        found = plan(ASKED | {"traffic": {"trace": trace}}, executor=Executor("local", given.jobs))
        seconds, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        print_plan(found, Path("-"))
        engine = "compiled" if engine_is_compiled() else "pure Python"
        runs = sum(len(each.seeds) for each in found.evidence)
        print(
            f"{seconds:.0f} s ({cpu_s:.0f} s of CPU in the first process), {engine} engine, "
            f"{runs} runs of fleets, {sum(each.runs for each in found.corrected)} of one replica"
        )


if __name__ == "__main__":
    main()
