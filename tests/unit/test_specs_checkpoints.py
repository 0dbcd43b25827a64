"""Model classes and checkpoint formats: totals of published models, quantised parts, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmsim.core.errors import CardError
from llmsim.specs import (
    DenseMlp,
    LatentAttention,
    ModelSpec,
    RecurrentMixer,
    SoftmaxAttention,
    load_model,
)

CONFIGS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="shared configs are not here")


def standard(
    hidden: int, layers: int, heads: int, kv: int, wide: int, vocab: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": wide,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
    }


def gpt(hidden: int, layers: int, heads: int, vocab: int) -> dict[str, Any]:
    return {
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
    }


# (model_type, keys of its config, published total, where it is published)
CLASSES: list[tuple[str, dict[str, Any], float, str]] = [
    ("gpt2", gpt(1600, 48, 25, 50257), 1.5576e9, "huggingface.co/openai-community/gpt2-xl"),
    (
        "gpt_bigcode",
        {**gpt(6144, 40, 48, 49152), "n_inner": 24576, "multi_query": True},
        15.5e9,
        "huggingface.co/bigcode/starcoder",
    ),
    (
        "gpt_neox",
        standard(6144, 44, 64, 64, 24576, 50432),
        20_554_567_680,
        "huggingface.co/EleutherAI/gpt-neox-20b",
    ),
    (
        "gemma2",
        {**standard(3584, 42, 16, 8, 14336, 256000), "head_dim": 256, "sliding_window": 4096},
        9.24e9,
        "huggingface.co/google/gemma-2-9b, safetensors",
    ),
    ("phi", standard(2560, 32, 32, 32, 10240, 51200), 2.78e9, "huggingface.co/microsoft/phi-2"),
    (
        "olmoe",
        {
            **standard(2048, 16, 16, 16, 1024, 50304),
            "num_experts": 64,
            "num_experts_per_tok": 8,
        },
        6.92e9,
        "huggingface.co/allenai/OLMoE-1B-7B-0924",
    ),
    (
        "glm4_moe",
        {
            **standard(4096, 46, 96, 8, 10944, 151552),
            "head_dim": 128,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
        106e9,
        "huggingface.co/zai-org/GLM-4.5-Air: 106 B total",
    ),
    (
        "qwen3_next",
        {
            **standard(2048, 48, 16, 2, 5120, 151936),
            "head_dim": 256,
            "moe_intermediate_size": 512,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "shared_expert_intermediate_size": 512,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        },
        80e9,
        "huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct",
    ),
    (
        "jamba",
        {
            **standard(4096, 32, 32, 8, 14336, 65536),
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "mamba_expand": 2,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_dt_rank": 256,
        },
        51.6e9,
        "huggingface.co/ai21labs/Jamba-v0.1, safetensors",
    ),
    (
        "bamba",
        {
            **standard(4096, 32, 32, 8, 14336, 128256),
            "attn_layer_indices": [9, 18, 27],
            "mamba_n_heads": 128,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
        },
        9.78e9,
        "huggingface.co/ibm-ai-platform/Bamba-9B, safetensors",
    ),
]


def write(folder: Path, config: dict[str, Any], beside: dict[str, Any] | None = None) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    return str(folder / "config.json")


@pytest.mark.parametrize(("kind", "keys", "total", "source"), CLASSES)
def test_class_matches_published_total(
    tmp_path: Path, kind: str, keys: dict[str, Any], total: float, source: str
) -> None:
    assert source
    model = load_model(write(tmp_path, {"model_type": kind, **keys}))
    assert model.total_parameters == pytest.approx(total, rel=0.01)
    assert model.warnings == ()


def kinds(model: ModelSpec, part: type) -> int:
    return sum(layer.count for layer in model.layers if isinstance(layer.mixer, part))


def test_hybrids_have_their_mixers(tmp_path: Path) -> None:
    found = {}
    for kind, keys, _, _ in CLASSES:
        model = load_model(write(tmp_path, {"model_type": kind, **keys}))
        found[kind] = (kinds(model, RecurrentMixer), kinds(model, SoftmaxAttention))
    assert found["qwen3_next"] == (36, 12)
    assert found["jamba"] == (28, 4)
    assert found["bamba"] == (29, 3)
    assert found["gemma2"] == (0, 42)


def test_nemotron_writes_its_layers_in_two_ways(tmp_path: Path) -> None:
    state = {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
        "n_groups": 2,
        "conv_kernel": 4,
    }
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    base = {**standard(64, 4, 8, 4, 128, 100), **state, **experts, "model_type": "nemotron_h"}
    letters = load_model(write(tmp_path, {**base, "hybrid_override_pattern": "M*-E"}))
    words = {**base, "layers_block_type": ["mamba", "attention", "mlp", "moe"]}
    assert load_model(write(tmp_path, words)).layers == letters.layers
    assert letters.layer_count == 4
    for wrong in ({"hybrid_override_pattern": "M*-"}, {"hybrid_override_pattern": "M*-X"}):
        with pytest.raises(CardError, match="one letter per layer"):
            load_model(write(tmp_path, {**base, **wrong}))


TINY = {"model_type": "llama", **standard(64, 4, 8, 4, 128, 100)}


def test_falcon_counts_key_value_heads_its_own_way(tmp_path: Path) -> None:
    base = {**TINY, "model_type": "falcon", "num_key_value_heads": None}

    def heads(**more: Any) -> int:
        mixer = load_model(write(tmp_path, {**base, **more})).layers[0].mixer
        assert isinstance(mixer, SoftmaxAttention)
        return mixer.kv_heads

    assert heads(multi_query=True) == 1
    assert heads(multi_query=False) == 8
    assert heads(new_decoder_architecture=True, num_kv_heads=2) == 2


def test_layers_that_reuse_a_cache_have_none(tmp_path: Path) -> None:
    whole = load_model(write(tmp_path, TINY))
    half = load_model(write(tmp_path, {**TINY, "num_kv_shared_layers": 3}))
    assert half.kv_bytes_per_token() == whole.kv_bytes_per_token() / 4
    key_value = 2 * 4 * 8 * 64  # two projections of 4 heads of 8, from 64
    assert whole.total_parameters - half.total_parameters == 3 * key_value


def windows(model: ModelSpec) -> list[tuple[int, int]]:
    return [
        (layer.count, layer.mixer.window_tokens)
        for layer in model.layers
        if isinstance(layer.mixer, SoftmaxAttention)
    ]


def test_window_patterns(tmp_path: Path) -> None:
    every = {**TINY, "sliding_window": 32}
    assert windows(load_model(write(tmp_path, every))) == [(4, 32)]
    gemma = {**every, "model_type": "gemma2"}  # its class alternates, windowed layer first
    assert windows(load_model(write(tmp_path, gemma))) == [(2, 32), (2, 0)]
    letters = {**every, "model_type": "exaone4", "sliding_window_pattern": "LLLG"}
    assert windows(load_model(write(tmp_path, letters))) == [(3, 32), (1, 0)]
    qwen = {**every, "model_type": "qwen2"}  # its class uses the window only when told to
    assert windows(load_model(write(tmp_path, qwen))) == [(4, 0)]
    upper = {**qwen, "use_sliding_window": True, "max_window_layers": 3}
    assert windows(load_model(write(tmp_path, upper))) == [(3, 0), (1, 32)]
    llama4 = {**TINY, "model_type": "llama4_text", "attention_chunk_size": 16}
    assert windows(load_model(write(tmp_path, llama4))) == [(3, 16), (1, 0)]
    own = {**llama4, "no_rope_layers": [0, 1, 1, 0]}
    assert windows(load_model(write(tmp_path, own))) == [(2, 0), (2, 16)]


def test_several_windows_are_priced_as_the_widest_and_say_so(tmp_path: Path) -> None:
    types = ["sliding_attention", "chunked_attention", "full_attention", "full_attention"]
    more = {"layer_types": types, "sliding_window": 32, "attention_chunk_size": 48}
    model = load_model(write(tmp_path, {**TINY, **more}))
    assert model.window_tokens == 48
    assert any("windows of 32, 48" in note for note in model.warnings)


def test_nested_text_configs(tmp_path: Path) -> None:
    plain = load_model(write(tmp_path, TINY))
    for nest in ("text_config", "llm_config", "language_config"):
        outer = {"model_type": "seer", "vision_config": {"depth": 1}, nest: TINY}
        model = load_model(write(tmp_path, outer))
        assert model.layers == plain.layers
        assert any("other modalities" in note for note in model.warnings)
    omni = {"model_type": "omni", "thinker_config": {"model_type": "x", "text_config": TINY}}
    assert load_model(write(tmp_path, omni)).layers == plain.layers
    # a null inside does not hide what stands outside
    null: dict[str, Any] = {
        "tie_word_embeddings": True,
        "text_config": {**TINY, "tie_word_embeddings": None},
    }
    assert load_model(write(tmp_path, null)).tied_embeddings


def test_a_config_that_leaves_most_to_its_class(tmp_path: Path) -> None:
    # google/gemma-3-4b-it; the report (arXiv 2503.19786, table 1) counts 675 M embedding
    # parameters and 3,209 M others in the language part
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    outer = {"model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": {"depth": 1}}
    model = load_model(write(tmp_path, {**outer, "text_config": text}))
    assert model.total_parameters == pytest.approx(675e6 + 3209e6, rel=0.01)
    assert windows(model) == [(29, 1024), (5, 0)]
    assert model.max_context_tokens == 131_072


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for key, value in (
        ("attn_type_list", [1, 0, 1, 0]),
        ("block_configs", [{}]),
        ("linear_attn_config", {"kda_layers": [1]}),
    ):
        with pytest.raises(CardError, match=f"{key}: .* cannot be read yet"):
            load_model(write(tmp_path, {**TINY, key: value}))
    load_model(write(tmp_path, {**TINY, "attn_type_list": [1, 1, 1, 1]}))  # softmax alone


def test_all_missing_keys_of_all_layer_kinds_at_once(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "vocab_size": 100,
        "num_experts": 8,
        "torch_dtype": "bfloat16",
    }
    with pytest.raises(CardError) as caught:
        load_model(write(tmp_path, config))
    named = {fault.path for fault in caught.value.faults}
    assert {"hidden_size", "num_attention_heads", "linear_num_value_heads"} <= named
    assert {"linear_conv_kernel_dim", "moe_intermediate_size or intermediate_size"} <= named
    assert any(path.startswith("num_experts_per_tok or") for path in named)
    with pytest.raises(CardError, match="num_attention_heads: missing"):
        load_model(write(tmp_path, {"model_type": "llama"}))


def test_draft_layers_cost_what_deepseek_states() -> None:
    # README_WEIGHTS.md: 11.5 B unique parameters of the multi-token-prediction module
    assert load_model("deepseek-v3").draft_parameters == pytest.approx(11.5e9, rel=0.01)
    assert load_model("llama-3.1-8b").draft_parameters == 0


def quantised(tmp_path: Path, block: dict[str, Any] | None, beside: Any = None) -> ModelSpec:
    config = {**TINY, "quantization_config": block} if block else TINY
    return load_model(write(tmp_path, config, beside))


def formats(model: ModelSpec) -> list[tuple[str, float, str]]:
    layer = model.layers[0]
    assert isinstance(layer.mixer, SoftmaxAttention)
    assert isinstance(layer.mlp, DenseMlp)
    return [
        (form.name, form.bytes_per_weight, form.compute_dtype)
        for form in (layer.mixer.format, layer.mlp.format)
    ]


# (block, bytes per weight, dtype of the product)
BLOCKS: list[tuple[dict[str, Any], float, str]] = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128, "bf16"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64}, 0.5 + 2.5 / 64, "bf16"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0, "bf16"),
    ({"quant_method": "marlin", "group_size": 128}, 0.5 + 2.5 / 128, "bf16"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0, "fp8"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, 0.5625, "fp4"),
    ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, 1.0 + 4 / 128**2, "fp8"),
    ({"quant_method": "fp8", "weight_block_size": [64, 64]}, 1.0 + 4 / 64**2, "fp8"),
    ({"quant_method": "mxfp4"}, 0.53125, "bf16"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5625, "bf16"),
    (
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "fp4"}, "input_tensors": {"dtype": "fp4"}},
        },
        0.53125,
        "fp4",
    ),
    (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                    "input_activations": {"num_bits": 8, "type": "int"},
                }
            },
        },
        1.0,
        "int8",
    ),
]


@pytest.mark.parametrize(("block", "size", "dtype"), BLOCKS)
def test_quantisation_blocks(
    tmp_path: Path, block: dict[str, Any], size: float, dtype: str
) -> None:
    model = quantised(tmp_path, {**block, "ignore": ["lm_head"]})
    assert [form[1:] for form in formats(model)] == [(size, dtype)] * 2
    assert model.head_format.bytes_per_weight == 2.0


def test_mixed_precision_of_modelopt(tmp_path: Path) -> None:
    layers: dict[str, Any] = {
        f"model.layers.{i}.self_attn.q_proj": {"quant_algo": "FP8"} for i in range(4)
    }
    layers |= {
        f"model.layers.{i}.mlp.gate_proj": {"quant_algo": "NVFP4", "group_size": 16}
        for i in range(4)
    }
    block = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    beside = {"quantization": {**block, "kv_cache_quant_algo": "FP8"}}
    model = quantised(tmp_path, None, beside)
    assert [form[0] for form in formats(model)] == ["fp8", "nvfp4"]
    assert model.kv_dtype == "fp8"
    assert len(model.layers) == 1


def test_groups_of_compressed_tensors(tmp_path: Path) -> None:
    def group(targets: list[str], bits: int) -> dict[str, Any]:
        weights = {"num_bits": bits, "type": "int", "group_size": 128, "symmetric": True}
        return {"targets": targets, "weights": weights}

    groups = {"group_0": group(["re:.*self_attn.*"], 8), "group_1": group(["Linear"], 4)}
    block = {"quant_method": "compressed-tensors", "config_groups": groups}
    assert [form[0] for form in formats(quantised(tmp_path, block))] == ["int8", "int4"]


def test_unknown_quantisation_is_refused(tmp_path: Path) -> None:
    for block in (
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int3"}}},
        {"quant_method": "gptq", "bits": 3, "group_size": 128},
        {"quant_algo": "MIXED_PRECISION"},
        {"bits": 4},
    ):
        with pytest.raises(CardError, match="quantization_config"):
            quantised(tmp_path, block)


# (card, config of the same checkpoint)
SAME = [
    ("deepseek-v2-lite", "deepseek-v2-lite.config.json"),
    ("deepseek-v3", "deepseek-ai--DeepSeek-R1_config.json"),
    ("deepseek-v3.2", "deepseek-ai--DeepSeek-V3.2_config.json"),
    ("gemma-4-26b-a4b", "google--gemma-4-26B-A4B_config.json"),
    ("glm-5-nvfp4", "nvidia--GLM-5-NVFP4_config.json"),
    ("gpt-oss-120b", "openai--gpt-oss-120b_config.json"),
    ("kimi-k2.5", "moonshotai--Kimi-K2.5_config.json"),
    ("kimi-k2.5-nvfp4", "nvidia--Kimi-K2.5-NVFP4_config.json"),
    ("llama-3.1-70b-fp8", "nvidia--Llama-3.1-70B-Instruct-FP8_config.json"),
    ("llama-4-scout-17b-16e", "meta-llama--Llama-4-Scout-17B-16E-Instruct_config.json"),
    ("minimax-m2.5", "MiniMaxAI--MiniMax-M2.5_config.json"),
    ("minimax-m2.5-nvfp4", "nvidia--MiniMax-M2.5-NVFP4_config.json"),
    ("nemotron-3-nano-30b-a3b-nvfp4", "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4_config.json"),
    ("qwen3-235b-a22b-fp8", "Qwen--Qwen3-235B-A22B-FP8_config.json"),
    ("qwen3-235b-a22b-nvfp4", "nvidia--Qwen3-235B-A22B-NVFP4_config.json"),
    ("qwen3-32b-fp8", "Qwen--Qwen3-32B-FP8_config.json"),
    ("qwen3-vl-235b-a22b", "Qwen--Qwen3-VL-235B-A22B-Instruct_config.json"),
    ("qwen3.5-397b-a17b", "Qwen--Qwen3.5-397B-A17B_config.json"),
    ("qwen3.5-397b-a17b-nvfp4", "nvidia--Qwen3.5-397B-A17B-NVFP4_config.json"),
    ("glm-5-fp8", "zai-org--GLM-5-FP8_config.json"),
]


@needs_configs
@pytest.mark.parametrize(("card", "config"), SAME)
def test_card_is_what_its_checkpoint_says(card: str, config: str) -> None:
    short, full = load_model(card), load_model(str(CONFIGS / config))
    assert short.layers == full.layers
    assert (short.hidden, short.vocab, short.kv_dtype) == (full.hidden, full.vocab, full.kv_dtype)
    assert short.max_context_tokens == full.max_context_tokens
    assert short.tied_embeddings == full.tied_embeddings


def test_latent_heads_of_glm() -> None:
    mixer = load_model("glm-5").layers[0].mixer
    assert isinstance(mixer, LatentAttention)
    # q_b 64 x 256 from 2048, kv_b 64 x (192 + 256) from 512: config of zai-org/GLM-5
    parts = {part.name: (part.n, part.k) for part in mixer.linears(6144, 1)}
    assert parts["q_b"] == (64 * 256, 2048)
    assert parts["kv_b"] == (64 * 448, 512)
    assert parts["o"] == (6144, 64 * 256)
