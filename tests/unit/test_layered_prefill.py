"""Layered prefill as a scenario: what it is good for, and what it does not go together with."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.core.errors import ScenarioError
from llmsim.scenario import Scenario

WRONG = {
    "fleet.pools.main.pp": (2, "pipeline stages (pp)"),
    "fleet.pools.main.dp": (2, "attention ranks (dp)"),
    "fleet.pools.main.allocation": ("contiguous-max", "allocation contiguous-max"),
    "fleet.gateway": ({"most_per_replica": 3}, "fleet.gateway"),
    "fleet.pools.main.spare_replicas": (1, "spare_replicas"),
    "fleet.pools.main.batching.most_groups": (0, "most_groups"),
}


@pytest.mark.parametrize("key", WRONG)
def test_what_does_not_go_together_is_refused(key):
    value, said = WRONG[key]
    with pytest.raises(ScenarioError) as told:
        Scenario.load("layered", {key: value})
    assert said in str(told.value)


def test_merged_or_not_it_is_the_same_run():
    few = {"traffic.requests": 40}
    runs = [ls.run("layered", few | {"engine.fast_forward": on}) for on in (True, False)]
    assert runs[0].digest == runs[1].digest
    assert runs[0].metrics["power_mean_w"] == pytest.approx(runs[1].metrics["power_mean_w"])
    chunked = ls.run("layered", few | {"fleet.pools.main.batching": "vllm"})
    assert chunked.digest != runs[0].digest


def test_one_group_is_a_whole_step():
    """With a single group, sets of prompts that fit a step are those of vLLM's order."""
    few = {"traffic.requests": 40, "traffic.arrivals.rate_rps": 1.0}
    whole = few | {
        "engine.max_num_batched_tokens": 16384,
        "traffic.lengths.prompt_max_tokens": 9000,
    }
    one = ls.run("layered", whole | {"fleet.pools.main.batching.most_groups": 1})
    assert one.digest == ls.run("layered", whole | {"fleet.pools.main.batching": "vllm"}).digest


def test_no_token_waits_for_a_whole_prompt():
    """Against chunks as large as a set, the longest gap between tokens is far shorter."""
    few = {"traffic.requests": 60}
    groups = ls.run("layered", few).metrics
    steps = ls.run("layered", few | {"fleet.pools.main.batching": "vllm"}).metrics
    assert groups["itl_p99_s"] < 0.4 * steps["itl_p99_s"]
