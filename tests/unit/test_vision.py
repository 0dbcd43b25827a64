"""Images: what an encoder is, what it takes, who brings any, and what that does not go with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llmsim as ls
from llmsim.costmodel import RooflineCost
from llmsim.costmodel.images import ImageCost
from llmsim.scenario import Scenario, build_workload
from llmsim.specs import load_gpu, load_model
from llmsim.specs.vision import read_encoder

CONFIG = Path(__file__).parents[3] / "shared/models/Qwen--Qwen3-VL-8B-Instruct_config.json"
APART = {"fleet.pools.encode": {"role": "encode", "gpu": "h100-sxm"}}
SEES = {"model": "qwen3-vl-8b", "traffic.images": {"tokens": 592}}


def test_an_encoder_by_hand():
    """27 layers of four squares of 1,152 and two matrices of 1,152 x 4,304; four mergers."""
    model = load_model("qwen3-vl-8b")
    encoder = model.encoder
    assert encoder is not None
    layers, mergers = encoder.as_model(model).layers
    own = sum(part.parameters for part in layers.linears(encoder.hidden, 1))
    assert layers.count * own == 27 * (4 * 1152**2 + 2 * 1152 * 4304)
    joined = 4 * 1152
    per_patch = sum(part.parameters for part in mergers.linears(encoder.hidden, 1))
    assert mergers.count == 4
    assert per_patch == (joined * joined + joined * 4096) / 4


@pytest.mark.skipif(not CONFIG.exists(), reason="needs ../shared")
def test_a_card_says_of_its_encoder_what_the_published_config_says():
    assert load_model(str(CONFIG)).encoder == load_model("qwen3-vl-8b").encoder


def test_what_is_not_said_of_an_encoder_is_not_guessed():
    assert read_encoder({"vision_config": {"depth": 1}}) is None
    assert load_model("llama-3.1-8b").encoder is None
    pooled = dict.fromkeys(("num_hidden_layers", "hidden_size", "num_attention_heads"), 4)
    pooled |= {"intermediate_size": 8, "pooling_kernel_size": 3}
    found = read_encoder({"vision_config": pooled})
    assert found is not None
    assert (found.patches_per_token, found.mergers) == (9, 0)
    assert read_encoder({"vision_config": {**pooled, "hidden_size": 5}}) is None


def test_patches_see_each_other_in_both_directions():
    """n^2 pairs an image, however many there are; time grows with the square of its size."""
    model, gpu = load_model("qwen3-vl-8b"), load_gpu("h100-sxm")
    assert model.encoder is not None
    cost = RooflineCost(model.encoder.as_model(model), gpu)
    sums = cost.chunk_sums([(2000, 1000)] * 3)
    assert sums.pairs == pytest.approx(3 * 2000**2, rel=1e-3)
    small, large = (ImageCost(cost, n, 4 * n).images_ns(1) for n in (500, 2000))
    flops = [2 * 451e6 * 4 * n + 4 * 27 * 1152 * (4 * n) ** 2 for n in (500, 2000)]
    peak = gpu.peak_flops_per_s["bf16"]
    assert small > flops[0] / peak * 1e9
    assert flops[1] / peak * 1e9 < large < 3 * flops[1] / peak * 1e9
    assert large > 4 * small


def test_half_of_the_requests_bring_one_and_a_half():
    images = {"tokens": 10, "frac": 0.5, "mean": 1.5}
    changes = SEES | {"traffic.images": images, "traffic.requests": 20_000}
    with_images = Scenario.load("quickstart", changes)
    without = Scenario.load("quickstart", {"traffic.requests": 20_000})
    (chunk,), (again,) = (tuple(build_workload(with_images).chunks()) for _ in range(2))
    (plain,) = build_workload(without).chunks()
    assert chunk.images is not None
    assert (chunk.images > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert chunk.images[chunk.images > 0].mean() == pytest.approx(1.5, abs=0.03)
    np.testing.assert_array_equal(chunk.images, again.images)
    np.testing.assert_array_equal(chunk.prompt_tokens, plain.prompt_tokens + 10 * chunk.images)
    np.testing.assert_array_equal(chunk.arrival_ns, plain.arrival_ns)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (APART, "encode has nothing to do"),
        ({"traffic.images": {"tokens": 592}}, "has no vision encoder"),
        (SEES | {"traffic.samples": 2}, "does not go with traffic.samples"),
        (SEES | {"traffic.images": {"tokens": 592, "frac": 0}}, "greater than 0"),
        (SEES | {"fleet.pools.main.role": "encode"}, "nobody computes prompts"),
        (SEES | {"fleet.gateway": {"most_per_replica": 4}}, "fleet.gateway"),
        (SEES | {"fleet.pools.main.pp": 2}, "pipeline stages"),
        (SEES | APART | {"traffic.images": {"tokens": 10_000}}, "less than one image"),
        (SEES | APART | {"fleet.routing": "dualmap"}, "routing dualmap"),
    ],
)
def test_what_images_do_not_go_with(changes, told):
    with pytest.raises(ls.ScenarioError, match=told):
        Scenario.load("quickstart", changes)


def test_a_fleet_with_encoders_is_not_deployed():
    with pytest.raises(ls.InputError, match=r"pools\.encode\.role: no flags are known"):
        ls.deploy("images")


def test_an_encoder_of_their_own_takes_the_images_from_who_decodes():
    """Energy and busy time of encoding are there in either case; outputs are the same."""
    few = {"traffic.requests": 200}
    apart = ls.run("images", few)
    alone = {"fleet.pools.encode": None, "fleet.pools.main.replicas": 4}
    beside = ls.run("images", few | alone)
    for column in ("prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(apart.requests[column], beside.requests[column])
    busy = {each.pool: each.steps for each in apart.facts.replicas}
    assert busy["encode"] > 50
    assert apart.metrics["itl_p99_s"] < beside.metrics["itl_p99_s"]
