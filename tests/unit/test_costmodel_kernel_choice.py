"""Kernels by choice: norms inside all-reduces, and experts by Marlin."""

from __future__ import annotations

import numpy as np
import pytest

from llmsim.costmodel import RooflineCost
from llmsim.costmodel.operators import Floats, gemm, moe_family, routed_experts
from llmsim.scenario.costs import Placement, Roofline
from llmsim.specs import (
    MXFP4_MARLIN,
    EngineLimits,
    GpuCard,
    Linear,
    ModelSpec,
    MoeMlp,
    ParallelPlan,
    WeightFormat,
    by_marlin,
    by_triton,
    load_engine,
    load_gpu,
    load_link,
    load_model,
)


def gpu_s_and_names(tp: int, fused: bool) -> tuple[float, list[str]]:
    card = load_gpu("b200")
    cost = RooflineCost(
        load_model("llama-3.1-8b"),
        card,
        load_link(card.link),
        ParallelPlan(tp),
        fused_norm=fused,
    )
    found = cost.explain(contexts=[1024] * 4)
    return found.gpu_s, [row.name for row in found.rows]


def test_a_fused_norm_leaves_the_step() -> None:
    apart_s, names = gpu_s_and_names(2, False)
    fused_s, fewer = gpu_s_and_names(2, True)
    assert set(names) - set(fewer) == {"norm"}
    # 32 layers, two norms each, at the floor of a small kernel.
    floor_s = load_gpu("b200").kernels.elementwise_floor_s
    assert apart_s - fused_s == pytest.approx(64 * floor_s)


def test_one_gpu_has_no_all_reduce_to_fuse_with() -> None:
    assert gpu_s_and_names(1, True) == gpu_s_and_names(1, False)


def test_engines_say_whether_they_fuse() -> None:
    assert load_engine("trtllm-1.2").fused_norm
    assert not load_engine("vllm-0.14").fused_norm
    assert load_engine("vllm-0.20").fused_norm  # on by default since 0.17


def norm_s(tokens: int, card: str = "h100-sxm", tp: int = 8) -> float:
    gpu = load_gpu(card)
    cost = RooflineCost(
        load_model("llama-3.1-8b"), gpu, load_link(gpu.link), ParallelPlan(tp), fused_norm=True
    )
    tables = cost.token_operators(np.array([float(tokens)]))
    return sum(float(each.seconds[0]) for each in tables if each.name == "norm")


def test_only_small_all_reduces_do_the_norm() -> None:
    # 8 GPUs of Hopper: up to half a MiB of 16-bit activations, 4,096 wide.
    assert norm_s(64) == 0.0
    assert norm_s(65) > 0.0
    assert norm_s(256, tp=4) == 0.0
    assert norm_s(257, tp=4) > 0.0


def test_other_architectures_do_not_fuse() -> None:
    assert norm_s(1, "a100-80gb-sxm") > 0.0
    assert norm_s(1, "b300") == 0.0


def test_a_scenario_says_otherwise_than_its_engine() -> None:
    model, gpu = load_model("llama-3.1-8b"), load_gpu("b200")
    place = Placement(model, gpu, ParallelPlan(4), EngineLimits())
    assert not Roofline().placed(place).fused_norm
    assert Roofline(fused_norm=True).placed(place).fused_norm


def test_experts_by_marlin_cost_what_marlin_costs() -> None:
    """gpt-oss on H200: Marlin's products are half as fast as Triton's, its reads faster."""
    gpu, model = load_gpu("h200-sxm"), load_model("gpt-oss-120b")
    tokens = np.array([8.0, 8192.0])
    few, many = (
        seconds
        for seconds in experts_s(by_marlin(model), gpu, tokens) / experts_s(model, gpu, tokens)
    )
    assert few < 1.0
    assert 1.5 < many < 3.0
    sizes = [part.weight_bytes for part in model.layers[0].linears(model.hidden, 1)]
    marlin = by_marlin(model)
    assert sizes == [part.weight_bytes for part in marlin.layers[0].linears(marlin.hidden, 1)]
    assert by_marlin(load_model("qwen3-30b-a3b")) == load_model("qwen3-30b-a3b")


def test_marlin_is_slower_with_scales_per_32_weights_than_with_integers() -> None:
    """As on the two GPUs where both were measured, whose kernels stand in their own files."""
    ratios = []
    for name in ("l40s", "rtx-pro-6000"):
        moe = load_gpu(name).kernels.moe
        ratios.append(moe["mxfp4"].roofline.compute_frac / moe["w4a16"].roofline.compute_frac)
    hopper = load_gpu("h200-sxm").kernels.moe
    share = hopper["mxfp4_marlin"].roofline.compute_frac / hopper["w4a16"].roofline.compute_frac
    assert share == pytest.approx((ratios[0] * ratios[1]) ** 0.5, abs=0.005)
    model = load_model("gpt-oss-120b")
    (experts,) = {layer.mlp.format.name for layer in by_marlin(model).layers}
    assert moe_family(by_marlin(model).layers[0].mlp.format, load_gpu("h200-sxm")) == (
        "mxfp4_marlin",
        "bf16",
    )
    assert experts == MXFP4_MARLIN


def test_a_router_of_32_bits_has_no_tensor_cores() -> None:
    """MiniMax's router in vLLM: 8,192 tokens, 3,072 x 256, at the vector peak of 67 TFLOP/s."""
    gpu, model = load_gpu("h200-sxm"), load_model("minimax-m2.5")
    tables = RooflineCost(model, gpu).token_operators(np.array([8192.0]))
    router = next(each for each in tables if each.name == "router")
    assert router.dtype == "fp32"
    assert router.seconds[0] > 2 * 8192 * 3072 * 256 / 6.7e13
    assert router.seconds[0] < 2 * 2 * 8192 * 3072 * 256 / 6.7e13
    linears = model.layers[0].linears(model.hidden, 1)
    assert next(part for part in linears if part.name == "router").weight_bytes == 4 * 3072 * 256


def test_a_router_of_32_bits_takes_what_cublas_took() -> None:
    """13.6 us for 2 tokens through 6,144 x 128 (vLLM pull request 44343)."""
    router = Linear("router", 128, 6144, WeightFormat("fp32", 4.0, "fp32"))
    for name in ("h200-sxm", "b200"):
        (seconds,) = gemm(router, 1, np.array([2.0]), load_gpu(name)).seconds
        assert seconds == pytest.approx(13.6e-6, rel=0.05)


@pytest.mark.parametrize(
    ("name", "tp", "share"),
    [
        ("b200", 1, 3072 * 3072 / (2880 * 2880)),
        ("b200", 4, 3072 * 768 / (2880 * 720)),
        ("b200", 8, 3072 * 512 / (2880 * 360)),
        ("h200-sxm", 8, 1.0),  # Triton's experts take any width
    ],
)
def test_mxfp4_experts_are_padded_to_the_tiles_of_their_kernel(name, tp, share) -> None:
    """gpt-oss has 2,880 channels twice."""
    assert read_bytes(load_model("gpt-oss-120b"), name, tp) == pytest.approx(share, rel=1e-6)


def test_experts_of_tensorrt_llm_are_its_own() -> None:
    """Rows of whole experts, one token of gpt-oss: 25.3 us on B200, 78.7 on H200 (1.3.0rc20)."""
    for name, measured_s, rel in (("b200", 25.3e-6, 0.05), ("h200-sxm", 78.7e-6, 0.15)):
        moe = next(layer.mlp for layer in load_model("gpt-oss-120b").layers)
        assert isinstance(moe, MoeMlp)
        gpu, one = load_gpu(name, engine="trtllm"), np.array([1.0])
        (seconds,) = routed_experts(moe, 1, 2880, ParallelPlan(1), one, gpu).seconds
        assert seconds == pytest.approx(measured_s, rel=rel)
    terms = load_gpu("b200", engine="trtllm").kernels.moe["mxfp4_fp8"]
    assert terms.padded_share(2880, 360) == 3072 * 384 / (2880 * 360)


def test_marlin_pads_mxfp4_and_takes_integers_as_they_are() -> None:
    padded = read_bytes(by_marlin(load_model("gpt-oss-120b")), "h200-sxm", 8)
    assert padded == pytest.approx(3072 * 384 / (2880 * 360), rel=1e-6)
    assert read_bytes(by_marlin(load_model("kimi-k2.5")), "h200-sxm", 8) == pytest.approx(
        1.0, rel=1e-6
    )


def read_bytes(model: ModelSpec, name: str, tp: int) -> float:
    """Bytes of the experts that one token reads, over those of the checkpoint's matrices."""
    moe = next(layer.mlp for layer in model.layers if isinstance(layer.mlp, MoeMlp))
    table = routed_experts(moe, 1, model.hidden, ParallelPlan(tp), np.array([1.0]), load_gpu(name))
    whole = sum(part.weight_bytes for part in moe.expert_linears(model.hidden, tp))
    own = 2.0 * moe.active_experts * (2 * model.hidden + 3 * moe.intermediate // tp)
    return float(table.bytes[0] - own) / (whole * moe.active_experts / moe.experts)


def test_popular_experts_are_read_once_for_many_tokens() -> None:
    place = Placement(load_model("minimax-m2.5"), load_gpu("b200"), ParallelPlan(2), EngineLimits())
    gpu, tokens = place.gpu, np.array([1.0, 32.0])
    even, skewed = (
        experts_s(Roofline(expert_skew=skew).placed(place).model, gpu, tokens)
        for skew in (0.0, 0.69)
    )
    assert skewed[0] == pytest.approx(even[0])
    assert 0.75 < skewed[1] / even[1] < 0.9


def experts_s(model: ModelSpec, gpu: GpuCard, tokens: Floats) -> Floats:
    tables = RooflineCost(model, gpu).token_operators(tokens)
    return sum((each.seconds for each in tables if each.name == "experts"), 0.0 * tokens)


def test_experts_in_blocks_by_triton_cost_what_triton_costs_where_others_are_usual() -> None:
    """MiniMax on two B200: rows of both take 66 and 61 us for 4 tokens, 2,643 and 1,535 for 8,192.

    (aiconfigurator_core 0.12.0, load as a power law of 1.01: vLLM 0.22 and 0.24, split by two.)
    """
    model, plan = load_model("minimax-m2.5"), ParallelPlan(tp=2)
    gpu, tokens = load_gpu("b200"), np.array([4.0, 8192.0])
    usual, triton = (
        routed_experts(layer.mlp, 1, model.hidden, plan, tokens, gpu).seconds
        for layer in (model.layers[0], by_triton(model).layers[0])
        if isinstance(layer.mlp, MoeMlp)
    )
    assert 1.0 < triton[0] / usual[0] < 1.4
    assert triton[1] / usual[1] == pytest.approx(2643 / 1535, rel=0.1)
    hopper = load_gpu("h200-sxm")
    form = by_triton(model).layers[0].mlp.format
    assert moe_family(form, hopper) == moe_family(model.layers[0].mlp.format, hopper)
    assert by_triton(by_triton(model)) == by_triton(model)
    assert by_triton(load_model("gpt-oss-120b")) == load_model("gpt-oss-120b")
