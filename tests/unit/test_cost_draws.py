"""What the cost model's error does to a run: draws, bands, and one fleet against another."""

import json
import math

import numpy as np
import pytest

import llmsim as ls
from llmsim.api import draw_costs
from llmsim.costmodel.uncertainty import LOW_PRECISION_LOG_SD, draw_scales, family_log_sd
from llmsim.specs import load_gpu, load_model
from llmsim.study.comparison import CostComparison
from llmsim.study.draws import HEADLINES, CostDraws

SMALL = {"traffic.requests": 300, "traffic.arrivals.rate_rps": 6}


def test_factors_have_the_width_asked_for_and_common_beginnings():
    many = draw_scales({"gemm": 0.2, "moe": 0.1}, "h100-sxm", 1, 4000)
    gemm = np.log([each.gemm for each in many])
    moe = np.log([each.moe for each in many])
    # 4,000 draws: the mean is off by less than 4 standard errors, the width by 5%
    assert abs(gemm.mean()) < 4 * 0.2 / math.sqrt(4000)
    assert gemm.std() == pytest.approx(0.2, rel=0.05)
    assert moe.std() == pytest.approx(0.1, rel=0.05)
    assert abs(np.corrcoef(gemm, moe)[0, 1]) < 4 / math.sqrt(4000)
    assert {each.communication for each in many} == {1.0}
    assert draw_scales({"gemm": 0.2, "moe": 0.1}, "h100-sxm", 1, 5) == many[:5]
    assert draw_scales({"gemm": 0.2, "moe": 0.1}, "l40s", 1, 5) != many[:5]


def test_products_narrower_than_16_bits_are_less_certain():
    gpu = load_gpu("h100-sxm")
    dense = family_log_sd(load_model("llama-3.1-8b"), gpu)
    fp8 = family_log_sd(load_model("deepseek-v3"), gpu, tp=8)
    assert dense["gemm"] < LOW_PRECISION_LOG_SD == fp8["gemm"] == fp8["moe"]


@pytest.mark.slow
def test_a_run_and_its_draws_meet_the_same_traffic():
    drawn = draw_costs("quickstart", SMALL, draws=4, jobs=1)
    assert drawn.draws == 4
    assert drawn.plain["tpot_p50_s"] == ls.run("quickstart", SMALL).metrics["tpot_p50_s"]
    spread = drawn.drawn["tpot_p50_s"]
    assert len(set(spread.tolist())) == 4
    low, middle, high = drawn.band("tpot_p50_s")
    assert spread.min() <= low < middle < high <= spread.max()
    # the same draws again, in other processes
    again = draw_costs("quickstart", SMALL, draws=2, jobs=2)
    assert again.drawn["tpot_p50_s"].tolist() == spread[:2].tolist()
    assert list(drawn.table().metric) == list(HEADLINES)
    json.dumps(drawn.as_json(), allow_nan=False)


def test_a_faster_gpu_is_better_in_every_draw_and_equals_tie():
    slow = ls.Scenario.load("quickstart", SMALL | {"fleet.pools.main.gpu": "l40s"})
    compared = ls.compare(ls.Scenario.load("quickstart", SMALL), slow, draws=3, jobs=1)
    assert compared.first_better_frac("tpot_p50_s") == 1.0
    own = CostComparison(compared.first, compared.first)
    assert own.first_better_frac("ttft_p99_s") == 0.5


def test_more_is_better_of_some_metrics_and_less_of_others():
    def made(values):
        same = np.array(values)
        return CostDraws("x", dict.fromkeys(HEADLINES, 1.0), dict.fromkeys(HEADLINES, same),
                         ("stable",) * len(values), ("met",) * len(values))  # fmt: skip

    compared = CostComparison(made([1.0, 2.0, math.nan, 5.0]), made([3.0, 3.0, 3.0, 3.0]))
    assert compared.first_better_frac("ttft_p50_s") == pytest.approx(2 / 3)
    assert compared.first_better_frac("goodput_rps") == pytest.approx(1 / 3)
    half_known = made([math.nan, math.nan, math.nan, 1.0])
    assert math.isnan(half_known.band("ttft_p50_s")[0])


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ls.InputError, match="1, must be at least 2"):
        draw_costs("quickstart", SMALL, draws=1)
