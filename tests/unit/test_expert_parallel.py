"""Experts dealt out over GPUs: the same bytes as when each is split, other shapes."""

import numpy as np
import pytest

from llmsim.core.errors import InputError, ScenarioError
from llmsim.costmodel import RooflineCost
from llmsim.costmodel.layout import check_layout
from llmsim.costmodel.operators import routed_experts
from llmsim.scenario import Scenario
from llmsim.specs import MoeMlp, ParallelPlan, load_gpu, load_link, load_model

GPU = load_gpu("h100-sxm")
MOE = MoeMlp(experts=8, active_experts=2, intermediate=14336)


def _experts(plan, tokens):
    return routed_experts(MOE, 1, 4096, plan, np.array([float(tokens)]), GPU)


def test_a_rank_computes_and_reads_as_much_as_when_every_expert_is_split():
    split, dealt = (_experts(ParallelPlan(4, ep), 4096) for ep in (1, 4))
    assert dealt.flops == pytest.approx(split.flops)
    # all experts are hit: a rank has 1/4 of the weights either way; its activations differ,
    # since a row that visits a whole expert reads and writes the hidden vector once, not 4 times
    weights = 8 * 3 * 4096 * 14336 * 2 / 4
    hidden_rows = 2 * 2 * 4096 * 2 * 4096
    inner_rows = 2 * 3 * 14336 / 4 * 2 * 4096
    assert split.bytes == pytest.approx(weights + hidden_rows + inner_rows)
    assert dealt.bytes == pytest.approx(weights + hidden_rows / 4 + inner_rows)


def test_one_token_hits_half_an_expert_of_a_rank_with_two():
    one = _experts(ParallelPlan(4, 4), 1)
    whole_expert = 3 * 4096 * 14336 * 2
    row = 0.5 * (2 * 4096 + 3 * 14336) * 2
    assert one.bytes == pytest.approx(0.5 * whole_expert + row)


def test_a_pool_takes_it_and_prices_it():
    model = load_model("mixtral-8x7b")
    link = load_link(GPU.link)
    prices = [
        RooflineCost(model, GPU, link, ParallelPlan(4, ep)).step_ns([(512, 0)], 0, 0, 0, 1)
        for ep in (1, 2, 4)
    ]
    assert len(set(prices)) == 3


def test_what_does_not_divide_is_said():
    with pytest.raises(InputError, match="3 does not divide the 4 GPUs"):
        ParallelPlan(4, 3)
    with pytest.raises(InputError, match=r"ep: 2, but llama-3.1-8b has no experts"):
        check_layout(load_model("llama-3.1-8b"), GPU, ParallelPlan(2, 2))
    overrides = {"model": "mixtral-8x7b", "fleet.pools.main.tp": 4, "fleet.pools.main.ep": 3}
    with pytest.raises(ScenarioError, match="ep: 3 does not divide the 4 GPUs of tp"):
        Scenario.load("quickstart", overrides)
