"""`make bench`: how fast the engine is, as ratios and per-request costs that anyone can rerun.

Nothing here is asserted: timings depend on the machine. What must not change is counted in the
tests (events and Python calls per request).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from cases import AZURE, MOONCAKE, Measured, azure, burstgpt, measure, mooncake, scenario

CONSOLE = Console(width=140)


def best_of(case: dict, times: int) -> Measured:
    """Repeat a run; the fastest is the least disturbed, the digest must agree."""
    runs = [measure(case) for _ in range(times)]
    assert len({run.digest for run in runs}) == 1, "two runs of one case differ"
    return min(runs, key=lambda run: run.cpu_s)


def capacity_rps(replicas: int, **changes: object) -> float:
    """Requests per second that a fleet serves when all of the Azure hour arrives at once."""
    flood = measure(scenario(azure(1e6), replicas, fleet__routing="least-loaded", **changes))
    return flood.requests / flood.end_s


OWN_RPS = 5.53
"""Of the Azure hour [1/s]."""


def busy_scale(replicas: int, **changes: object) -> float:
    """By how much the Azure hour is faster when it brings 80% of what a fleet serves."""
    return 0.8 * capacity_rps(replicas, **changes) / OWN_RPS


def table(title: str) -> Table:
    made = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("case", "requests/s", "us/request", "CPU s", "peak MiB", "events/req"):
        made.add_column(name, justify="left" if name == "case" else "right")
    for name in ("steps/s", "median B", "KV peak", "preempt.", "ratio"):
        made.add_column(name, justify="right")
    return made


def add(made: Table, name: str, run: Measured, plain: Measured | None = None) -> None:
    cost_us = run.cpu_s / run.requests * 1e6
    print(f"{name}: {cost_us:.1f} us/request, {run.peak_mib:.0f} MiB", file=sys.stderr)
    ratio = "" if plain is None else f"{cost_us / (plain.cpu_s / plain.requests * 1e6):.2f}"
    made.add_row(
        name,
        f"{run.requests_per_s:,.0f}",
        f"{cost_us:.1f}",
        f"{run.cpu_s:.2f}",
        f"{run.peak_mib:.0f}",
        f"{run.events / run.requests:.2f}",
        f"{run.steps / run.cpu_s:,.0f}",
        f"{run.median_batch:.1f}",
        f"{run.kv_peak_frac:.1%}",
        f"{run.preemptions}",
        ratio,
    )


def bench_azure(times: int) -> None:
    """The Azure hour on 1 and 8 replicas, at its own rate and at 80% of capacity."""
    made = table("Azure 2023 conversation hour, Llama-3.1-8B on H100, all defaults")
    for replicas in (1, 8):
        routing = {"fleet__routing": "least-loaded"}
        own = best_of(scenario(azure(), replicas, **routing), times)
        add(made, f"{replicas} x H100, own rate", own)
        scale = 0.8 * capacity_rps(replicas) / (own.requests / own.end_s)
        busy = best_of(scenario(azure(scale), replicas, **routing), times)
        add(made, f"{replicas} x H100, 80% of capacity", busy)
    CONSOLE.print(made)


def bench_options(times: int) -> None:
    """What each option costs, as a ratio to the plain engine."""
    plain_keys = {"engine__prefix_caching": False, "engine__lookahead": 0}
    for name, scale in (("own rate", 1.0), ("80% of capacity", busy_scale(1))):
        made = table(f"Options on 1 replica, {name}; ratio of cost per request to plain")
        plain = best_of(scenario(azure(scale), 1, **plain_keys), times)
        add(made, "plain", plain, plain)
        options = {
            "prefix caching, no hits": {"engine__prefix_caching": True},
            "lookahead 1": {"engine__lookahead": 1},
            "both (the defaults)": {"engine__prefix_caching": True, "engine__lookahead": 1},
            "priority order": {
                "fleet__pools__main__batching": {"kind": "vllm", "order": "priority"}
            },
            "least-loaded routing": {"fleet__routing": "least-loaded"},
            "view 50 ms old": {"fleet__routing": "least-loaded", "fleet__view_age_s": 0.05},
            "client timeout": {"traffic__timeout_s": 600.0},
            "chunk limit 512": {"engine__long_prefill_threshold_tokens": 512},
        }
        for option, keys in options.items():
            run = best_of(scenario(azure(scale), 1, **(plain_keys | keys)), times)
            add(made, option, run, plain)
        CONSOLE.print(made)


def bench_lines(times: int) -> None:
    """What a line, a memory rule and victims of a policy's own cost."""
    scale = busy_scale(1)
    made = table("Policies that keep the line on 1 replica, 80% of capacity; ratio to plain")
    plain = best_of(scenario(azure(scale), 1), times)
    add(made, "plain", plain, plain)
    asks = {"max_new_tokens": 512}
    lines = {
        "sglang": {"kind": "sglang", **asks},
        "sglang, longest prefix": {"kind": "sglang", "order": "lpm", **asks},
        "vtc": {"kind": "vtc", **asks},
        "dlpm": {"kind": "dlpm", **asks},
    }
    for name, batching in lines.items():
        keys = {"engine__block_tokens": 1, "fleet__pools__main__batching": batching}
        add(made, name, best_of(scenario(azure(scale), 1, **keys), times), plain)
    CONSOLE.print(made)


def bench_measured(times: int, profile: str) -> None:
    """What a measured profile costs, as a ratio to the roofline: the first run fills its cache."""
    if not profile:
        CONSOLE.print("Measured profile: name one with --profile (docs/profile-a-new-gpu.md).")
        return
    made = table("A measured profile on 1 replica; ratio of cost per request to the roofline")
    cost = {"kind": "measured", "profile": str(Path(profile).resolve())}
    plain = best_of(scenario(azure(), 1), times)
    add(made, "roofline", plain, plain)
    measure(scenario(azure(), 1, fleet__pools__main__cost=cost))
    run = best_of(scenario(azure(), 1, fleet__pools__main__cost=cost), times)
    add(made, Path(profile).name, run, plain)
    CONSOLE.print(made)


def bench_handoff(times: int) -> None:
    """The Azure hour with prompts on 6 replicas and decoding on 10, KV pulled over their NICs."""
    made = table("Azure 2023 conversation hour, 6 prefill and 10 decode replicas")
    pools = {
        "main": None,
        "prefill": {"role": "prefill", "gpu": "h100-sxm", "replicas": 6},
        "decode": {"role": "decode", "gpu": "h100-sxm", "replicas": 10},
    }
    keys = {"fleet__routing": "least-loaded", "fleet__pools": pools}
    for name, scale in (("own rate", 1.0), ("80% of capacity", busy_scale(1, fleet__pools=pools))):
        run = best_of(scenario(azure(scale), 1, **keys), times)
        add(made, f"{name}, whole", run, run)
        layers = {"fleet__handoff": {"transfer": "layer", "when_full": "refuse"}}
        case = scenario(azure(scale), 1, **keys, **layers)
        add(made, "by layer, refusal", best_of(case, times), run)
        flips = {"fleet__flip": {}, "fleet__control": [{"kind": "balance-roles"}]}
        case = scenario(azure(scale), 1, **keys, **flips)
        add(made, "roles may change", best_of(case, times), run)
    CONSOLE.print(made)


def bench_lanes(times: int) -> None:
    """The Azure hour with prefill and decode beside one another on 16 GPUs."""
    made = table("Azure 2023 conversation hour, 16 replicas, ratio to a synchronous engine")
    lane = {"gpu": "h100-sxm", "replicas": 16}
    pools = {
        "main": None,
        "prefill": {"role": "prefill", "share_frac": 0.7, **lane},
        "decode": {"role": "decode", "beside": "prefill", **lane},
    }
    changes = {"fleet__routing": "least-loaded", "engine__lookahead": 0}
    for name, scale in (("own rate", 1.0), ("80% of capacity", busy_scale(16))):
        plain = best_of(scenario(azure(scale), 16, **changes), times)
        add(made, f"{name}, plain", plain, plain)
        run = best_of(scenario(azure(scale), 1, fleet__pools=pools, **changes), times)
        add(made, "lanes", run, plain)
    CONSOLE.print(made)


def bench_pipeline(times: int) -> None:
    """The Azure hour on pipelines of 2 and 4 stages: no steps are merged, decodes pass lightly."""
    made = table("Azure 2023 conversation hour, 16 replicas, ratio to a synchronous engine")
    changes = {"fleet__routing": "least-loaded", "engine__lookahead": 0}
    for name, scale in (("own rate", 1.0), ("80% of capacity", busy_scale(16))):
        plain = best_of(scenario(azure(scale), 16, **changes), times)
        add(made, f"{name}, plain", plain, plain)
        for stages in (2, 4):
            case = scenario(azure(scale), 16, fleet__pools__main__pp=stages, **changes)
            add(made, f"{stages} stages", best_of(case, times), plain)
    CONSOLE.print(made)


def bench_migration(times: int) -> None:
    """The Azure hour at 80% of capacity, with and without live migration."""
    made = table("Azure 2023 conversation hour, 16 replicas at 80% of their capacity")
    scale = busy_scale(16)
    plain = best_of(scenario(azure(scale), 16, fleet__routing="least-loaded"), times)
    add(made, "plain", plain, plain)
    control = [{"kind": "llumnix", "period_s": 0.05}]
    changes = {"fleet__routing": "least-loaded", "fleet__migration": {}, "fleet__control": control}
    add(made, "migration", best_of(scenario(azure(scale), 16, **changes), times), plain)
    CONSOLE.print(made)


def bench_pins(times: int) -> None:
    """Agents on two replicas that have too little memory for them, with and without pinned KV."""
    made = table("Agents of ten calls on 2 H100, 6,000 blocks of KV each; ratio to nothing pinned")
    law = {"kind": "agents", "turns_mean": 10, "tools": {"shell": {"mean_s": 1.0}}}
    traffic = {
        "programs": law,
        "arrivals": {"kind": "poisson", "rate_rps": 4.0},
        "lengths": {"kind": "fixed", "prompt_tokens": 400, "output_tokens": 60},
        "requests": 2000,
    }
    keys = {"engine__kv_blocks": 6000, "fleet__routing": "session-sticky"}
    keys["engine__max_model_len"] = 65536
    plain = best_of(scenario(traffic, 2, **keys), times)
    add(made, "nothing pinned", plain, plain)
    for kind in ("fixed", "continuum"):
        pins = {"fleet__pools__main__retention": {"kind": kind}}
        add(made, f"pinned: {kind}", best_of(scenario(traffic, 2, **keys, **pins), times), plain)
    CONSOLE.print(made)


def bench_tiers(times: int) -> None:
    """The Azure hour at 80% of capacity, every request's KV written to host memory, and a disk."""
    made = table("Azure 2023 conversation hour, 16 replicas at 80% of their capacity")
    scale = busy_scale(16)
    plain = best_of(scenario(azure(scale), 16, fleet__routing="least-loaded"), times)
    add(made, "prefix caching alone", plain, plain)
    host = {"name": "host", "capacity_bytes": 60e9}
    disk = {"name": "disk", "capacity_bytes": 500e9, "read_bytes_per_s": 6e9}
    for name, tiers in (("host memory", [host]), ("host memory and disk", [host, disk])):
        changes = {"fleet__routing": "least-loaded", "fleet__pools__main__kv": {"tiers": tiers}}
        add(made, name, best_of(scenario(azure(scale), 16, **changes), times), plain)
    CONSOLE.print(made)


def bench_switching(times: int) -> None:
    """More chats than memory holds, priorities drawn anew every 50 steps, KV swapped."""
    made = table("Chat on 16 replicas that swap")
    loop = {"kind": "closed-loop", "in_flight": 16 * 160, "requests_per_slot": 8}
    lengths = {"kind": "lognormal", "prompt_mean_tokens": 1000, "prompt_cv": 0.8}
    lengths |= {"output_mean_tokens": 250, "output_cv": 0.8}
    traffic = {"arrivals": loop, "lengths": lengths}
    swap = {"swap": {"capacity_bytes": 60e9, "run_blocks": 16, "keeps_copies": True}}
    changes = {"engine__prefix_caching": False, "engine__kv_blocks": 8000}
    changes["engine__max_model_len"] = 65536
    changes |= {"fleet__pools__main__kv": swap}
    run = best_of(scenario(traffic, 16, **changes), times)
    add(made, "first come, first served", run)
    changes |= {"fleet__pools__main__batching": "fastswitch"}
    add(made, "priorities that change", best_of(scenario(traffic, 16, **changes), times), run)
    CONSOLE.print(made)


def bench_stops(times: int) -> None:
    """Long prompts that are stopped inside for short ones, against steps that run to their end."""
    from llmsim.scenario import Scenario

    made = table("Scenario `urgent-prompts`, 20,000 requests; ratio to stops between steps")
    plain = None
    for at in ("step", "layer", "operator"):
        changes = {"traffic.requests": 20_000, "fleet.pools.prefill.stop.at": at}
        data = Scenario.load("urgent-prompts", changes).resolved()
        run = best_of({"data": data, "changes": {}}, times)
        plain = plain or run
        add(made, f"stops behind every {at}", run, plain)
    CONSOLE.print(made)


def bench_tokens(times: int) -> None:
    """The Azure hour with the time of every token taken down."""
    made = table("Azure 2023 conversation hour, 4 replicas; the time of every token")
    plain = best_of(scenario(azure(), 4), times)
    add(made, "without", plain, plain)
    add(made, "record.tokens", best_of(scenario(azure(), 4, record__tokens=True), times), plain)
    CONSOLE.print(made)


def bench_programs(times: int) -> None:
    """Sessions and agents, whose next call waits for the one before, against calls on their own."""
    lengths = {
        "kind": "lognormal",
        "prompt_mean_tokens": 400,
        "prompt_cv": 0.8,
        "output_mean_tokens": 150,
        "output_cv": 0.8,
    }
    traffic = {"lengths": lengths, "requests": 20_000}
    alone = traffic | {"arrivals": {"kind": "poisson", "rate_rps": 40.0}}
    calls = traffic | {"arrivals": {"kind": "poisson", "rate_rps": 8.0}, "requests": 4_000}
    made = table("Programs of five calls on average, 4 replicas, by cost per call")
    plain = best_of(scenario(alone, 4), times)
    add(made, "calls on their own", plain, plain)
    tools = {"shell": {"mean_s": 0.5}, "tests": {"mean_s": 5.0}}
    for name, more in (("sessions", {}), ("agents", {"tools": tools})):
        programs = {"kind": name, "turns_mean": 5.0, "turns_max": 20} | more
        add(made, name, best_of(scenario(calls | {"programs": programs}, 4), times), plain)
    CONSOLE.print(made)


def bench_forks() -> None:
    """What it takes to foresee what becomes of a request, per fork."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("forks.py"))], check=True)


def bench_flatness(times: int) -> None:
    """Cost per request against trace length and replica count, load per replica unchanged.

    Every replica gets as many requests: what a replica costs by itself, such as its timeline, is
    then the same part of a request.
    """
    made = table("Cost per request against length and fleet size")
    lengths = {"kind": "lognormal", "prompt_mean_tokens": 1155, "output_mean_tokens": 211}
    first = None
    for each, replicas in ((10_000, 1), (10_000, 4), (10_000, 16), (10_000, 64), (200_000, 1)):
        arrivals = {"kind": "poisson", "rate_rps": 5.5 * replicas}
        traffic = {"arrivals": arrivals, "lengths": lengths, "requests": each * replicas}
        run = best_of(scenario(traffic, replicas, fleet__routing="least-loaded"), times)
        first = first or run
        add(made, f"{each:,} requests on each of {replicas}", run, first)
    CONSOLE.print(made)


def bench_stepping(times: int) -> None:
    """Steps per second with fast-forward off: one call per step, whatever the batch."""
    made = table("Stepping mode (fast_forward: false); the figure is steps/s")
    for batch in (1, 16, 64, 256):
        lengths = {"kind": "fixed", "prompt_tokens": 256, "output_tokens": 512}
        loop = {"kind": "closed-loop", "in_flight": batch, "requests_per_slot": 40}
        case = scenario({"arrivals": loop, "lengths": lengths}, engine__fast_forward=False)
        add(made, f"batch {batch}", best_of(case, times))
    CONSOLE.print(made)


def bench_mooncake(times: int) -> None:
    """Prompt identity at work: prefix caching and affinity routing on 8 replicas."""
    if not MOONCAKE.is_file():
        CONSOLE.print("Mooncake: no trace at hand; see docs/traces.md for where to get it.")
        return
    made = table("Mooncake conversation, 8 replicas, prefix caching, prefix-affinity routing")
    affinity = {"fleet__routing": "prefix-affinity"}
    keys = {"fleet__pools__main__gpu": "h200-sxm", **affinity}
    run = best_of(scenario(mooncake(), 8, **keys), times)
    add(made, f"as the memory allows, {run.hit_frac:.1%} hits", run)
    sticky = {"kind": "prefix-affinity", "min_match_frac": 0.0, "max_imbalance": 1_000_000}
    endless = scenario(mooncake(), 8, **(keys | {"fleet__routing": sticky}))
    run = best_of(endless | {"kv_blocks": 50_000_000}, times)
    add(made, f"cache without end, {run.hit_frac:.1%} hits", run)
    CONSOLE.print(made)
    CONSOLE.print("The hit ratio of this trace in one endless cache is 37.4% of input tokens.\n")


def bench_burstgpt(requests: int) -> None:
    """The long one: seven months of BurstGPT-like traffic."""
    made = table(f"BurstGPT-like, {requests:,} requests")
    days = burstgpt(requests)
    add(made, "published rate, 4 replicas", measure(scenario(days, 4)))
    least = {"fleet__routing": "least-loaded"}
    flood = measure(scenario(burstgpt(200_000), 16, **least) | {"compress": 1e9})
    capacity = flood.requests / flood.end_s
    busy = scenario(days, 16, **least) | {"compress": 0.8 * capacity / 0.56}
    add(made, f"{0.8 * capacity:.0f}/s, 80% of 16 replicas", measure(busy))
    CONSOLE.print(made)


def bench_command() -> None:
    """The whole command, reading and report included, as a user waits for it."""
    llmsim = Path(sys.executable).parent / "llmsim"
    with tempfile.TemporaryDirectory() as folder:
        words = [str(llmsim), "run", "azure-conversation", "--out", f"{folder}/run", "--quiet"]
        words += ["--set", f"traffic.trace.path={AZURE}", "--set", "model=llama-3.1-8b"]
        words += ["--set", "fleet.pools.main.tp=1"]
        if not AZURE.is_file():
            words = [str(llmsim), "run", "quickstart", "--out", f"{folder}/run", "--quiet"]
        began = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        CONSOLE.print(f"`{' '.join(words[1:3])}`, all in: {time.perf_counter() - began:.2f} s\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="10.31 M requests (minutes)")
    parser.add_argument("--times", type=int, default=3, help="repeats; the fastest counts")
    parser.add_argument("--only", nargs="*", help="azure options flatness stepping mooncake ...")
    parser.add_argument("--profile", default="", help="folder of a measured profile of an H100")
    asked = parser.parse_args()
    probe = measure(scenario(azure(), 1))
    CONSOLE.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"engine {probe.engine}; each run on one core in a process of its own.\n"
    )
    parts = {
        "azure": lambda: bench_azure(asked.times),
        "options": lambda: bench_options(asked.times),
        "lines": lambda: bench_lines(asked.times),
        "measured": lambda: bench_measured(asked.times, asked.profile),
        "handoff": lambda: bench_handoff(asked.times),
        "lanes": lambda: bench_lanes(asked.times),
        "pipeline": lambda: bench_pipeline(asked.times),
        "migration": lambda: bench_migration(asked.times),
        "tiers": lambda: bench_tiers(asked.times),
        "switching": lambda: bench_switching(asked.times),
        "pins": lambda: bench_pins(asked.times),
        "stops": lambda: bench_stops(asked.times),
        "tokens": lambda: bench_tokens(asked.times),
        "programs": lambda: bench_programs(asked.times),
        "forks": bench_forks,
        "flatness": lambda: bench_flatness(asked.times),
        "stepping": lambda: bench_stepping(asked.times),
        "mooncake": lambda: bench_mooncake(asked.times),
        "command": bench_command,
        "burstgpt": lambda: bench_burstgpt(10_310_000 if asked.full else 300_000),
    }
    for name, part in parts.items():
        if not asked.only or name in asked.only:
            part()


if __name__ == "__main__":
    main()
