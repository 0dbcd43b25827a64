"""What iteration-level batching and paging are worth, where they are worth something and not."""

from __future__ import annotations

import pytest

import llmsim as ls
from llmsim.core.errors import ScenarioError

POOL = "fleet.pools.main"
RUSH = {
    "traffic.requests": 600,
    "traffic.arrivals.rate_rps": 1e5,
    "engine.max_model_len": 2560,
    "engine.max_num_batched_tokens": 4096,
    "engine.kv_blocks": 30_000 // 16,
    "engine.prefix_caching": False,
    "engine.lookahead": 0,
    "engine.watermark_frac": 0.01,
    f"{POOL}.gpu": "a100-80gb-sxm",
}
"""A queue of chats before one A100 that keeps 30,000 tokens."""

CHATS = {
    "traffic.lengths": {
        "kind": "lognormal",
        "prompt_mean_tokens": 220,
        "prompt_cv": 1.3,
        "prompt_max_tokens": 1500,
        "output_mean_tokens": 200,
        "output_cv": 1.3,
        "output_max_tokens": 1000,
    }
}
STATIC = {f"{POOL}.batching": "static-batching", f"{POOL}.allocation": "contiguous-max"}
ORCA = {f"{POOL}.batching": "orca", f"{POOL}.allocation": "contiguous-max"}
V0 = {f"{POOL}.batching": "vllm-v0"}
SAFE = {f"{POOL}.batching": {"kind": "vllm-v0", "admit_when_short": False}}


def tokens_per_s(*settings, seed=1):
    given = {"seed": seed}
    for each in (RUSH, *settings):
        given |= each
    if given["traffic.requests"] is None:
        del given["traffic.arrivals.rate_rps"]
    result = ls.run("quickstart", given)
    rows = result.requests
    assert (rows.outcome == "finished").all()
    told = (
        f"{int(rows.preemptions.sum())} evictions, {int(rows.recomputed_tokens.sum())} recomputed"
    )
    print(given.get(f"{POOL}.batching"), told)
    return rows.output_tokens.sum() / (rows.end_s.max() - rows.arrival_s.min())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bands(seed):
    """Steps instead of batches: 2 to 4.5 times the tokens; pages instead of regions: 1.5 to 4."""
    static, orca, v0 = (tokens_per_s(CHATS, way, seed=seed) for way in (STATIC, ORCA, V0))
    assert 2.0 <= orca / static <= 4.5
    assert 1.5 <= v0 / orca <= 4.0
    safe = tokens_per_s(CHATS, SAFE, seed=seed)
    assert 1.5 <= safe / orca <= 4.0


def test_equal_answers_need_no_steps():
    equal = {
        "traffic.lengths": {"kind": "fixed", "prompt_tokens": 200, "output_tokens": 200},
        "traffic.arrivals": {"kind": "closed-loop", "in_flight": 11, "requests_per_slot": 1},
        "traffic.requests": None,  # as many as there are regions, all at once
    }
    assert tokens_per_s(equal, ORCA) / tokens_per_s(equal, STATIC) == pytest.approx(1.0, abs=0.05)


def test_full_regions_need_no_pages():
    """A prompt that fills its region leaves nothing to share."""
    full = {
        "traffic.lengths": {"kind": "fixed", "prompt_tokens": 2500, "output_tokens": 20},
        "traffic.requests": 200,
    }
    assert tokens_per_s(full, V0) / tokens_per_s(full, ORCA) <= 1.05


def test_claims_and_prefix_caching_are_refused_together():
    with pytest.raises(ScenarioError, match="prefix_caching does not go with allocation"):
        ls.Scenario.load("quickstart", {f"{POOL}.allocation": "contiguous-max"})
    with pytest.raises(ScenarioError, match="contiguous-max"):
        ls.Scenario.load("quickstart", {f"{POOL}.allocation": "contiguous"})
