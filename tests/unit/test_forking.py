"""Which fleets a router that foresees goes with: asked of scenarios, and shown by running them."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.core.errors import ScenarioError
from llmsim.scenario.foreseeing import wrong_forecasts
from llmsim.scenario.promises import Estimators
from llmsim.scenario.tiers import Kv, KvSwap

BLOCK = {"fleet.routing": "block", "estimators.output_length": "oracle", "fleet.view_age_s": 0.0}
SILENT = {"fleet.routing": "round-robin"}
SHORT = {"traffic.duration_s": None, "traffic.warmup_s": 0.0, "traffic.requests": 60}
SWAPS = {"capacity_bytes": 1e10}
STAGED_RANKS = {"fleet.pools.main.dp": 4, "fleet.pools.main.ep": 4, "fleet.pools.main.pp": 2}
ALONE = {
    "ranks": ("ranks", {}),
    "ranks of a pipeline": ("ranks", STAGED_RANKS),
    "pipeline": ("pipeline", {}),
    "tiers": ("tiers", {}),
    "lanes": ("lanes", {"fleet.pools.prefill.replicas": 1, "fleet.pools.decode.replicas": 1}),
    "swaps": (
        "predictive",
        {
            "fleet.pools.main.replicas": 1,
            "fleet.pools.main.engine.kv_blocks": 600,
            "fleet.pools.main.engine.max_model_len": 4096,
            "fleet.pools.main.kv": {"swap": SWAPS},
        },
    ),
    "a line by length": (
        "predictive",
        {"fleet.pools.main.replicas": 1, "fleet.pools.main.batching": "shortest-first"},
    ),
    "a line in turn of clients": (
        "predictive",
        {"fleet.pools.main.replicas": 1, "fleet.pools.main.batching": "vtc"},
    ),
    "swaps of a pipeline": (
        "pipeline",
        {
            "traffic.arrivals.rate_rps": 4,
            "fleet.pools.main.engine.kv_blocks": 600,
            "fleet.pools.main.kv": {"swap": SWAPS},
        },
    ),
}
"""Scenarios with one door each: who is asked what would happen behind it changes nothing."""


@pytest.mark.parametrize("name", ALONE)
def test_asking_the_only_door_changes_nothing(name):
    scenario, own = ALONE[name]
    changes = BLOCK | SHORT | own
    asked, quiet = ls.run(scenario, changes), ls.run(scenario, changes | SILENT)
    assert asked.facts.digest == quiet.facts.digest


@pytest.mark.parametrize("name", ALONE)
def test_a_look_that_is_old_will_do(name):
    scenario, own = ALONE[name]
    changes = BLOCK | SHORT | own | {"fleet.view_age_s": 0.2, "fleet.count_own_sends": True}
    asked, quiet = ls.run(scenario, changes), ls.run(scenario, changes | SILENT)
    assert asked.facts.digest == quiet.facts.digest


REFUSED = {
    "disaggregated": ("disaggregated", {}, "a pool of role prefill, a pool of role decode"),
    "pinned": ("pinned", {}, "retention"),
    "a line beside swaps": (
        "predictive",
        {"fleet.pools.main.batching": "shortest-first", "fleet.pools.main.kv": {"swap": SWAPS}},
        "cannot foresee yet with batching shortest-first",
    ),
    "images": ("images", {"fleet.pools.encode": None}, "does not go with routing block"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_with_the_reason(name):
    scenario, changes, told = REFUSED[name]
    with pytest.raises(ScenarioError) as error:
        ls.Scenario.load(scenario, BLOCK | changes)
    assert told in str(error.value)


def test_what_ranks_of_a_pipeline_wait_for_is_not_foreseen():
    """Nor is it simulated yet, so that a scenario with it is refused for that."""
    fleet = ls.Scenario.load("ranks", BLOCK | STAGED_RANKS).fleet
    pool = fleet.pools["main"].model_copy(update={"kv": Kv(swap=KvSwap())})
    told = wrong_forecasts(
        fleet.model_copy(update={"pools": {"main": pool}}), Estimators(output_length="oracle")
    )
    assert "KV that pipeline stages of attention ranks wait for" in told["fleet.routing"]
