"""The engine's work is counted, not timed: the counts are the same on every machine."""

import sys
from types import FrameType
from typing import Any

import pytest

from llmsim.cli.looking import engine_is_compiled
from llmsim.results.store import RequestSink
from llmsim.scenario import Scenario, build_workload
from llmsim.serving import simulate
from llmsim.serving.build import build_handoff, build_pools, build_router

LENGTHS = {
    "kind": "lognormal",
    "prompt_mean_tokens": 1000,
    "prompt_cv": 1.0,
    "output_mean_tokens": 200,
    "output_cv": 0.8,
}


def counts(requests: int, replicas: int, rate_rps: float, **engine: Any) -> tuple[float, float]:
    """Return scheduler calls and arrivals, and Python calls, both per request."""
    scenario = Scenario.parse(
        {
            "llmsim": 1,
            "name": "counts",
            "seed": 3,
            "model": "llama-3.1-8b",
            "traffic": {
                "arrivals": {"kind": "poisson", "rate_rps": rate_rps},
                "lengths": LENGTHS,
                "requests": requests,
            },
            "engine": engine,
            "fleet": {
                "routing": "least-loaded",
                "pools": {"main": {"replicas": replicas, "gpu": "h100-sxm"}},
            },
        }
    )
    pools, _ = build_pools(scenario)
    sink = RequestSink(["main"], [])
    called = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal called
        called += event == "call"

    workload, router = build_workload(scenario), scenario.fleet.routing.build()
    sys.setprofile(profile)
    try:
        facts = simulate(pools, workload, router, sink, seed=3)
    finally:
        sys.setprofile(None)
    assert facts.requests == requests
    return facts.events / requests, called / requests


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Run once before anything is counted: what is imported on first use is nobody's request."""
    counts(50, 1, 10.0)


@pytest.mark.parametrize("rate_rps", [2.0, 20.0])
def test_a_request_takes_a_handful_of_events(rate_rps: float) -> None:
    # an arrival, the call that admits it, the end of its prefill, its end (two calls each with
    # asynchronous scheduling); neither output length nor batch size comes in
    for lookahead, most in ((0, 4.1), (1, 5.1)):
        events, called = counts(1_500, 1, rate_rps, lookahead=lookahead)
        assert events < most
        assert called < 36 * most


def test_work_per_request_does_not_grow_with_the_trace_or_the_fleet() -> None:
    short, long = counts(500, 1, 10.0), counts(4_000, 1, 10.0)
    # from a few replicas on: alone, a replica is always next and skips the event queue. As many
    # requests per replica, since each replica's timeline is put together once
    few, many = counts(3_000, 8, 40.0), counts(12_000, 32, 160.0)
    assert long[0] < 1.1 * short[0]
    assert long[1] < 1.1 * short[1]
    assert many[0] < 1.25 * few[0]
    assert many[1] < 1.25 * few[1]


def test_caching_without_hits_costs_no_events() -> None:
    plain = counts(1_500, 1, 10.0, prefix_caching=False)
    cached = counts(1_500, 1, 10.0, prefix_caching=True)
    assert cached[0] == plain[0]
    assert cached[1] < 1.3 * plain[1]


def stopping(at: str) -> tuple[float, float]:
    """Return events and Python calls per request where prompts are stopped at such places."""
    changes = {"traffic.requests": 300, "fleet.pools.prefill.stop.at": at}
    scenario = Scenario.load("urgent-prompts", changes)
    pools, _ = build_pools(scenario)
    sink = RequestSink(["prefill", "decode"], [], handoff=True)
    workload, router = build_workload(scenario), build_router(scenario)
    handoff = build_handoff(scenario)
    called = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal called
        called += event == "call"

    sys.setprofile(profile)
    try:
        facts = simulate(pools, workload, router, sink, seed=3, handoff=handoff)
    finally:
        sys.setprofile(None)
    stops = sum(each.stops for each in facts.stops)
    assert stops == 0 if at == "step" else stops > 50
    return facts.events / 300, called / 300


def test_to_stop_behind_any_operator_costs_little_more_than_to_wait_for_steps() -> None:
    stopping("step")  # what is imported on first use
    whole, inside = stopping("step"), stopping("operator")
    assert inside[0] < 1.5 * whole[0]
    if not engine_is_compiled():  # what is compiled makes no Python calls: few are left to compare
        assert inside[1] < 1.5 * whole[1]
