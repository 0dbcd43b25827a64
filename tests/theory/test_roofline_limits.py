"""Where the roofline must lead: to the memory's bandwidth at one end, to peak FLOPs at the other.

Llama-3.1-8B in 16 bits on one H100 SXM; the shape is the model's config.json, the peaks are the
data sheet's (989.4 TFLOP/s dense BF16, 3.35 TB/s).
"""

from __future__ import annotations

from functools import cache

import pytest

from llmsim.costmodel import RooflineCost
from llmsim.specs import EngineLimits, HostTerms, load_gpu, load_model

PEAK_FLOPS, BANDWIDTH = 989.4e12, 3.35e12
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, FFN, VOCAB = 32, 4096, 32, 8, 128, 14336, 128256
LAYER_WEIGHTS = LAYERS * (2 * HIDDEN * HEAD * (HEADS + KV_HEADS) + 3 * HIDDEN * FFN)
HEAD_WEIGHTS = HIDDEN * VOCAB
KV_BYTES_PER_TOKEN = 2 * 2 * LAYERS * KV_HEADS * HEAD


@cache
def cost() -> RooflineCost:
    return RooflineCost(
        load_model("llama-3.1-8b"),
        load_gpu("h100-sxm"),
        limits=EngineLimits(max_num_seqs=1024, max_num_batched_tokens=16384),
        host=HostTerms(0.0, 0.0, 0.0),
    )


def decode_s(batch: int, context: int) -> float:
    tile = cost().context_tile
    padded = batch * (-(-context // tile) * tile)
    return cost().step_ns([], batch, padded, padded, batch) * 1e-9


def prefill_s(tokens: int) -> float:
    return cost().step_ns([(tokens, 0)], 0, 0, 0, 1) * 1e-9


def test_one_decode_reads_the_weights():
    """At batch 1 and a short context a step is the weights over the bandwidth, and little more."""
    least = 2 * (LAYER_WEIGHTS + HEAD_WEIGHTS) / BANDWIDTH
    assert least < decode_s(1, 128) < 1.6 * least


def test_decodes_of_long_contexts_tend_to_the_kv_bandwidth():
    """With more and more context the step per KV byte falls towards a constant near 1/bandwidth."""
    excess = []
    for context in (1024, 4096, 16384, 65536):
        moved = 256 * context * KV_BYTES_PER_TOKEN
        excess.append(decode_s(256, context) * BANDWIDTH / moved)
    assert excess == sorted(excess, reverse=True)
    assert 1 <= excess[-1] < 1.3
    assert excess[0] > 1.1 * excess[-1]


def test_small_batches_cost_next_to_nothing_more():
    """Below the ridge, eight decodes for the price of one: they share the reading of weights."""
    assert decode_s(8, 128) < 1.1 * decode_s(1, 128)


def test_large_batches_of_short_contexts_tend_to_the_peak():
    """Above the ridge (about 295 tokens), twice the batch costs almost twice the time."""
    ridge = PEAK_FLOPS / BANDWIDTH
    assert 280 < ridge < 310
    assert decode_s(1024, 1) > 1.6 * decode_s(512, 1)


@pytest.mark.parametrize("tokens", [2048, 8192, 16384])
def test_long_prompts_run_near_the_peak(tokens):
    pairs = tokens * (tokens + 1) // 2
    flops = 2 * LAYER_WEIGHTS * tokens + 4 * LAYERS * HEADS * HEAD * pairs
    used = flops / PEAK_FLOPS / prefill_s(tokens)
    assert 0.5 < used <= 1


def test_prefill_grows_with_the_square_at_last():
    """Attention's share grows with length: doubling costs more than twice, less than four times."""
    ratios = [prefill_s(2 * n) / prefill_s(n) for n in (2048, 4096, 8192)]
    assert ratios == sorted(ratios)
    assert all(1.9 < ratio < 4 for ratio in ratios)


def test_a_decode_line_is_its_step():
    """What the engine prices stretches with is the price of each step, to half a nanosecond."""
    for batch in (1, 7, 64, 256, 1024):
        for padded in (batch * 128, batch * 4096):
            line = cost().decode_line(batch, padded)
            exact = line.base_ns + line.per_token_ns * padded + line.per_windowed_ns * padded
            assert abs(cost().step_ns([], batch, padded, padded, batch) - exact) <= 0.5
