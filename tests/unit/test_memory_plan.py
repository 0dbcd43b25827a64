"""KV blocks against real engine logs, what does not fit and what would, windows and state."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from llmsim.core.errors import InputError, ModelDoesNotFitError
from llmsim.core.units import GIB
from llmsim.costmodel import plan_memory
from llmsim.scenario.costs import Roofline, held_model
from llmsim.scenario.engine import Engine
from llmsim.specs import EngineLimits, ParallelPlan, load_gpu, load_model

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CONFIGS = SHARED / "models"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
H100 = load_gpu("h100-sxm")
LOGGED = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b-hf",
    "mistralai/Mistral-Nemo-Instruct-2407": "mistral-nemo-instruct-2407",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b-instruct",
    "01-ai/Yi-34B": "yi-34b",
    "codellama/CodeLlama-34b-Instruct-hf": "codellama-34b-instruct-hf",
}


@needs_shared
def test_blocks_that_vllm_found() -> None:
    seen = 0
    table = (SHARED / "ground_truth" / "kv_memory.csv").read_text().splitlines()
    for row in csv.DictReader(table):
        if row["model"] not in LOGGED or not row["num_gpu_blocks"]:
            continue
        found = plan_memory(
            load_model(str(CONFIGS / f"{LOGGED[row['model']]}.config.json")),
            H100,
            ParallelPlan(int(row["tp"])),
            EngineLimits(
                max_num_seqs=int(row["max_num_seqs"]),
                max_num_batched_tokens=int(row["max_num_batched_tokens"]),
                max_model_len=int(row["max_model_len"]),
                block_tokens=int(row["block_size"]),
            ),
            gpu_memory_utilization_frac=float(row["gpu_memory_utilization"]),
        )
        assert found.kv_blocks == pytest.approx(int(row["num_gpu_blocks"]), rel=0.03)
        seen += 1
    assert seen >= 8


def test_activations_lie_outside_a_static_share() -> None:
    """SGLang starts Qwen3-32B in 16 bits on one H100; with activations inside it would not fit."""
    model = load_model("qwen3-32b")
    limits = EngineLimits(max_num_seqs=2048, max_model_len=1352, block_tokens=1)
    with pytest.raises(ModelDoesNotFitError, match="too large"):
        plan_memory(model, H100, None, limits, 0.83)
    static = replace(limits, static_memory=True)
    found = plan_memory(model, H100, None, static, 0.83)
    assert found.activation_bytes == 0.0
    free = 0.83 * H100.memory_bytes - found.weights_bytes - found.reserve_bytes
    assert found.kv_tokens == int(free // (2 * 64 * 8 * 128 * 2))  # layers, heads, width, 16 bits
    assert Engine(version="sglang-0.5").limits(model).static_memory
    assert not Engine().limits(model).static_memory


def test_parts_add_up() -> None:
    found = plan_memory(load_model("llama-3.1-8b"), H100)
    used = found.weights_bytes + found.activation_bytes + found.reserve_bytes + found.kv_bytes
    assert 0 <= found.budget_bytes - used < found.block_bytes
    assert found.weights_bytes / GIB == pytest.approx(14.96, abs=0.05)  # vLLM log: 14.99 GiB
    assert found.block_bytes == 16 * 131_072
    assert found.kv_tokens == found.kv_blocks * 16
    assert found.windowed == "none"
    fp8 = plan_memory(load_model("llama-3.1-8b"), H100, kv_dtype="fp8")
    assert fp8.kv_blocks == pytest.approx(2 * found.kv_blocks, abs=1)


def test_pin() -> None:
    pinned = plan_memory(load_model("llama-2-7b"), H100, kv_blocks=7463)
    assert (pinned.kv_blocks, pinned.pinned) == (7463, True)
    with pytest.raises(ModelDoesNotFitError):  # more than the GPU has
        plan_memory(load_model("llama-2-7b"), H100, kv_blocks=10_000)
    with pytest.raises(ModelDoesNotFitError):  # not one longest request
        plan_memory(load_model("llama-2-7b"), H100, kv_blocks=100)
    with pytest.raises(InputError, match="kv_blocks"):
        plan_memory(load_model("llama-2-7b"), H100, kv_blocks=0)
    with pytest.raises(InputError, match="gpu_memory_utilization_frac"):
        plan_memory(load_model("llama-2-7b"), H100, gpu_memory_utilization_frac=1.2)


def test_what_would_fit() -> None:
    with pytest.raises(ModelDoesNotFitError) as caught:
        plan_memory(load_model("llama-3.1-70b"), H100)
    text = str(caught.value)
    assert "65.7 GiB per GPU too large" in text
    assert "tp: 2 on h100-sxm" in text
    assert "at tp 1, a b200 or gb200 or mi300x" in text
    assert "fp8 weights" not in text  # 66 GiB and the rest do not fit 71 GiB
    plan_memory(load_model("llama-3.1-70b"), H100, ParallelPlan(2))
    plan_memory(load_model("llama-3.1-70b"), load_gpu("b200"))
    with pytest.raises(ModelDoesNotFitError, match="fp8 weights"):
        plan_memory(load_model("qwen3-32b"), load_gpu("l40s"))
    with pytest.raises(ModelDoesNotFitError, match=r"would make it fit|Would fit"):
        plan_memory(load_model("deepseek-v3"), load_gpu("l40s"))


def test_context_too_long_names_the_longest_that_fits() -> None:
    limits = EngineLimits(max_model_len=1_000_000)
    with pytest.raises(ModelDoesNotFitError) as caught:
        plan_memory(load_model("llama-3.1-8b"), H100, limits=limits)
    longest = int(str(caught.value).rsplit("max_model_len: ", 1)[1].rstrip("."))
    plan_memory(load_model("llama-3.1-8b"), H100, limits=EngineLimits(max_model_len=longest))
    over = EngineLimits(max_model_len=longest + 16)
    with pytest.raises(ModelDoesNotFitError):
        plan_memory(load_model("llama-3.1-8b"), H100, limits=over)


@needs_shared
def test_windowed_layers_take_the_better_safe_count() -> None:
    model = load_model(str(CONFIGS / "openai--gpt-oss-20b_config.json"))
    many = plan_memory(model, H100)
    assert many.windowed == "per request"
    per_token = model.kv_bytes_per_token()
    assert many.kv_bytes_per_token == per_token / 2  # half of the layers are windowed
    assert many.sequence_bytes == per_token / 2 * (128 + 16)
    short = EngineLimits(max_model_len=128, max_num_seqs=4096)
    tight = plan_memory(model, load_gpu("l40s"), limits=short)
    fixed = tight.weights_bytes + tight.activation_bytes + tight.reserve_bytes
    assert fixed + tight.sequence_reserve_bytes + tight.kv_bytes <= tight.budget_bytes


@needs_shared
def test_recurrent_state_is_set_aside_per_request() -> None:
    model = load_model(str(CONFIGS / "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16_config.json"))
    found = plan_memory(model, load_gpu("h200-sxm"), limits=EngineLimits(max_num_seqs=100))
    # 23 Mamba layers of 64 heads x 64 x 128 in fp32, and three tokens of 6,144 channels in bf16
    state = 23 * (64 * 64 * 128 * 4 + 3 * 6144 * 2)
    assert found.sequence_bytes == state
    assert found.sequence_reserve_bytes == 100 * state


def test_layout_is_checked_first() -> None:
    with pytest.raises(InputError, match="tp"):
        plan_memory(load_model("llama-3.1-8b"), H100, ParallelPlan(6))


def test_windows_that_do_not_fit_per_request_are_counted_in_blocks() -> None:
    model = load_model("mistral-7b")  # every layer is windowed: contexts take nothing more
    limits = EngineLimits(1024, 8192, 4096, 16)
    found = plan_memory(model, load_gpu("h100-sxm"), None, limits, 0.9)
    assert found.windowed == "in blocks"
    assert 1_000 < found.kv_blocks < 2**31
    few = plan_memory(model, load_gpu("h100-sxm"), None, EngineLimits(8, 8192, 4096, 16), 0.9)
    assert few.windowed == "per request"


@pytest.mark.parametrize(
    ("kv_blocks", "said"),
    [
        (2000, "kv_blocks 2000 hold 32000 tokens, less than one request of max_model_len 131072"),
        (10**6, "kv_blocks 1000000 do not fit beside the weights: at most"),
    ],
)
def test_pinned_blocks_that_cannot_be_are_told_apart(kv_blocks, said):
    with pytest.raises(ModelDoesNotFitError, match=said):
        plan_memory(
            load_model("llama-3.1-8b"),
            load_gpu("h100-sxm"),
            limits=EngineLimits(max_model_len=131072),
            kv_blocks=kv_blocks,
        )


@pytest.mark.parametrize(
    ("expert_kernel", "logged_gib"),
    [
        ("marlin", 65.9651),  # vLLM 0.10, one H100: vllm-project/vllm issue 23278
        (None, 64.38),  # vLLM 0.14.1, Triton, one H100: issue 33155
    ],
)
def test_experts_are_held_with_the_padding_of_their_kernel(expert_kernel, logged_gib) -> None:
    kernels = Roofline(expert_kernel=expert_kernel)
    model = held_model(kernels, load_model("gpt-oss-120b"))
    limits = EngineLimits(max_num_batched_tokens=1024, max_model_len=8192)
    plan = plan_memory(model, H100, limits=limits)
    assert plan.weights_bytes / GIB == pytest.approx(logged_gib, rel=0.005)
    assert plan.weights_bytes > 1.05 * model.weight_bytes()
    # of two GPUs each has half of the experts, whole ones
    apart = plan_memory(model, H100, ParallelPlan(2, ep=2), limits)
    assert apart.weights_bytes == pytest.approx(plan.weights_bytes / 2, rel=0.04)
