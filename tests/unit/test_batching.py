"""Batching policies beside the default, as a user meets them."""

from dataclasses import replace

import llmsim as ls
from llmsim.policies.batching import VllmBatching
from llmsim.results.store import RequestSink
from llmsim.scenario import build_workload
from llmsim.serving import simulate
from llmsim.serving.build import build_pools


def test_prefill_first_cuts_a_prompt_that_no_step_can_hold() -> None:
    result = ls.run(
        "quickstart",
        {
            "traffic.requests": 40,
            "traffic.lengths": {"kind": "fixed", "prompt_tokens": 20_000, "output_tokens": 8},
            "fleet.pools.main.batching": "prefill-first",
        },
    )
    assert set(result.requests.outcome) == {"finished"}
    assert (result.requests.output_tokens == 8).all()


class ByTheBook(VllmBatching):
    """The default under another name: the engine asks it to plan each step."""


def test_the_default_plan_is_the_one_that_its_policy_describes() -> None:
    scenario = ls.Scenario.load("quickstart").override(
        {
            "traffic.requests": 1500,
            "traffic.arrivals.rate_rps": 60,
            "engine.kv_blocks": 9000,
        }
    )
    pools, _ = build_pools(scenario)
    found = []
    for policy in (VllmBatching, ByTheBook):
        sink = RequestSink([pool.facts.name for pool in pools], [])
        plans = [replace(pool, batching=policy) for pool in pools]
        router = scenario.fleet.routing.build()
        facts = simulate(plans, build_workload(scenario), router, sink, seed=1)
        found.append((facts.digest, facts.events, sink.raw().tolist()))
    assert found[0] == found[1]
    assert sum(part.preemptions for part in facts.replicas) > 0
