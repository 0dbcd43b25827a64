"""The step price: worked example, exactness of the decode line, explanation, laws of shape."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llmsim.core.errors import InputError
from llmsim.costmodel import RooflineCost, StepCost, padded_sums
from llmsim.costmodel.popularity import experts_hit
from llmsim.specs import (
    EngineLimits,
    HostTerms,
    ParallelPlan,
    load_gpu,
    load_link,
    load_model,
)

CONFIGS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="shared configs are not here")


@cache
def priced(
    model: str = "llama-3.1-8b",
    gpu: str = "h200-sxm",
    tp: int = 1,
    lookahead: int = 1,
    host_ms: float = 0.13,
    graphs: bool = True,
) -> RooflineCost:
    card = load_gpu(gpu)
    return RooflineCost(
        load_model(model if "/" not in model else str(CONFIGS / Path(model).name)),
        card,
        load_link(card.link),
        ParallelPlan(tp),
        EngineLimits(cuda_graphs=graphs),
        lookahead=lookahead,
        host=HostTerms(base_s=host_ms / 1e3),
    )


def even(cost: RooflineCost, batch: int, context: int) -> tuple[int, int]:
    return padded_sums([context] * batch, cost.context_tile, cost.window_tokens)


@pytest.mark.parametrize(
    ("batch", "context", "published_ms"),
    [(1, 1024, 5.1), (64, 1024, 7.3), (64, 4096, 13.4), (256, 1024, 15.0)],
)
def test_worked_example(batch: int, context: int, published_ms: float) -> None:
    """Sum of measured operators, Llama-3.1-8B bf16 on H200 (aiconfigurator tables, 095f58a51)."""
    gpu_s = priced().explain(contexts=[context] * batch).gpu_s
    assert gpu_s * 1e3 == pytest.approx(published_ms, rel=0.15)


@pytest.mark.parametrize(("lookahead", "host_ms"), [(1, 0.13), (0, 0.13), (1, 8.0), (0, 8.0)])
@pytest.mark.parametrize("batch", [1, 7, 64, 256, 300])
def test_step_equals_line(batch: int, lookahead: int, host_ms: float) -> None:
    cost: StepCost = priced(lookahead=lookahead, host_ms=host_ms)
    for context in (1, 128, 129, 1000, 4096, 100_000):
        padded = batch * (-(-context // 128) * 128)
        line = cost.decode_line(batch, padded)
        assert padded <= line.until_tokens
        expected = line.base_ns + line.per_token_ns * padded + line.per_windowed_ns * 0
        assert cost.step_ns((), batch, padded, 0, batch) == max(1, round(expected))


def test_asynchronous_step_is_a_maximum_with_one_knot() -> None:
    cost = priced(host_ms=8.0)
    batch = 64
    low = cost.decode_line(batch, 0)
    assert low.per_token_ns == 0.0
    assert low.base_ns == pytest.approx((8e-3 + 4e-6 * batch) * 1e9)
    high = cost.decode_line(batch, low.until_tokens + 1)
    assert high.base_ns + high.per_token_ns * low.until_tokens <= low.base_ns
    assert high.base_ns + high.per_token_ns * (low.until_tokens + 1) > low.base_ns
    alone = priced(host_ms=0.0)
    for padded in (low.until_tokens - 10**5, low.until_tokens + 10**5):
        gpu_ns = alone.step_ns((), batch, padded, 0, batch)
        host_ns = low.base_ns
        assert cost.step_ns((), batch, padded, 0, batch) == max(gpu_ns, round(host_ns))


def test_synchronous_step_is_a_sum() -> None:
    waiting, bare = priced(lookahead=0, host_ms=8.0), priced(lookahead=0, host_ms=0.0)
    for chunks in ((), ((700, 300),)):
        args = (chunks, 32, 32 * 1024, 0, 32)
        assert waiting.step_ns(*args) - bare.step_ns(*args) == pytest.approx(8e6, abs=2)


def test_eager_launches_bound_small_steps() -> None:
    graph, eager = priced(lookahead=0), priced(lookahead=0, graphs=False, model="qwen3-32b")
    assert eager.step_ns((), 1, 128, 0, 1) >= 64 * 32e3  # 64 layers of 32 us
    # sizes beyond the largest graph lose it: gpt-like launch floor shows up beside the GPU
    assert graph.host_ns(512, 512, 0)[1] == 0.0
    assert graph.host_ns(513, 513, 0)[1] == pytest.approx(32 * 32e3)


def test_graph_padding_is_paid() -> None:
    graph, exact = priced(host_ms=0.0), priced(host_ms=0.0, graphs=False)
    for batch, size in ((3, 4), (9, 16), (250, 256), (257, 272)):
        base = graph._token_ns[batch]
        assert base == graph._token_ns[size]
        assert base >= exact._token_ns[batch]
    assert graph._token_ns[513] == exact._token_ns[513]


CASES = [
    ((), [1024] * 64),
    (((2048, 0),), []),
    (((512, 4096), (100, 0)), [300, 9000, 20_000]),
]


@pytest.mark.parametrize(("chunks", "contexts"), CASES)
@pytest.mark.parametrize(
    ("model", "tp"),
    [
        ("llama-3.1-8b", 1),
        ("llama-3.1-70b", 4),
        ("mixtral-8x7b", 2),
        ("deepseek-v3", 8),
        pytest.param("x/openai--gpt-oss-120b_config.json", 1, marks=needs_configs),
        pytest.param("x/deepseek-ai--DeepSeek-V3.2_config.json", 8, marks=needs_configs),
        pytest.param("x/Qwen--Qwen3.5-397B-A17B_config.json", 8, marks=needs_configs),
        pytest.param("x/nvidia--Nemotron-H-56B-Base-8K_config.json", 2, marks=needs_configs),
    ],
)
def test_explanation_adds_up(
    model: str, tp: int, chunks: tuple[tuple[int, int], ...], contexts: list[int]
) -> None:
    cost = priced(model, tp=tp)
    parts = cost.explain(chunks, contexts)
    padded, windowed = padded_sums(contexts, cost.context_tile, cost.window_tokens)
    rows = len(contexts) + len(chunks)
    step_ns = cost.step_ns(chunks, len(contexts), padded, windowed, rows)
    assert sum(row.seconds for row in parts.rows) == pytest.approx(parts.seconds, rel=1e-12)
    assert parts.seconds * 1e9 == pytest.approx(step_ns, rel=1e-8, abs=1)
    assert sum(row.share_frac for row in parts.rows) == pytest.approx(1.0)
    assert all(row.seconds > 0 for row in parts.rows)
    bounds = {row.bound for row in parts.rows}
    assert bounds <= {"compute", "memory", "latency", "network", "host"}
    names = {row.name for row in parts.rows}
    assert ("all-reduce" in names) == (tp > 1)


def test_bounds_of_a_dense_model() -> None:
    """Llama-2-7B: linears are memory-bound in decode at batch 1, compute-bound in prefill."""
    cost = priced("llama-2-7b", "a100-80gb-sxm")
    decode = {row.name: row.bound for row in cost.explain(contexts=[1024]).rows}
    prefill = {row.name: row.bound for row in cost.explain([(2048, 0)]).rows}
    assert {decode[name] for name in ("gate_up", "down", "qkv")} == {"memory"}
    assert {prefill[name] for name in ("gate_up", "down", "qkv")} == {"compute"}
    many = {row.name: row.bound for row in cost.explain(contexts=[4096] * 128).rows}
    assert many["attention decode"] == "memory"


def test_flops_of_a_prefill() -> None:
    """2 FLOP per weight and token, 4 h d per query-key pair."""
    cost = priced()
    rows = {row.name: row for row in cost.explain([(1000, 500)], logits=1).rows}
    linears = sum(rows[name].flops for name in ("qkv", "o", "gate_up", "down"))
    model = cost.model
    weights = model.total_parameters - 2 * model.head().parameters
    assert linears == pytest.approx(2.0 * weights * 1000)
    pairs = sum(500 + i for i in range(1, 1001))
    assert rows["attention prefill"].flops == pytest.approx(32 * 4 * 32 * 128 * pairs)
    assert rows["lm_head"].flops == 2.0 * model.head().parameters


def test_chunked_prefill_is_additive() -> None:
    """Query-key pairs of chunks add up to those of the whole prompt."""
    cost = priced()
    whole = cost.chunk_sums([(4096, 0)])
    parts = [cost.chunk_sums([(1024, past)]) for past in range(0, 4096, 1024)]
    assert sum(part.pairs for part in parts) == whole.pairs
    split_ns = sum(cost.step_ns(((1024, past),), 0, 0, 0, 0) for past in range(0, 4096, 1024))
    assert 1.0 < split_ns / cost.step_ns(((4096, 0),), 0, 0, 0, 0) < 1.15


@needs_configs
def test_window_clips_prefill_pairs_and_decode() -> None:
    cost = priced("x/openai--gpt-oss-120b_config.json")
    assert cost.window_tokens == 128
    for new, past in ((50, 0), (50, 100), (300, 0), (300, 1000), (1, 128), (128, 0)):
        sums = cost.chunk_sums([(new, past)])
        clipped = sum(min(128, past + i) for i in range(1, new + 1))
        assert sums.clipped_pairs == clipped
        assert sums.pairs == sum(past + i for i in range(1, new + 1))
    rows = {row.name: row for row in cost.explain(contexts=[8192] * 64).rows}
    assert rows["attention (window) decode"].seconds < 0.2 * rows["attention decode"].seconds
    line = cost.decode_line(64, 64 * 8192)
    assert line.per_windowed_ns == pytest.approx(line.per_token_ns)  # 18 layers of each


@needs_configs
def test_knot_with_a_window_is_exact_for_equal_contexts() -> None:
    cost = RooflineCost(
        load_model(str(CONFIGS / "openai--gpt-oss-20b_config.json")),
        load_gpu("h100-sxm"),
        host=HostTerms(base_s=9e-3),
    )
    bare = RooflineCost(cost.model, cost.gpu, host=HostTerms(0.0, 0.0, 0.0))
    batch = 32
    seen = set()
    for context in range(128, 60_000, 1280):
        padded, windowed = even(cost, batch, context)
        line = cost.decode_line(batch, padded)
        seen.add(line.per_token_ns > 0)
        gpu_ns = bare.step_ns((), batch, padded, windowed, batch)
        host_ns = round((9e-3 + batch * 4e-6) * 1e9)
        assert cost.step_ns((), batch, padded, windowed, batch) == max(gpu_ns, host_ns)
    assert seen == {True, False}


def test_expected_experts() -> None:
    """256 experts, 8 active: 12% hit at 4 tokens, 40% at 16, 64% at 32, 87% at 64, 98% at 128."""
    share = experts_hit(256, 8, np.array([4.0, 16.0, 32.0, 64.0, 128.0])) / 256
    assert share.tolist() == pytest.approx([0.12, 0.40, 0.64, 0.87, 0.98], abs=0.01)


def test_tensor_parallel_pays_for_communication() -> None:
    one, four = priced("llama-3.1-8b"), priced("llama-3.1-8b", tp=4)
    args = (((8192, 0),), 0, 0, 0, 1)
    assert one.step_ns(*args) / 4 < four.step_ns(*args) < one.step_ns(*args)
    # batch 1 on PCIe: two all-reduces a layer cost more than they save at this size
    assert priced("llama-2-7b", "l40s", tp=8).explain(contexts=[128]).gpu_s > 0.0
    with pytest.raises(InputError, match="does not divide the 32 attention heads"):
        RooflineCost(load_model("llama-2-7b"), load_gpu("h100-sxm"), plan=ParallelPlan(3))
    with pytest.raises(InputError, match="link"):
        RooflineCost(load_model("llama-2-7b"), load_gpu("h100-sxm"), plan=ParallelPlan(2))
    with pytest.raises(InputError, match="a node of l40s has 8"):
        RooflineCost(load_model("llama-2-7b"), load_gpu("l40s"), plan=ParallelPlan(16))


def test_fused_mixed_launch_slows_decode() -> None:
    """FA2 unpacks the GQA group beside prefill: decode then costs 1 + 0.25 (g - 1) times."""
    cost = priced("llama-3.1-8b", "a100-80gb-sxm")
    alone = {row.name: row for row in cost.explain(contexts=[4096] * 64).rows}["attention decode"]
    mixed = {row.name: row for row in cost.explain([(128, 0)], [4096] * 64).rows}
    t0 = 32 * cost.gpu.kernels.decode_attention["bf16"].roofline.t0_s
    expected = 1.75 * (alone.seconds - t0)
    assert mixed["attention decode"].seconds == pytest.approx(expected)


def test_sizes_beyond_the_limits_are_priced_alike() -> None:
    small = RooflineCost(
        load_model("llama-3.1-8b"),
        load_gpu("h200-sxm"),
        limits=EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, max_graph_tokens=1),
    )
    large = RooflineCost(
        load_model("llama-3.1-8b"), load_gpu("h200-sxm"), limits=EngineLimits(max_graph_tokens=1)
    )
    for chunks in ((), ((5000, 0),)):
        args = (chunks, 100, 100 * 1024, 0, 100)
        assert small.step_ns(*args) == large.step_ns(*args)


def test_formats_the_chip_lacks_are_reported() -> None:
    cost = RooflineCost(
        load_model("deepseek-v3"),
        load_gpu("a100-80gb-sxm"),
        load_link("nvlink3"),
        ParallelPlan(8),
    )
    assert any("a100-80gb-sxm has no fp8 products" in note for note in cost.warnings())
    assert not any("unpacked" in note for note in priced("deepseek-v3", tp=8).warnings())
