"""What replicas sustain in closed form, against simulation; which configurations are asked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from llmsim.core.errors import InputError, ScenarioError
from llmsim.planner import Problem, pack
from llmsim.planner.capacity import Capacity, Limits, Shape, capacity, most_of
from llmsim.planner.columns import Choice, Scored, Space, search, without_dominated
from llmsim.planner.demand import demand_of, in_words
from llmsim.planner.problem import Column
from llmsim.scenario import Scenario
from llmsim.serving.build import build_pools
from llmsim.study.single import simulate_scenario

CHAT = Shape(1000, 200)


def scenario(gpu="h100-sxm", shape=CHAT, rate_rps=1.0, requests=10, **pool):
    lengths = {
        "kind": "fixed",
        "prompt_tokens": shape.prompt_tokens,
        "output_tokens": shape.output_tokens,
    }
    arrivals = {"kind": "poisson", "rate_rps": rate_rps}
    return Scenario.parse(
        {
            "llmsim": 1,
            "name": "one",
            "model": "llama-3.1-8b",
            "traffic": {"arrivals": arrivals, "lengths": lengths, "requests": requests},
            "engine": {"prefix_caching": False},
            "fleet": {"pools": {"main": {"gpu": gpu, **pool}}},
        }
    )


def closed(shape, limits, role="mixed", **pool):
    plan = build_pools(scenario(shape=shape, **pool))[0][0]
    return capacity(plan.cost, plan.config, shape, limits, role), plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "shape", "limits"),
    [
        ({}, Shape(1000, 200), Limits(tpot_s=0.03)),
        ({"gpu": "l40s"}, Shape(500, 500), Limits(tpot_s=0.06)),
        ({"gpu": "a100-80gb-sxm"}, Shape(8000, 400), Limits(tpot_s=0.05)),
    ],
)
def test_means_at_the_closed_form_rate_are_those_simulated(pool, shape, limits):
    """TPOT within a tenth; TTFT is a bound from below that forgets who shares its steps."""
    found, _ = closed(shape, limits, **pool)
    run = simulate_scenario(scenario(shape=shape, rate_rps=found.rate_rps, requests=1500, **pool))
    rows = run.requests
    steady = rows[len(rows) // 4 : len(rows) * 3 // 4]
    assert steady.tpot_s.mean() == pytest.approx(found.tpot_s, rel=0.12)
    assert found.ttft_s < steady.ttft_s.mean() < 3.5 * found.ttft_s


RANKS = {"model": "deepseek-v3", "fleet.pools.main.gpu": "h200-sxm"}


def ranked(shape=CHAT, **changes):
    asked = scenario(shape=shape).override(
        {**RANKS, "fleet.pools.main.dp": 8, "fleet.pools.main.ep": 8, **changes}
    )
    return asked, build_pools(asked)[0][0]


@pytest.mark.slow
def test_means_of_attention_ranks_are_those_simulated():
    """TPOT within a fifth: a step waits for the rank with the most prompts."""
    asked, plan = ranked(**{"engine.max_model_len": 8192})
    found = capacity(plan.cost, plan.config, CHAT, Limits(tpot_s=0.06), "mixed", plan.joint, 8)
    change = {"traffic.arrivals.rate_rps": found.rate_rps, "traffic.requests": 1000}
    rows = simulate_scenario(asked.override(change)).requests
    steady = rows[len(rows) // 4 : len(rows) * 3 // 4]
    assert steady.tpot_s.mean() == pytest.approx(found.tpot_s, rel=0.2)


def test_a_replica_of_ranks_is_as_many_batches_that_wait_for_one_another():
    _, plan = ranked()
    one = capacity(plan.cost, plan.config, CHAT, Limits(tpot_s=0.06), "decode", plan.joint, 8)
    assert one.batch % 8 == 0
    more = capacity(plan.cost, plan.config, CHAT, Limits(tpot_s=0.06), "mixed", plan.joint, 8)
    assert more.rate_rps < one.rate_rps
    prompts = capacity(plan.cost, plan.config, CHAT, Limits(ttft_s=1.0), "prefill", plan.joint, 8)
    assert prompts.batch == 8


@pytest.mark.parametrize(("ranks", "mean"), [(1, 2.5), (8, 0.1), (8, 3.0), (64, 20.0)])
def test_the_largest_of_some_poisson_numbers(ranks, mean):
    draw = np.random.default_rng(5).poisson(mean, (40_000, ranks)).max(axis=1)
    assert most_of(ranks, mean) == pytest.approx(draw.mean(), rel=0.02)


def test_ranks_are_for_mixtures():
    space = Space(("h100-sxm",), tp=(1,), dp=(1, 2))
    found = search(scenario(), space, {"chat": CHAT}, Limits(tpot_s=0.05))
    assert [each.choice.name for each in found.kept] == ["h100-sxm"]
    assert "share nothing but experts" in found.lost[0].reason
    mixture = scenario().override(RANKS)
    space = Space(("h200-sxm",), tp=(1, 8), dp=(1, 8), ep=(1, 8))
    found = search(mixture, space, {"chat": CHAT}, Limits(tpot_s=0.06), prune=False)
    made = {each.choice.name: each for each in found.kept}
    assert {"h200-sxm-tp8", "h200-sxm-dp8", "h200-sxm-dp8-ep8"} <= set(made)
    assert made["h200-sxm-dp8-ep8"].column.gpus == 8


def test_ranks_on_stages_are_searched():
    """DeepSeek-V3 does not fit eight H100; on sixteen, two stages of ranks are one of the ways."""
    mixture = scenario().override(RANKS)
    space = Space(("h100-sxm",), tp=(1,), dp=(8, 16), ep=(8, 16), pp=(1, 2), most_gpus=16)
    limits = Limits(ttft_s=3.0, tpot_s=0.08)
    found = search(mixture, space, {"chat": CHAT}, limits, prune=False)
    made = {each.choice.name: each for each in found.kept}
    assert made["h100-sxm-dp8-pp2-ep8"].column.gpus == 16
    lost = {each.choice.name: each.reason for each in found.lost}
    assert "too large" in lost["h100-sxm-dp8-ep8"]


@pytest.mark.slow
def test_a_pipeline_of_ranks_does_better_than_its_bound():
    layout = {"fleet.pools.main.pp": 2, "fleet.pools.main.gpu": "h100-sxm"}
    asked, plan = ranked(**{**layout, "engine.max_model_len": 8192})
    found = capacity(plan.cost, plan.config, CHAT, Limits(tpot_s=0.1), "mixed", plan.joint, 8)
    change = {"traffic.arrivals.rate_rps": found.rate_rps, "traffic.requests": 1000}
    assert simulate_scenario(asked.override(change)).requests.tpot_s.mean() < found.tpot_s


@pytest.mark.slow
def test_a_pipeline_does_better_than_its_bound():
    found, _ = closed(CHAT, Limits(tpot_s=0.03), pp=2)
    run = simulate_scenario(scenario(rate_rps=found.rate_rps, requests=1500, pp=2))
    assert run.requests.tpot_s.mean() < found.tpot_s


def test_the_largest_batch_keeps_its_promise_and_one_more_breaks_it():
    limits = Limits(tpot_s=0.03)
    found, plan = closed(Shape(1000, 200), limits)
    assert found.bound == "tpot"
    assert found.tpot_s <= 0.03
    tight = capacity(plan.cost, plan.config, Shape(1000, 200), Limits(tpot_s=found.tpot_s - 1e-9))
    assert tight.batch == found.batch - 1
    # Little's law, with the prompt's own time
    time_s = 200 * found.tpot_s
    assert found.rate_rps * time_s < found.batch
    assert found.rate_rps * (time_s + 0.1) > found.batch


def test_each_bound_is_named():
    shape = Shape(4000, 100)
    assert closed(shape, Limits(tpot_s=1e-3))[0].rate_rps == 0
    assert closed(shape, Limits(tpot_s=1e-3))[0].bound == "tpot"
    assert closed(shape, Limits(ttft_s=0.15))[0].bound == "ttft"
    few = {"engine": {"kv_blocks": 2000, "max_model_len": 8192}}
    assert closed(shape, Limits(), **few)[0].bound == "kv"
    assert closed(shape, Limits(), **few)[0].batch == 2000 // math.ceil(4050 / 16)
    assert closed(Shape(10, 10), Limits())[0].bound == "max_num_seqs"


def test_phases_apart_are_freer_than_both_together():
    shape, limits = Shape(4000, 200), Limits(ttft_s=1.0, tpot_s=0.03)
    both = closed(shape, limits)[0]
    prompts, outputs = (closed(shape, limits, role)[0] for role in ("prefill", "decode"))
    assert prompts.rate_rps > both.rate_rps
    assert outputs.rate_rps > both.rate_rps
    unbound, plan = closed(shape, Limits(), "prefill")
    assert unbound.bound == "prefill"
    assert 0.9e9 < unbound.rate_rps * plan.cost.step_ns([(4000, 0)], 0, 0, 0, 1) < 1e9


@pytest.fixture(scope="module")
def demand():
    draw = np.random.default_rng(1)
    prompts = np.minimum(draw.lognormal(6.5, 1.0, 5000), 8000).astype(int)
    outputs = np.minimum(draw.lognormal(5.0, 1.0, 5000), 2000).astype(int)
    return demand_of(prompts, outputs, 250.0, (1, 512, 2048), (1, 128, 512))


def test_buckets_keep_the_rate_and_the_tokens():
    demand = demand_of([10, 20, 600, 700], [5, 5, 300, 100], 2.0, (1, 512), (1, 128))
    assert {b.name: b.rate_rps for b in demand.buckets} == {
        "in1.out1": 1.0, "in512.out1": 0.5, "in512.out128": 0.5,
    }  # fmt: skip
    assert demand.shapes["in1.out1"] == Shape(15, 5)
    assert demand.rate_rps == 2.0
    with pytest.raises(InputError, match="no requests to plan for"):
        demand_of([], [], 1.0)


def test_what_is_left_out_would_never_have_been_bought(demand):
    """The cheapest fleet of the kept configurations is the cheapest of all."""
    space = Space(("h100-sxm", "l40s"), tp=(1, 2), quantisations=("", "fp8"))
    limits = Limits(ttft_s=2.0, tpot_s=0.06)
    costs = []
    for prune in (True, False):
        found = search(scenario(), space, demand.shapes, limits, prune=prune)
        problem = Problem(demand.buckets, tuple(each.column for each in found.kept), 0.8)
        costs.append(pack(problem).usd_per_hour)
        assert len(found.kept) + len(found.lost) == len(space.choices())
    assert costs[0] == pytest.approx(costs[1])
    assert any("do as much for no more" in each.reason for each in
               search(scenario(), space, demand.shapes, limits).lost)  # fmt: skip


def test_each_configuration_that_lost_says_why(demand):
    big = scenario().override({"model": "llama-3.1-70b"})
    found = search(big, Space(("l40s", "h100-sxm"), tp=(1, 8)), demand.shapes, Limits(tpot_s=0.02))
    reasons = {each.choice.name: each.reason for each in found.lost}
    assert "GiB per GPU too large" in reasons["l40s"]
    assert "GiB per GPU too large" in reasons["h100-sxm"]
    assert reasons["l40s-tp8"] == "keeps the promise of no bucket: tpot"
    assert [each.choice.name for each in found.kept] == ["h100-sxm-tp8"]
    with pytest.raises(ScenarioError, match="Did you mean 'h100-sxm'"):
        search(big, Space(("h100-sxn",)), demand.shapes, Limits())


def test_names_say_what_differs():
    assert Choice("b200", 4, quantisation="nvfp4", max_num_seqs=64).name == "b200-tp4-nvfp4-seqs64"
    assert len({choice.name for choice in Space(("a", "b"), pp=(1, 2)).choices()}) == 14


def test_dominance_counts_whole_replicas_of_one_card():
    def scored(name, gpus, usd_per_hour, rate, gpu="h"):
        column = Column(name, gpu, gpus, usd_per_hour, {"chat": rate})
        return Scored(Choice(gpu, gpus), column, {"chat": Capacity(rate, 1, 0.0, 0.0, "none")})

    one, two = scored("one", 1, 2.0, 3.0), scored("two", 2, 4.0, 5.9)
    kept, lost = without_dominated([two, one])
    assert [each.column.name for each in kept] == ["one"]
    assert lost[0].reason == "2 x one do as much for no more"
    better = replace(two, column=replace(two.column, throughput_rps={"chat": 6.1}))
    assert len(without_dominated([better, one])[0]) == 2
    assert len(without_dominated([scored("far", 2, 4.0, 1.0, "g"), one])[0]) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("in1", "the shortest prompts"),
        ("in2048", "prompts from 2,048 tokens on"),
        ("in1.out1", "the shortest prompts with the shortest outputs"),
        ("in512.out128", "prompts from 512 tokens on with outputs from 128 tokens on"),
        ("chat", "chat"),
    ],
)
def test_buckets_have_words_for_sentences(name, words):
    assert in_words(name) == words
