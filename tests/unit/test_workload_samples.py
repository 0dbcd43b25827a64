"""Several answers to one prompt: what arrives, and what is shared."""

from __future__ import annotations

import numpy as np
import pytest

import llmsim as ls
from llmsim.scenario import build_workload

FOUR = {
    "traffic.requests": 20,
    "traffic.samples": 4,
    "traffic.arrivals.rate_rps": 2,
    "traffic.lengths": {
        "kind": "uniform",
        "prompt_min_tokens": 1000,
        "prompt_max_tokens": 1100,
        "output_min_tokens": 5,
        "output_max_tokens": 60,
    },
}


def rows(overrides):
    (chunk,) = build_workload(ls.Scenario.load("quickstart", overrides)).chunks()
    return chunk


def test_every_prompt_comes_so_often_at_once():
    one, four = rows(FOUR | {"traffic.samples": 1}), rows(FOUR)
    assert (four.arrival_ns.reshape(20, 4) == one.arrival_ns[:, None]).all()
    assert (four.prompt_tokens.reshape(20, 4) == one.prompt_tokens[:, None]).all()
    assert (four.output_tokens[::4] == one.output_tokens).all()
    assert len(np.unique(four.output_tokens)) > 10
    assert len(set(four.segments)) == len(set(four.session)) == 20
    assert build_workload(ls.Scenario.load("quickstart", FOUR)).total == 80


@pytest.mark.parametrize("samples", [2, 4])
def test_answers_share_what_was_computed_of_their_prompt(samples):
    """All but the block that a prompt does not fill is computed once, and held by all."""
    asked = FOUR | {"traffic.samples": samples, "fleet.routing": "session-sticky"}
    result = ls.run("quickstart", asked)
    found = result.requests.cached_tokens.to_numpy().reshape(20, samples)
    prompt = result.requests.prompt_tokens.to_numpy().reshape(20, samples)
    assert (found[:, 0] == 0).all()
    assert (found[:, 1:] == (prompt[:, 1:] - 1) // 16 * 16).all()
    apart = ls.run("quickstart", asked | {"engine.prefix_caching": False})
    assert result.metrics["prefill_tokens"] < 1.1 / samples * apart.metrics["prefill_tokens"]
    assert result.metrics["kv_used_peak_frac"] < apart.metrics["kv_used_peak_frac"]


@pytest.mark.parametrize("scenario", ["agents", "mooncake-affinity"])
def test_what_has_no_samples_says_so(scenario):
    with pytest.raises(ls.ScenarioError, match="samples"):
        ls.Scenario.load(scenario, {"traffic.samples": 2})
