"""Reuse away from the front in a scenario: what it does not go with, and what a run says."""

import pytest

import llmsim as ls
from llmsim.core.errors import ScenarioError

MAIN = "fleet.pools.main."
WITH = {MAIN + "segments": {"recompute_frac": 0.2}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engine.prefix_caching": False}, "need engine.prefix_caching"),
        ({MAIN + "kv": {"tiers": [{"name": "host", "capacity_bytes": 1e9}]}}, "kv.tiers yet"),
        ({MAIN + "segments": {"recompute_frac": 1.1}}, "recompute_frac"),
    ],
)
def test_what_it_does_not_go_with(changes, told):
    with pytest.raises(ScenarioError, match=told):
        ls.Scenario.load("quickstart").override(WITH | changes)


def test_documents_in_any_order_are_found_and_the_answers_are_disclaimed():
    traffic = {
        "traffic.requests": 120,
        "traffic.arrivals.rate_rps": 2.0,
        "traffic.lengths": {"kind": "fixed", "prompt_tokens": 200, "output_tokens": 5},
        "traffic.prompts": {"kind": "documents", "documents": 20, "document_tokens": 400},
    }
    plain, blended = ls.run("quickstart", traffic), ls.run("quickstart", traffic | WITH)
    assert blended.metrics["prefix_hit_frac"] > 2 * plain.metrics["prefix_hit_frac"]
    assert blended.metrics["ttft_mean_s"] < 0.8 * plain.metrics["ttft_mean_s"]
    assert any("quality is not simulated" in text for text in blended.warnings)
    assert not any("quality" in text for text in plain.warnings)
