"""Laws of the price over random shapes: the physical floor, and what more work may do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsim.costmodel import RooflineCost, padded_sums
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    ParallelPlan,
    gpu_names,
    load_gpu,
    load_link,
    load_model,
)

OCTETS = [name for name in gpu_names() if load_gpu(name).node_gpus >= 8]  # room for tp 8

CONFIGS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
MODELS = ["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"]
if CONFIGS.is_dir():
    MODELS += [
        str(CONFIGS / f"{name}_config.json")
        for name in (
            "openai--gpt-oss-120b",
            "deepseek-ai--DeepSeek-V3.2",
            "Qwen--Qwen3.5-397B-A17B",
            "nvidia--MiniMax-M2.5-NVFP4",
        )
    ]


@cache
def priced(model: str, gpu: str, tp: int, kv_dtype: str = "bf16") -> RooflineCost:
    card = load_gpu(gpu)
    limits = EngineLimits(max_num_seqs=64, max_num_batched_tokens=512)
    return RooflineCost(
        load_model(model),
        card,
        load_link(card.link),
        ParallelPlan(tp),
        limits,
        kv_dtype,
        host=HostTerms(0.0, 0.0, 0.0),
    )


chunk_lists = st.lists(
    st.tuples(st.integers(1, 8192), st.integers(0, 100_000)), min_size=0, max_size=3
)
context_lists = st.lists(st.integers(1, 131_072), min_size=0, max_size=40)


@settings(max_examples=examples(120), deadline=None)
@given(
    model=st.sampled_from(MODELS),
    gpu=st.sampled_from(OCTETS),
    tp=st.sampled_from([1, 2, 8]),
    kv_dtype=st.sampled_from(["bf16", "fp8"]),
    chunks=chunk_lists,
    contexts=context_lists,
)
def test_physical_floor(
    model: str,
    gpu: str,
    tp: int,
    kv_dtype: str,
    chunks: list[tuple[int, int]],
    contexts: list[int],
) -> None:
    """No operator beats FLOP / peak, nor compulsory bytes / bandwidth beyond the cache."""
    cost = priced(model, gpu, tp, kv_dtype)
    card = cost.gpu
    assert cost.link is not None
    for row in cost.explain(chunks, contexts).rows:
        slack = row.seconds * (1 + 1e-9)
        if row.dtype == "network":
            assert slack >= row.bytes / cost.link.bytes_per_s
            continue
        if row.dtype == "host":
            continue
        if row.dtype != "elementwise":
            assert slack >= row.flops / card.peak_flops_per_s[row.dtype], row
        if row.bytes / row.count > card.cache_bytes:
            assert slack >= row.bytes / card.memory_bytes_per_s, row


@settings(max_examples=examples(40), deadline=None)
@given(
    model=st.sampled_from(MODELS),
    gpu=st.sampled_from(OCTETS),
    batch=st.integers(1, 64),
    context=st.integers(1, 100_000),
)
def test_decode_reads_the_weights_once(model: str, gpu: str, batch: int, context: int) -> None:
    """A decode step is never quicker than its dense weights and KV through memory."""
    cost = priced(model, gpu, 8)
    padded, windowed = padded_sums([context] * batch, cost.context_tile, cost.window_tokens)
    step_s = cost.step_ns((), batch, padded, windowed, batch) / 1e9
    idle = cost.model.total_parameters - cost.model.active_parameters
    dense_bytes = cost.model.weight_bytes(8) - 2.0 * idle / 8
    if not cost.model.tied_embeddings:
        dense_bytes -= cost.model.embedding(8).weight_bytes
    assert step_s >= max(0.0, dense_bytes) / cost.gpu.memory_bytes_per_s


@settings(max_examples=examples(60), deadline=None)
@given(
    model=st.sampled_from(MODELS),
    gpu=st.sampled_from(OCTETS),
    contexts=st.lists(st.integers(1, 50_000), min_size=1, max_size=40),
    more=st.integers(1, 20_000),
)
def test_longer_contexts_and_prompts_never_cost_less(
    model: str, gpu: str, contexts: list[int], more: int
) -> None:
    """Attention alone depends on context, and grows with it; token-wise work stays."""
    cost = priced(model, gpu, 8)

    def step(sizes: list[int], past: int) -> int:
        padded, windowed = padded_sums(sizes, cost.context_tile, cost.window_tokens)
        return cost.step_ns(((64, past),), len(sizes), padded, windowed, len(sizes) + 1)

    base = step(contexts, 100)
    assert step([size + more for size in contexts], 100) >= base
    assert step(contexts, 100 + more) >= base


@pytest.mark.parametrize("gpu", gpu_names())
def test_skew_costs_nothing(gpu: str) -> None:
    """Decode costs what the sum of contexts costs, whoever holds it."""
    cost = priced("llama-3.1-8b", gpu, 1)
    even = cost.explain(contexts=[4096] * 8).seconds
    skewed = cost.explain(contexts=[128] * 7 + [4096 * 8 - 128 * 7]).seconds
    assert even == pytest.approx(skewed)
