"""Stages of a pipeline: who has which layers, what each costs and holds, what goes between them."""

from __future__ import annotations

import numpy as np
import pytest

import llmsim as ls
from llmsim.core.errors import InputError
from llmsim.costmodel import RooflineCost, check_layout, plan_memory
from llmsim.costmodel.communication import Network, all_gather
from llmsim.costmodel.pipeline import PipelineCost, stage_host
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    ParallelPlan,
    layers_by_stage,
    load_gpu,
    load_link,
    load_model,
    stage_of,
)

GPU = load_gpu("a100-80gb-sxm")
LIMITS = EngineLimits(max_num_seqs=64, max_num_batched_tokens=512, max_model_len=4096)
NVLINK = load_link("nvlink3")


def pipeline(model, stages, tp=1, host=HostTerms(), link=NVLINK):  # noqa: B008
    parts = [
        RooflineCost(
            stage_of(model, stage, stages),
            GPU,
            NVLINK if tp > 1 else None,
            ParallelPlan(tp),
            LIMITS,
            lookahead=0,
            host=stage_host(host),
        )
        for stage in range(stages)
    ]
    return PipelineCost(parts, host, [link] * (stages - 1))


def test_layers_are_dealt_out_as_vllm_does():
    assert layers_by_stage(80, 4) == (20, 20, 20, 20)
    assert layers_by_stage(61, 4) == (15, 15, 16, 15)
    assert layers_by_stage(31, 2) == (16, 15)
    assert layers_by_stage(30, 4) == (7, 8, 8, 7)
    with pytest.raises(InputError, match="only 3 layers"):
        layers_by_stage(3, 4)


def test_stages_have_the_layers_that_lie_there():
    """DeepSeek-V3: three dense layers come first, 58 with experts behind them."""
    model = load_model("deepseek-v3")
    first, second = (stage_of(model, stage, 4) for stage in (0, 1))
    assert [layer.count for layer in first.layers] == [3, 12]
    assert [layer.count for layer in second.layers] == [15]
    assert (first.has_embedding, first.has_head) == (True, False)
    assert (second.has_embedding, second.has_head) == (False, False)


def test_layers_that_alternate_are_on_all_stages():
    model = load_model("gpt-oss-20b")  # every other layer has a window
    assert [[layer.count for layer in stage_of(model, i, 2).layers] for i in (0, 1)] == [[6, 6]] * 2


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "llama-3.2-1b"])
def test_stages_together_are_the_model(name):
    model = load_model(name)
    parts = [stage_of(model, stage, 3) for stage in range(3)]
    assert sum(part.layer_count for part in parts) == model.layer_count
    twice = model.embedding().weight_bytes if model.tied_embeddings else 0.0
    assert sum(part.weight_bytes() for part in parts) == pytest.approx(model.weight_bytes() + twice)
    assert sum(p.kv_bytes_per_token() for p in parts) == pytest.approx(model.kv_bytes_per_token())


def test_one_stage_costs_what_a_plain_step_does():
    model, host = load_model("llama-3.1-8b"), HostTerms(base_s=1e-3, per_request_s=2e-5)
    plain = RooflineCost(model, GPU, limits=LIMITS, lookahead=0, host=host)
    staged = pipeline(model, 1, host=host)
    assert staged.names == ("host", "stage 0")
    for step in (((), 8, 8192, 0, 8), (((100, 0),), 3, 1000, 0, 4), (((512, 512),), 0, 0, 0, 0)):
        assert staged.step_ns(*step) == pytest.approx(plain.step_ns(*step), abs=1)
    line, alone = staged.decode_line(8, 8192), plain.decode_line(8, 8192)
    assert line.base_ns == pytest.approx(alone.base_ns)
    assert line.per_token_ns == alone.per_token_ns


def test_stages_share_the_work_and_the_last_has_the_head():
    model = load_model("llama-3.1-8b")
    _, whole = pipeline(model, 1).station_ns((), 64, 64 * 1024, 0, 64)
    _, first, _, last = pipeline(model, 2).station_ns((), 64, 64 * 1024, 0, 64)
    assert first + last == pytest.approx(whole, rel=1e-3)
    head = RooflineCost(model, GPU, limits=LIMITS, lookahead=0).explain((), [1024] * 64)
    rows = {row.name: row.seconds for row in head.rows}
    ends = rows["lm_head"] + rows["sampler"] + rows["final norm"] - rows["embed"]
    assert last - first == pytest.approx(ends * 1e9, rel=1e-3)


def test_what_goes_between_stages_by_hand():
    """Hidden states and residual, 16 bits each; half on each of two GPUs, gathered there."""
    link = load_link("ethernet-64g")  # 50 us, 8 GB/s
    one = pipeline(load_model("llama-3.1-8b"), 2, link=link)
    assert one.station_ns(((500, 0),), 0, 0, 0, 0)[2] == 50_000 + 500 * 4096 * 4 / 8
    two = pipeline(load_model("llama-3.1-8b"), 2, tp=2, link=link)
    sent, gathered = two.hop_tables(link, np.array([500.0]))
    assert sent.seconds[0] == pytest.approx(50e-6 + 500 * 4096 * 2 / 8e9)
    inside = all_gather("", 1, np.array([500 * 4096 * 4.0]), Network(NVLINK, 8), 2)
    assert gathered.seconds[0] == inside.seconds[0]
    falcon = pipeline(load_model("falcon-180b"), 4, tp=4, link=link)  # no residual of its own
    (sent, _) = falcon.hop_tables(link, np.array([500.0]))
    assert sent.bytes[0] == 500 * 14848 * 2 / 4


def test_memory_is_that_of_the_fullest_stage():
    """Llama-3.1-70B at 16 bits on 4 x 1 A100: 20 layers each, and an end on the outer stages."""
    model = load_model("llama-3.1-70b")
    found = plan_memory(model, GPU, ParallelPlan(pp=4), LIMITS)
    layers = 20 * sum(part.weight_bytes for part in model.layers[0].linears(model.hidden, 1))
    assert found.weights_bytes == pytest.approx(layers + 2.0 * model.vocab * model.hidden)
    assert found.kv_bytes_per_token == 20 * 2 * 8 * 128 * 2
    alone = plan_memory(model, GPU, ParallelPlan(tp=4), LIMITS)
    assert 0.8 < found.kv_tokens / alone.kv_tokens < 1.2


def test_plans_with_stages():
    plan = ParallelPlan(tp=4, pp=2)
    assert (plan.gpus, plan.stage_gpus, plan.words) == (8, 4, "tp 4, pp 2")
    with pytest.raises(InputError, match=r"40 stages, but llama-3\.1-8b has 32 layers"):
        check_layout(load_model("llama-3.1-8b"), GPU, ParallelPlan(pp=40))


WRONG = [
    ({"dp": 2}, "has no experts"),
    ({"engine.lookahead": 1}, "must be 0 or absent"),
    ({"kv.tiers": [{"name": "host", "medium": "host", "capacity_gb": 1}]}, "tiers"),
    ({"pp": 1, "stage_link": "ib-ndr"}, "several stages"),
    ({"stage_link": "ib-nrd"}, "ib-ndr"),
]


@pytest.mark.parametrize(("changes", "told"), WRONG)
def test_what_does_not_go_together_is_said(changes, told):
    keys = {f"fleet.pools.main.{key}": value for key, value in ({"pp": 2} | changes).items()}
    with pytest.raises(InputError, match=told):
        ls.run("quickstart", keys)


def test_prompts_on_two_stages_are_decoded_on_one():
    pools = {
        "main": None,
        "prefill": {"role": "prefill", "gpu": "h100-sxm", "pp": 2},
        "decode": {"role": "decode", "gpu": "h100-sxm"},
    }
    found = ls.run("quickstart", {"traffic.requests": 20, "fleet.pools": pools})
    assert found.metrics["requests_finished"] == 20
    assert 0 < found.metrics["bubble_frac"] < 1


def test_a_pipeline_is_paid_for_and_draws_power_on_all_its_gpus():
    keys = {"traffic.requests": 20, "fleet.pools.main.pp": 2}
    one, two = ls.run("quickstart", {"traffic.requests": 20}), ls.run("quickstart", keys)
    assert two.metrics["usd_per_hour"] == 2 * one.metrics["usd_per_hour"]
    idle = load_gpu("h100-sxm").power.idle_w
    assert two.metrics["power_mean_w"] > 2 * idle
