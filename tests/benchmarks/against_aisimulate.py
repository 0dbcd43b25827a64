"""AI Simulate (NVIDIA's) and llmsim on the same work in the same run: CPU seconds and their ratio.

Optional: it needs AI Simulate in an environment of its own. The work is the Azure 2023 conversation
hour on Llama-3.1-8B, one H100 SXM per replica, vLLM, without prefix caching, with the same limits
and KV blocks, requests dealt out in turn. The two disagree on what a step costs; that is no matter
here, but their latencies are printed, so that one sees that the work is of the same kind.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from cases import AZURE, azure, scenario
from run import best_of, capacity_rps

CONSOLE = Console(width=140)
PACKAGE = "aisimulate==0.13.0.dev202610270000000085"
TRACE_BLOCK_TOKENS = 512  # what one id in `hash_ids` stands for in a Mooncake trace
LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "block_tokens": 16}
KV_BLOCKS = 28_000  # what Llama-3.1-8B leaves of 80 GB, about
PINNED = {f"engine__{key}": value for key, value in LIMITS.items()} | {
    "engine__kv_blocks": KV_BLOCKS,
    "engine__prefix_caching": False,
}


@dataclass(frozen=True)
class Outcome:
    """One tool on one case; CPU seconds are user + system, all processes of the command."""

    requests: int
    whole_cpu_s: float
    alone_cpu_s: float
    own_clock: str
    ttft_ms: float
    tpot_ms: float


def cpu_of(words: Sequence[str]) -> tuple[float, str]:
    """Run a command; return its CPU seconds, waited-for grandchildren included, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr}")
    spent_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent_s, done.stdout


def write_trace(case: Mapping[str, Any], path: Path, most: int | None = None) -> int:
    """Write the requests that llmsim would simulate as a Mooncake trace; no two share a block."""
    from llmsim.scenario import Scenario, build_workload

    chunks = build_workload(Scenario.parse(case["data"])).chunks()
    rows = (
        row
        for chunk in chunks
        for row in zip(
            (chunk.arrival_ns / 1e6).tolist(),
            chunk.prompt_tokens.tolist(),
            chunk.output_tokens.tolist(),
            strict=True,
        )
    )
    first_id = requests = 0
    with path.open("w", encoding="utf-8") as file:
        for arrival_ms, prompt, output in islice(rows, most):
            blocks = -(-prompt // TRACE_BLOCK_TOKENS)
            row = {
                "timestamp": arrival_ms,
                "input_length": prompt,
                "output_length": output,
                "hash_ids": list(range(first_id, first_id + blocks)),
            }
            file.write(json.dumps(row) + "\n")
            first_id += blocks
            requests += 1
    return requests


def prediction(trace: Path, replicas: int) -> dict[str, Any]:
    """What `aisimulate predict` reads; its router deals out in turn and cannot be changed."""
    worker = {
        "parallelism": {"replicas": replicas, "tensor": 1},
        "scheduler": {
            "max_batched_tokens": LIMITS["max_num_batched_tokens"],
            "max_sequences": LIMITS["max_num_seqs"],
        },
        "kv_cache": {
            "block_size": LIMITS["block_tokens"],
            "prefix_caching": False,
            "capacity": {"type": "fixed", "blocks": KV_BLOCKS},
        },
    }
    source = {"type": "trace", "format": "mooncake", "paths": [str(trace)]}
    return {
        "traffic": {
            "source": source | {"block_size": TRACE_BLOCK_TOKENS},
            "load": {"type": "trace_timestamps"},
        },
        "engine": {
            "mode": "aggregated",
            "model": "meta-llama/Meta-Llama-3.1-8B",
            "hardware": "h100_sxm",
            "backend": "vllm",
            "workers": {"aggregated": worker},
        },
        # It declines to start beside other jobs unless a gigabyte stays free; it needs far less.
        "execution": {"resources": {"reserve_memory_gb": 0.0}},
    }


def predict(tool: str, trace: Path, replicas: int) -> tuple[float, dict[str, Any]]:
    """Run AI Simulate on a trace in virtual time; return its CPU seconds and its report."""
    config, out = trace.with_suffix(".yaml"), trace.with_suffix(".out")
    config.write_text(json.dumps(prediction(trace, replicas)), encoding="utf-8")
    words = [tool, "predict", "--config", str(config), "--output-dir", str(out), "--overwrite"]
    spent_s, _ = cpu_of([*words, "--format", "json"])
    return spent_s, json.loads((out / "prediction.json").read_text(encoding="utf-8"))


def time_aisimulate(tool: str, case: Mapping[str, Any], replicas: int, times: int) -> Outcome:
    """Whole command, and the same less what it takes for a trace of one request."""
    with tempfile.TemporaryDirectory() as folder:
        trace, single = Path(folder, "all.jsonl"), Path(folder, "one.jsonl")
        requests = write_trace(case, trace)
        write_trace(case, single, most=1)
        runs = [predict(tool, trace, replicas) for _ in range(times)]
        idle_s = min(predict(tool, single, replicas)[0] for _ in range(times))
    whole_s, report = min(runs, key=lambda run: run[0])
    if report["completed_requests"] != requests:
        raise RuntimeError(f"{report['completed_requests']} of {requests} requests completed")
    return Outcome(
        requests=requests,
        whole_cpu_s=whole_s,
        alone_cpu_s=whole_s - idle_s,
        own_clock=f"{min(found['wall_time_ms'] for _, found in runs) / 1e3:.1f}",
        ttft_ms=report["mean_ttft_ms"],
        tpot_ms=report["mean_tpot_ms"],
    )


def time_llmsim(case: Mapping[str, Any], times: int) -> Outcome:
    """Whole `llmsim run`, with all it writes, and the engine alone."""
    engine = best_of(dict(case), times)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "case.yaml")
        file.write_text(json.dumps(case["data"]), encoding="utf-8")
        words = [str(Path(sys.executable).parent / "llmsim"), "run", str(file), "--json"]
        for key, value in case["changes"].items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        runs = [cpu_of([*words, "--out", f"{folder}/run", "--force"]) for _ in range(times)]
    found = json.loads(runs[0][1])
    if found["digest"] != engine.digest:
        raise RuntimeError("`llmsim run` and the engine alone simulated different things")
    return Outcome(
        requests=engine.requests,
        whole_cpu_s=min(spent_s for spent_s, _ in runs),
        alone_cpu_s=engine.cpu_s,
        own_clock="",
        ttft_ms=found["metrics"]["ttft_mean_s"]["value"] * 1e3,
        tpot_ms=found["metrics"]["tpot_mean_s"]["value"] * 1e3,
    )


def add(made: Table, name: str, tool: str, out: Outcome, than: Outcome | None = None) -> None:
    """Add one tool's line; `than` is the tool that it is compared with."""
    ratios = ["", ""]
    if than is not None:
        whole = out.whole_cpu_s / than.whole_cpu_s
        ratios = [f"{whole:.3f}", f"{out.alone_cpu_s / than.alone_cpu_s:.3f}"]
    numbers = [f"{out.requests:,}", f"{out.whole_cpu_s:.2f}", ratios[0], f"{out.alone_cpu_s:.2f}"]
    numbers += [f"{out.requests / out.alone_cpu_s:,.0f}", ratios[1], out.own_clock]
    made.add_row(name, tool, *numbers, f"{out.ttft_ms:.1f}", f"{out.tpot_ms:.2f}")


def table() -> Table:
    title = (
        "CPU s of the whole command and of the simulation alone; ratios are llmsim / AI Simulate.\n"
        "Clock s: AI Simulate's own figure, wall clock, loading its tables included."
    )
    made = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("case", "tool"):
        made.add_column(name, no_wrap=True)
    for name in ("requests", "whole", "ratio", "alone", "req/s", "ratio", "clock s"):
        made.add_column(name, justify="right")
    for name in ("mean TTFT ms", "mean TPOT ms"):
        made.add_column(name, justify="right")
    return made


def version_of(tool: str) -> str:
    python = Path(tool).resolve().parent / "python"
    ask = "from importlib.metadata import version; print(version('aisimulate'))"
    return cpu_of([str(python), "-c", ask])[1].strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aisimulate", default="aisimulate", help="its executable")
    parser.add_argument("--times", type=int, default=2, help="repeats; the fastest counts")
    asked = parser.parse_args()
    tool = shutil.which(asked.aisimulate)
    if tool is None:
        print(
            f"against_aisimulate: no executable {asked.aisimulate!r}. In an environment of its own:"
            f" pip install {PACKAGE}; then pass --aisimulate PATH.",
            file=sys.stderr,
        )
        return 2
    ours = cpu_of([str(Path(sys.executable).parent / "llmsim"), "version"])[1].strip()
    traffic = "the Azure trace" if AZURE.is_file() else "a synthetic stand-in for the Azure trace"
    CONSOLE.print(f"{ours}; aisimulate {version_of(tool)}; {traffic}.\n")
    made = table()
    for replicas in (1, 8):
        own = best_of(scenario(azure(), replicas, **PINNED), 1)
        own_rps = own.requests / own.end_s
        busy = 0.8 * capacity_rps(replicas, **PINNED) / own_rps
        loads = {
            f"own rate, {own_rps:.1f}/s": 1.0,
            f"{busy * own_rps:.0f}/s, 80% of capacity": busy,
        }
        for name, scale in loads.items():
            case = scenario(azure(scale), replicas, **PINNED)
            theirs = time_aisimulate(tool, case, replicas, asked.times)
            add(made, f"{replicas} x H100, {name}", "aisimulate", theirs)
            add(made, "", "llmsim", time_llmsim(case, asked.times), theirs)
    CONSOLE.print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
