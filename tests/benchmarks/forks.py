"""How long a fork takes: a replica with many requests running, and a router that forks for each."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

RUNNING = 200
TIMES = 30


@dataclass
class Timer:
    """Sends everything to the first replica, and forks it for the last request."""

    forecasts: ClassVar[bool] = True
    first_us: list[float] = field(default_factory=list)
    last_us: list[float] = field(default_factory=list)

    def start(self, fleet: Any, rng: np.random.Generator) -> None:
        self.fleet = fleet

    def choose(self, request: Any) -> int:
        if request.index == RUNNING:
            for ask, found in (
                (self.fleet.first_token_ns, self.first_us),
                (self.fleet.last_token_ns, self.last_us),
            ):
                for _ in range(TIMES):
                    began = time.perf_counter()
                    ask(0, request)
                    found.append((time.perf_counter() - began) * 1e6)
        return 0


def one_replica() -> Timer:
    """Fork a replica on which 200 requests decode, to the first and last token of another."""
    import llmsim as ls
    from llmsim.results.store import RequestSink
    from llmsim.scenario import build_workload
    from llmsim.serving.build import build_estimates, build_pools
    from llmsim.serving.simulate import simulate

    lengths = {
        "kind": "lognormal",
        "prompt_mean_tokens": 300,
        "prompt_cv": 1.0,
        "output_mean_tokens": 1500,
        "output_cv": 0.3,
    }
    changes = {
        "traffic.lengths": lengths,
        "traffic.requests": RUNNING + 1,
        "traffic.arrivals.rate_rps": 100,
        "engine.prefix_caching": False,
        "estimators.output_length": "oracle",
    }
    scenario = ls.Scenario.load("quickstart", changes)
    pools, _ = build_pools(scenario)
    workload = build_workload(scenario)
    timer = Timer()
    sink = RequestSink([pool.facts.name for pool in pools], lambda: workload.clients)
    estimates, _ = build_estimates(scenario)
    simulate(pools[:1], workload, timer, sink, estimates=estimates)
    return timer


def whole_runs() -> list[tuple[str, float, int, float]]:
    """Return what a predictive router adds to a run: (case, CPU s, forks, us per fork)."""
    import llmsim as ls

    found = []
    base = {"traffic.arrivals.rate_rps": 42, "traffic.requests": 2000, "fleet.view_age_s": 0.0}
    base |= {"estimators.output_length": "oracle"}
    ls.run("predictive", base | {"traffic.requests": 50})
    began = time.process_time()
    ls.run("predictive", base | {"fleet.routing": "least-loaded"})
    least = time.process_time() - began
    for candidates in (0, 2):
        routing = {"kind": "block", "candidates": candidates}
        began = time.process_time()
        ls.run("predictive", base | {"fleet.routing": routing})
        cpu_s = time.process_time() - began
        forks = 2000 * (candidates or 4)
        name = f"4 replicas, 48 seats, {candidates or 'all'} candidates"
        found.append((name, cpu_s, forks, (cpu_s - least) / forks * 1e6))
    return found


KINDS: dict[str, dict[str, Any]] = {
    "ranks": {"traffic.arrivals.rate_rps": 5, "traffic.requests": 500},
    "pipeline": {"traffic.requests": 300},
    "tiers": {"traffic.arrivals.rate_rps": 4, "traffic.requests": 1000},
    "lanes": {
        "traffic.arrivals.rate_rps": 8,
        "traffic.requests": 1000,
        "fleet.pools.prefill.replicas": 1,
        "fleet.pools.decode.replicas": 1,
    },
}
"""Scenarios with one replica each, so that who is asked changes nothing but the time it takes."""


def of_each_kind() -> list[tuple[str, float, int, float]]:
    """Return what forks of each kind add to a run: (case, CPU s, forks, us a fork)."""
    import llmsim as ls

    found = []
    for name, changes in KINDS.items():
        base = {"traffic.duration_s": None, "traffic.warmup_s": 0.0, "fleet.view_age_s": 0.0}
        base |= {"estimators.output_length": "oracle", **changes}
        digests, times = [], []
        for routing in ("least-loaded", "block"):
            ls.run(name, base | {"traffic.requests": 20, "fleet.routing": routing})
            began = time.process_time()
            ran = ls.run(name, base | {"fleet.routing": routing})
            times.append(time.process_time() - began)
            digests.append(ran.facts.digest)
        if len(set(digests)) > 1:
            raise SystemExit(f"{name}: forks have changed the run")
        forks = int(changes["traffic.requests"])
        found.append((f"{name}, last token", times[1], forks, (times[1] - times[0]) / forks * 1e6))
    return found


def main() -> None:
    from llmsim.cli.looking import engine_is_compiled

    print("compiled" if engine_is_compiled() else "pure Python")
    timer = one_replica()
    for name, found in (("first", timer.first_us), ("last", timer.last_us)):
        middle, low = np.median(found), min(found)
        print(
            f"{RUNNING} running, to the {name} token: {middle:,.0f} us a fork, {low:,.0f} at best"
        )
    for name, cpu_s, forks, each_us in [*whole_runs(), *of_each_kind()]:
        print(f"{name}: {cpu_s:.2f} CPU s, {forks:,} forks, {each_us:,.0f} us a fork on top")


if __name__ == "__main__":
    sys.exit(main())
