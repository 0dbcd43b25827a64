"""Micro-batches of attention ranks on stages: what each station costs, and what fits there."""

from __future__ import annotations

from dataclasses import replace

import pytest

import llmsim as ls
from llmsim.core.errors import InputError, ScenarioError
from llmsim.costmodel import RooflineCost, check_layout, plan_memory
from llmsim.costmodel.contract import RankLoad
from llmsim.costmodel.pipeline import PipelineCost, stage_host
from llmsim.costmodel.ranked_pipeline import RankedPipelineCost
from llmsim.costmodel.ranks import RankedCost
from llmsim.scenario import Scenario
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    ParallelPlan,
    load_gpu,
    load_link,
    load_model,
    stage_of,
)

H200 = load_gpu("h200-sxm")
NVLINK, BETWEEN = load_link("nvlink4"), load_link("ib-ndr")
MODEL = load_model("deepseek-v3")
LIMITS = EngineLimits(max_num_seqs=256, max_num_batched_tokens=4096, max_model_len=8192)
HOST = HostTerms(base_s=1e-3, per_request_s=1e-5)


def part(plan, stage, stages):
    model, host = stage_of(MODEL, stage, stages), stage_host(HOST)
    return RooflineCost(model, H200, NVLINK, plan, LIMITS, lookahead=0, host=host)


def pipeline(plan, stages):
    parts = [part(plan, stage, stages) for stage in range(stages)]
    return PipelineCost(parts, HOST, [BETWEEN] * (stages - 1))


EIGHT = ParallelPlan(tp=1, dp=8, ep=8)


@pytest.fixture(scope="module")
def cost():
    return RankedPipelineCost(pipeline(EIGHT, 2))


LOADS = [
    RankLoad([(700, 100)], 20, 20 * 4096, 0, 21),
    RankLoad([], 90, 90 * 1024, 0, 90),
    *[RankLoad([], 0, 0, 0, 0)] * 6,
]


def test_each_station_by_hand(cost):
    """The host of 90 requests, 720 tokens of twice 7,168 values, and half of the layers each."""
    host, first, link, second = cost.station_ns(LOADS)
    assert cost.names == ("host", "stage 0", "link 0", "stage 1")
    assert host == 1_000_000 + 90 * 10_000
    sent = BETWEEN.p2p_alpha_s + 720 * 7168 * 2 * 2 / BETWEEN.p2p_bytes_per_s
    assert link == pytest.approx(1e9 * sent, abs=1)
    assert [first, second] == [RankedCost(part(EIGHT, s, 2)).step_ns(LOADS) for s in (0, 1)]
    assert cost.step_ns(LOADS) == host + first + link + second


def test_stages_share_what_one_would_do(cost):
    whole = RankedPipelineCost(pipeline(EIGHT, 1))
    _, one = whole.station_ns(LOADS)
    _, first, _, second = cost.station_ns(LOADS)
    assert first + second == pytest.approx(one, rel=1e-6)


def test_a_single_rank_is_a_plain_pipeline():
    plain = pipeline(ParallelPlan(tp=8, ep=8), 2)
    step = ([(600, 50)], 40, 40 * 2048, 0, 41)
    alone = RankedPipelineCost(plain).station_ns([RankLoad(*step)])
    assert alone == pytest.approx(plain.station_ns(*step), abs=1)


def test_a_micro_batch_and_its_line_agree(cost):
    batches = [40, 7, 0, 0, 3, 0, 0, 12]
    loads = [RankLoad([], batch, batch * 2048, 0, batch) for batch in batches]
    line = cost.decode_line(batches, 0, 40 * 2048)
    assert line.at_ns(40 * 2048, 0) == pytest.approx(cost.step_ns(loads), abs=4)
    own = [each.attention_line(40, 40 * 2048).at_ns(40 * 2048, 0) for each in cost.parts]
    assert cost.attention_line(40, 40 * 2048).at_ns(40 * 2048, 0) == pytest.approx(sum(own))


def test_an_explanation_adds_up(cost):
    ranks = [([(1000, 0)], [4096] * 20), *[([], [2048] * 64)] * 7]
    loads = [
        RankLoad(list(chunks), len(contexts), sum(contexts), 0, len(contexts) + len(chunks))
        for chunks, contexts in ranks
    ]
    told = cost.explain(ranks)
    assert sum(row.seconds for row in told.rows) == pytest.approx(told.seconds)
    assert 1e9 * told.seconds == pytest.approx(cost.step_ns(loads), abs=4)
    step = ls.step("deepseek-v3", "h200-sxm", batch=64, context=2048, dp=8, ep=8, pp=2)
    assert sum(time for _, time in step.stations_s) == pytest.approx(step.seconds, abs=1e-8)


def test_memory_is_that_of_a_rank_on_the_fullest_stage():
    found = plan_memory(MODEL, H200, replace(EIGHT, pp=2), LIMITS)
    parts = [plan_memory(stage_of(MODEL, stage, 2), H200, EIGHT, LIMITS) for stage in (0, 1)]
    assert found == min(parts, key=lambda one: one.kv_blocks)
    whole = plan_memory(MODEL, H200, EIGHT, LIMITS)
    assert found.weights_bytes == pytest.approx(whole.weights_bytes / 2, rel=0.03)
    # 61 layers are 31 and 30: the stage with the head has fewer, and decides all the same
    assert found.kv_bytes_per_token * 61 / whole.kv_bytes_per_token in (30.0, 31.0)


def test_layouts_that_cannot_be():
    assert replace(EIGHT, pp=2).gpus == 16
    with pytest.raises(InputError, match="stage 0 of 32 has no experts for its 8 ranks to share"):
        check_layout(MODEL, H200, replace(EIGHT, pp=32))
    with pytest.raises(InputError, match="6 GPUs of a stage would lie on two nodes"):
        check_layout(MODEL, H200, ParallelPlan(tp=1, dp=6, pp=4))
    with pytest.raises(InputError, match=r"llama-3\.1-8b has no experts"):
        check_layout(load_model("llama-3.1-8b"), H200, ParallelPlan(dp=2, pp=2))


REFUSED = [
    ({"fleet.pools.main.engine.lookahead": 1}, "must be 0 or absent with pp"),
    ({"record.tokens": True}, r"attention ranks \(dp\) or stages \(pp\)"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_what_neither_does_is_refused_for_both(changes, told):
    with pytest.raises((ScenarioError, InputError), match=told):
        ls.run("two-nodes", changes | {"traffic.duration_s": 1, "traffic.warmup_s": 0})


SHORT = {"traffic.duration_s": 12, "traffic.warmup_s": 0}


def test_a_scenario_runs_on_all_its_gpus():
    """Merged or not the same run; sixteen GPUs are paid for; each of eight ranks has its KV."""
    merged = ls.run("two-nodes", SHORT)
    stepped = ls.run("two-nodes", SHORT | {"engine.fast_forward": False})
    assert merged.facts.digest == stepped.facts.digest
    assert [each.steps for each in merged.facts.replicas] == [
        each.steps for each in stepped.facts.replicas
    ]
    assert sum(each.events for each in merged.facts.replicas) < sum(
        each.events for each in stepped.facts.replicas
    )
    (pool,) = merged.facts.pools
    assert (pool.gpus_per_replica, pool.ranks) == (16, 8)
    assert merged.metrics["usd_per_hour"] == pytest.approx(16 * pool.usd_per_gpu_hour)
    assert merged.metrics["requests_finished"] == len(merged.table)
    assert 0 < merged.metrics["bubble_frac"] < 1
    assert [each.name for each in merged.facts.stations] == ["host", "stage 0", "link 0", "stage 1"]
    scenario = Scenario.load("two-nodes")
    assert scenario.fleet.pools["main"].gpus == 16


def test_prompts_on_ranks_of_a_pipeline_are_decoded_on_others():
    """By ranks of another pipeline, and with tiers below both."""
    tier = {"name": "host", "capacity_bytes": 1e12}
    pool = {"gpu": "h200-sxm", "dp": 4, "ep": 4, "pp": 2, "kv": {"tiers": [tier]}}
    pools = {"main": None} | {role: {"role": role} | pool for role in ("prefill", "decode")}
    found = ls.run("two-nodes", SHORT | {"fleet.pools": pools})
    assert found.metrics["requests_finished"] == len(found.table)
    assert {each.pool for each in found.facts.stations} == {"prefill", "decode"}
