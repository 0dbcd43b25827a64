"""Lanes: what they take of a GPU, what a share costs, and what a scenario may say of them."""

from __future__ import annotations

import pytest

from llmsim import Scenario, ScenarioError
from llmsim import run as simulate
from llmsim.core.errors import InputError
from llmsim.costmodel import RooflineCost
from llmsim.costmodel.lanes import RooflineUse, Use, pace_of
from llmsim.specs import EngineLimits, load_gpu, load_model

MODEL = load_model("llama-3.1-8b")
GPU = load_gpu("a100-80gb-sxm")


def at(share: float) -> tuple[RooflineCost, RooflineUse]:
    cost = RooflineCost(MODEL, GPU.shared(share), limits=EngineLimits(), lookahead=0)
    return cost, RooflineUse(cost, share)


def decode(share: float, batch: int = 64, context: int = 1024) -> tuple[float, Use]:
    cost, use = at(share)
    padded = batch * context
    alone = cost.step_ns((), batch, padded, 0, batch)
    return alone, use.of((), batch, padded, batch, alone)


def prefill(share: float, new: int = 4096) -> tuple[float, Use]:
    cost, use = at(share)
    alone = cost.step_ns([(new, 0)], 0, 0, 0, 1)
    return alone, use.of([(new, 0)], 0, 0, 1, alone)


def test_the_whole_gpu_is_the_gpu():
    assert GPU.shared(1.0) is GPU


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_is_a_share(share):
    with pytest.raises(InputError, match="share_frac"):
        GPU.shared(share)


def test_decode_speed_saturates_in_the_share_and_prefill_speed_does_not():
    whole, _ = decode(1.0, batch=16)  # of which products are memory-bound too
    assert decode(0.4, batch=16)[0] == pytest.approx(whole, rel=0.12)
    assert decode(0.2, batch=16)[0] > 1.6 * whole
    assert prefill(0.4)[0] == pytest.approx(prefill(1.0)[0] / 0.4, rel=0.15)


def test_what_steps_take():
    for share in (0.3, 0.7, 1.0):
        _, busy = prefill(share)
        assert 0.75 * share < busy.sm_frac <= share  # compute-bound: nearly all its SMs
        assert busy.bandwidth_frac < 0.5
    _, reads = decode(1.0)
    assert 0.7 < reads.bandwidth_frac <= 1.0
    assert reads.sm_frac < 0.5


def test_lanes_that_ask_for_no_more_than_there_is_do_not_slow_down():
    assert pace_of([Use(0.6, 0.3), Use(0.4, 0.7)]) == 1.0
    assert pace_of([Use(0.8, 0.3), Use(0.4, 0.2)]) == pytest.approx(1 / 1.2)
    assert pace_of([Use(0.1, 0.9), Use(0.1, 0.9)]) == pytest.approx(1 / 1.8)


def test_together_no_faster_than_the_gpu():
    """What both lanes get done stays within SMs and bandwidth, and a larger share hurts more."""
    paces = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        uses = [prefill(share)[1], decode(1.0)[1]]
        pace = pace_of(uses)
        assert pace * sum(use.sm_frac for use in uses) <= 1.0 + 1e-9
        assert pace * sum(use.bandwidth_frac for use in uses) <= 1.0 + 1e-9
        paces.append(pace)
    assert paces == sorted(paces, reverse=True)


POOL = {"gpu": "a100-80gb-sxm", "engine": {"lookahead": 0}}
PLAIN = {
    "llmsim": 1,
    "name": "lanes",
    "model": "llama-3.1-8b",
    "slo": {"tpot_s": 0.02},
    "traffic": {
        "arrivals": {"kind": "poisson", "rate_rps": 6},
        "lengths": {"kind": "fixed", "prompt_tokens": 2000, "output_tokens": 100},
        "requests": 120,
    },
    "fleet": {
        "pools": {
            "p": {**POOL, "role": "prefill", "share_frac": 0.7},
            "d": {**POOL, "role": "decode", "beside": "p"},
        }
    },
}


def value(result, metric: str) -> float:
    table = result.summary()
    return float(table.loc[table["metric"] == metric, "value"].iloc[0])


def test_lanes_cost_their_gpus_once():
    told = simulate(Scenario.parse(PLAIN))
    assert told.facts.pools[0].gpus_per_replica == 1
    assert told.facts.pools[1].gpus_per_replica == 0
    assert 0 < value(told, "kv_used_mean_frac") < 1


def test_a_policy_moves_shares():
    one = Scenario.parse(PLAIN)
    other = one.override(
        {"fleet.pools.d.sharing": {"kind": "tpot-feedback", "target_frac": 0.6, "period_s": 0.2}}
    )
    fixed, moved = simulate(one), simulate(other)
    assert moved.facts.digest != fixed.facts.digest
    assert value(moved, "tpot_p90_s") < value(fixed, "tpot_p90_s")
    assert value(moved, "ttft_mean_s") > value(fixed, "ttft_mean_s")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fleet.pools.d.beside": "q"}, "no pool 'q'"),
        ({"fleet.pools.d.role": "mixed", "fleet.pools.p.role": "mixed"}, "must be decode on"),
        ({"fleet.pools.d.replicas": 2}, "replicas"),
        ({"fleet.pools.d.beside": None}, "is for pools that share GPUs"),
        ({"fleet.pools.d.batching": "sglang"}, "keeps memory as if no other pool shared"),
        ({"engine.lookahead": 1, "fleet.pools.d.engine.lookahead": 1}, "lookahead"),
    ],
)
def test_what_does_not_go_together(change, told):
    with pytest.raises(ScenarioError, match=told):
        Scenario.parse(PLAIN).override(change)
