"""Steps whose prompts go through a part of the layers: parts add up, and experts are spared."""

from __future__ import annotations

import pytest

from llmsim.costmodel import RooflineCost
from llmsim.costmodel.layer_ranges import RooflineLayers
from llmsim.costmodel.popularity import experts_hit
from llmsim.specs import EngineLimits, ParallelPlan, load_gpu, load_link, load_model

LIMITS = EngineLimits(max_num_seqs=128, max_num_batched_tokens=8192)
MODELS = {"qwen3-30b-a3b": 2, "llama-3.1-8b": 1, "gpt-oss-20b": 1, "deepseek-v2-lite": 1}


def priced(name, lookahead=0):
    gpu = load_gpu("h100-sxm")
    tp = MODELS[name]
    link = load_link(gpu.link) if tp > 1 else None
    return RooflineCost(load_model(name), gpu, link, ParallelPlan(tp), LIMITS, lookahead=lookahead)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("decode", [0, 1, 8, 64])
@pytest.mark.many
def test_the_whole_model_costs_a_step(name, lookahead, decode):
    cost = priced(name, lookahead)
    layers = RooflineLayers(cost)
    assert layers.layers == cost.model.layer_count
    windowed = 128 * decode if cost.window_tokens else 0
    for chunks in ([(8192 - decode, 0)], [(100, 300), (700, 0)]):
        given = (decode, 1024 * decode, windowed, decode + 1)
        whole = cost.step_ns(chunks, *given)
        assert abs(layers.step_ns(chunks, 0, layers.layers, *given) - whole) <= 1


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "llama-3.1-8b", "deepseek-v2-lite"])
def test_ranges_add_up(name):
    """In G steps a prompt costs one step of the whole model and G - 1 decode steps.

    But for the host, and for where decodes go beside prompts and where alone.
    """
    cost = priced(name)
    layers = RooflineLayers(cost)
    groups, chunk = 4, [(4096, 0)]
    cuts = [layers.layers * g // groups for g in range(groups + 1)]
    parts = sum(
        layers.step_ns(chunk, cuts[g], cuts[g + 1], 0, 0, 0, int(g == groups - 1))
        for g in range(groups)
    )
    whole = cost.step_ns(chunk, 0, 0, 0, 1)
    host = cost.host_ns(4096, 0, 1)[0]
    assert parts == pytest.approx(whole + (groups - 1) * host, rel=1e-6)


# a prompt of 8,192 tokens through 128 experts, 8 of them each: by 16 groups of layers over by 16
# chunks of 512, experts loaded per layer
SPARED = {1: 0.12, 4: 0.28, 8: 0.44, 16: 0.67, 32: 0.88, 64: 0.985, 128: 1.0}


def loaded(tokens):
    """E (1 - (1 - k / E)^T): expected experts that a layer reads."""
    return experts_hit(128, 8, float(tokens))


@pytest.mark.parametrize("decode", SPARED)
def test_experts_that_are_loaded(decode):
    layered = loaded(8192 + decode) + 15 * loaded(decode)
    chunked = 16 * loaded(512 + decode)
    assert layered / chunked == pytest.approx(SPARED[decode], abs=0.03)


@pytest.mark.parametrize("decode", SPARED)
def test_experts_that_are_loaded_as_priced(decode):
    """The same from the bytes that the cost model charges the operator of the experts with."""
    cost = priced("qwen3-30b-a3b")
    (moe,) = [layer.mlp for layer in cost.model.layers]
    assert (moe.experts, moe.active_experts) == (128, 8)

    def weights(tokens):
        """Bytes of one layer's experts without what tokens themselves move."""
        (row,) = [
            row for row in cost.explain([(tokens, 0)], logits=1).rows if row.name == "experts"
        ]
        width = moe.intermediate // 2
        moved = 2.0 * 8 * tokens * (2.0 * cost.model.hidden + 3 * width)
        return row.bytes / row.count - moved

    # sizes beyond captured graphs are computed as they are; decodes alone are padded to a graph
    chunked = 16 * weights(512 + decode)
    layered = weights(8192) + 15 * loaded(decode) / loaded(8192) * weights(8192)
    assert layered / chunked == pytest.approx(SPARED[decode], abs=0.03)
