"""What the benchmark runs: workloads, fleets, and one measured run in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"
AZURE = SHARED / "azure_2023" / "AzureLLMInferenceTrace_conv.csv.gz"
MOONCAKE = SHARED / "mooncake" / "conversation_trace.jsonl.gz"


@dataclass(frozen=True)
class Measured:
    """One run of the engine.

    `cpu_s` is the engine alone, on one core, with all metrics on; reading the trace is inside it
    (it streams), writing the run folder is not.
    """

    requests: int
    cpu_s: float
    peak_mib: float
    events: int
    steps: int
    median_batch: float
    kv_peak_frac: float
    preemptions: int
    hit_frac: float
    end_s: float
    digest: str
    engine: str

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.cpu_s


def scenario(traffic: Mapping[str, Any], replicas: int = 1, **changes: Any) -> dict[str, Any]:
    """Llama-3.1-8B on H100s; `changes` are dotted overrides with ``__`` for the dots."""
    return {
        "data": {
            "llmsim": 1,
            "name": "bench",
            "seed": 1,
            "model": "llama-3.1-8b",
            "slo": {"ttft_s": 1.0, "tpot_s": 0.05, "itl_s": 0.2},
            "traffic": dict(traffic),
            "fleet": {"pools": {"main": {"replicas": replicas, "gpu": "h100-sxm"}}},
        },
        "changes": {key.replace("__", "."): value for key, value in changes.items()},
    }


def azure(scale: float = 1.0) -> dict[str, Any]:
    """The Azure 2023 conversation hour, or traffic like it where the trace is not at hand."""
    if AZURE.is_file():
        return {"trace": {"kind": "azure-2023", "path": str(AZURE), "rate_scale": scale}}
    lengths = {
        "kind": "lognormal",
        "prompt_mean_tokens": 1155,
        "prompt_cv": 1.0,
        "output_mean_tokens": 211,
        "output_cv": 0.8,
    }
    arrivals = {"kind": "gamma", "rate_rps": 5.53 * scale, "cv": 1.09}
    return {"arrivals": arrivals, "lengths": lengths, "requests": 19_366}


def mooncake(scale: float = 1.0) -> dict[str, Any]:
    """The Mooncake conversation trace, with prompt identity."""
    return {
        "trace": {
            "kind": "mooncake",
            "path": str(MOONCAKE),
            "rate_scale": scale,
            "spread_ticks": True,
        }
    }


def burstgpt(requests: int, rate_rps: float = 0.56) -> dict[str, Any]:
    """BurstGPT-like requests; 10.31 M of them in 213 days is 0.56 per second."""
    return {"trace": {"kind": "burstgpt-like", "requests": requests, "rate_rps": rate_rps}}


class Compressed:
    """A workload whose clock runs faster: the same bursts, closer together."""

    def __init__(self, inner: Any, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.total, self.closed_loop = inner.total, inner.closed_loop
        self.programs = inner.programs

    @property
    def clients(self) -> tuple[str, ...]:
        return self.inner.clients

    @property
    def skipped_rows(self) -> int:
        return self.inner.skipped_rows

    def chunks(self) -> Iterator[Any]:
        for chunk in self.inner.chunks():
            faster = (chunk.arrival_ns / self.factor).astype(np.int64)
            yield replace(chunk, arrival_ns=faster)


def measure(case: Mapping[str, Any]) -> Measured:
    """Run a case in a fresh process, so that its peak memory is its own."""
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(case), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Measured(**json.loads(done.stdout))


def warm_up() -> None:
    """Load what is loaded on first use (readers, Arrow), so that it is not timed."""
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401

    import llmsim as ls

    law = {"kind": "fixed", "prompt_tokens": 100, "output_tokens": 20}
    arrivals = {"kind": "poisson", "rate_rps": 5.0}
    tiny = scenario({"arrivals": arrivals, "lengths": law, "requests": 200})["data"]
    len(ls.run(ls.Scenario.parse(tiny)).table)


def run(case: Mapping[str, Any]) -> Measured:
    """Run a case in this process."""
    warm_up()
    from llmsim.results.store import RequestSink
    from llmsim.scenario import Scenario, build_workload
    from llmsim.serving import ClientRules, simulate
    from llmsim.serving.build import (
        build_control,
        build_gateway,
        build_handoff,
        build_pools,
        itl_objective_ns,
    )

    wanted = Scenario.parse(case["data"])
    if case["changes"]:
        wanted = wanted.override(case["changes"])
    pools, _ = build_pools(wanted)
    if "kv_blocks" in case:  # more than any GPU has: a cache without end
        blocks = case["kv_blocks"]
        pools = [replace(pool, config=replace(pool.config, kv_blocks=blocks)) for pool in pools]
    workload = build_workload(wanted)
    if "compress" in case:
        workload = Compressed(workload, case["compress"])
    handoff = build_handoff(wanted)
    sink = RequestSink(
        [pool.facts.name for pool in pools],
        lambda: workload.clients,
        programs=workload.programs is not None,
        handoff=handoff is not None,
    )
    router = wanted.fleet.routing.build()
    began = time.process_time()
    facts = simulate(
        pools,
        workload,
        router,
        sink,
        seed=wanted.seed,
        view_age_ns=round(wanted.fleet.view_age_s * 1e9),
        handoff=handoff,
        control=build_control(wanted, pools),
        gateway=build_gateway(wanted),
        clients=ClientRules(),
        itl_slo_ns=itl_objective_ns(wanted, 2**62),
        token_times=wanted.record.tokens,
    )
    sink.flush()
    cpu_s = time.process_time() - began
    from llmsim.serving import replica as module

    running = np.concatenate(
        [
            part.timeline.levels["running"] / np.maximum(part.timeline.totals["busy_ns"], 1)
            for part in facts.replicas
        ]
    )
    lookups = sum(part.lookup_tokens for part in facts.replicas)
    return Measured(
        requests=facts.requests,
        cpu_s=cpu_s,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        events=facts.events,
        steps=sum(part.steps for part in facts.replicas),
        median_batch=float(np.median(running[running > 0])),
        kv_peak_frac=max(p.peak_kv_blocks / pools[0].config.kv_blocks for p in facts.replicas),
        preemptions=sum(part.preemptions for part in facts.replicas),
        hit_frac=sum(part.hit_tokens for part in facts.replicas) / max(lookups, 1),
        end_s=facts.end_ns / 1e9,
        digest=facts.digest,
        engine="pure Python" if module.__file__.endswith(".py") else "compiled",
    )


if __name__ == "__main__":
    print(json.dumps(asdict(run(json.load(sys.stdin)))))
