"""Model reader: parameter counts against published totals, quantisation, and how it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llmsim.core.errors import CardError
from llmsim.core.units import GIB
from llmsim.specs import (
    LatentAttention,
    ModelSpec,
    MoeMlp,
    RecurrentMixer,
    SoftmaxAttention,
    load_model,
    model_names,
)

CONFIGS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
LOGS = CONFIGS.parent / "ground_truth" / "kv_memory.csv"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="shared configs are not here")

# (config, published total, source)
TOTALS = [
    ("Qwen--Qwen3-0.6B", 0.6e9, "huggingface.co/Qwen/Qwen3-0.6B"),
    ("Qwen--Qwen3-8B", 8.2e9, "huggingface.co/Qwen/Qwen3-8B"),
    ("qwen3-14b", 14.8e9, "huggingface.co/Qwen/Qwen3-14B"),
    ("qwen2.5-7b-instruct", 7.61e9, "huggingface.co/Qwen/Qwen2.5-7B-Instruct"),
    ("Qwen--Qwen3-32B-FP8", 32.8e9, "huggingface.co/Qwen/Qwen3-32B"),
    ("Qwen--Qwen3-30B-A3B", 30.5e9, "huggingface.co/Qwen/Qwen3-30B-A3B"),
    ("Qwen--Qwen3-235B-A22B", 235e9, "huggingface.co/Qwen/Qwen3-235B-A22B"),
    ("Qwen--Qwen3-Coder-480B-A35B-Instruct", 480e9, "huggingface.co/Qwen/Qwen3-Coder-480B-A35B"),
    ("Qwen--Qwen3.5-397B-A17B", 397e9, "huggingface.co/Qwen/Qwen3.5-397B-A17B"),
    ("meta-llama--Meta-Llama-3.1-405B", 405e9, "huggingface.co/meta-llama/Llama-3.1-405B"),
    ("meta-llama--Llama-4-Maverick-17B-128E-Instruct", 400e9, "Llama 4 model card"),
    ("codellama-34b-instruct-hf", 33.7e9, "huggingface.co/codellama/CodeLlama-34b-Instruct-hf"),
    ("mistral-nemo-instruct-2407", 12.2e9, "huggingface.co/mistralai/Mistral-Nemo-Instruct-2407"),
    ("mistralai--Mixtral-8x22B-v0.1", 141e9, "mistral.ai/news/mixtral-8x22b"),
    ("yi-34b", 34.4e9, "huggingface.co/01-ai/Yi-34B"),
    ("deepseek-v2-lite", 15.7e9, "arXiv 2405.04434"),
    ("deepseek-ai--DeepSeek-R1", 671e9, "arXiv 2501.12948"),
    ("openai--gpt-oss-120b", 116.83e9, "gpt-oss model card, table 1"),
    ("openai--gpt-oss-20b", 20.91e9, "gpt-oss model card, table 1"),
    ("MiniMaxAI--MiniMax-M2.5", 230e9, "huggingface.co/MiniMaxAI/MiniMax-M2"),
    ("zai-org--GLM-5", 744e9, "huggingface.co/zai-org/GLM-5"),
    ("google--gemma-4-26B-A4B", 25.2e9, "Gemma 4 model card"),
    ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6e9, "Nemotron 3 Nano report"),
    ("nvidia--Nemotron-H-56B-Base-8K", 56.3e9, "arXiv 2504.03624: Nemotron-H-56B"),
]

# (config, published active, whether the owner counts the input embedding, source)
ACTIVE = [
    ("openai--gpt-oss-120b", 5.13e9, False, "gpt-oss model card, table 1"),
    ("openai--gpt-oss-20b", 3.61e9, False, "gpt-oss model card, table 1"),
    ("mistralai--Mixtral-8x22B-v0.1", 39e9, True, "mistral.ai/news/mixtral-8x22b"),
    ("Qwen--Qwen3-235B-A22B", 22e9, True, "huggingface.co/Qwen/Qwen3-235B-A22B"),
    ("moonshotai--Kimi-K2.5", 32.6e9, True, "arXiv 2507.20534"),
    ("google--gemma-4-26B-A4B", 3.8e9, True, "Gemma 4 model card"),
    ("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 3.6e9, True, "Nemotron 3 Nano report"),
]


def read(name: str) -> ModelSpec:
    for tail in ("_config.json", ".config.json"):
        if (CONFIGS / (name + tail)).is_file():
            return load_model(str(CONFIGS / (name + tail)))
    raise AssertionError(f"no config {name}")


def without_embedding(model: ModelSpec) -> int:
    return model.active_parameters - model.embedding().parameters


# cards whose owner states no total of what the card counts; each says why in its first lines
NO_TOTAL = {"aquila-7b", "kimi-k2.5", "kimi-k2.5-nvfp4", "llama-4-scout-17b-16e"}


@pytest.mark.parametrize("name", model_names())
def test_card_matches_published_parameters(name: str) -> None:
    model = load_model(name)
    published = {row.field: float(row.value) for row in model.sources if "published" in row.field}
    total = published.get("published.total_parameters")
    assert (total is None) == (name in NO_TOTAL)
    if total:
        assert model.total_parameters == pytest.approx(total, rel=0.01)
    active = published.get("published.active_parameters")
    if active:  # owners differ in whether they count the embedding and the head
        end = model.embedding().parameters
        counts = [model.active_parameters - times * end for times in range(3)]
        error = min(abs(count / active - 1.0) for count in counts)
        # they publish two or three digits: half of the second one is rounding
        digits = active / 10 ** (len(f"{active:.0f}") - 2)
        assert error <= max(0.01, 0.5 / digits)
    chunked = model.model_type == "llama4_text"
    assert len(model.warnings) == chunked
    assert all("chunked attention" in note for note in model.warnings)


# name in public measurements of serving -> (hidden size, layers)
MEASURED = {
    "aquila-7b": (4096, 32),
    "bloom-176b": (14336, 70),
    "bloom-7b1": (4096, 30),
    "codellama-34b": (8192, 48),
    "decilm-7b": (4096, 32),
    "deepseek-v3": (7168, 61),
    "falcon-180b": (14848, 80),
    "gemma-3-12b": (3840, 48),
    "gemma-3-27b": (5376, 62),
    "glm-5": (6144, 78),
    "gpt-j-6b": (4096, 28),
    "gpt-oss-120b": (2880, 36),
    "gpt-oss-20b": (2880, 24),
    "kimi-k2.5": (7168, 61),
    "llama-2-13b": (5120, 40),
    "llama-2-70b": (8192, 80),
    "llama-2-7b": (4096, 32),
    "llama-3.1-405b": (16384, 126),
    "llama-3.1-70b": (8192, 80),
    "llama-3.1-8b": (4096, 32),
    "llama-4-maverick-17b-128e": (5120, 48),
    "minimax-m2.5": (3072, 62),
    "mistral-7b": (4096, 32),
    "mistral-nemo-2407": (5120, 40),
    "mixtral-8x7b": (4096, 32),
    "nvidia-nemotron-nano-12b-v2": (5120, 62),
    "nvidia-nemotron-nano-9b-v2": (4480, 56),
    "opt-6.7b": (4096, 32),
    "qwen1.5-7b": (4096, 32),
    "qwen2-72b": (8192, 80),
    "qwen2-7b": (3584, 28),
    "qwen2.5-7b": (3584, 28),
    "qwen3-14b": (5120, 40),
    "qwen3-30b-a3b": (2048, 48),
    "qwen3-32b": (5120, 64),
    "qwen3-8b": (4096, 36),
    "qwen3-omni-30b-a3b": (2048, 48),
    "qwen3-vl-235b-a22b": (4096, 94),
    "qwen3-vl-30b-a3b": (2048, 48),
    "qwen3-vl-32b": (5120, 64),
    "qwen3-vl-8b": (4096, 36),
    "qwen3.5-397b-a17b": (4096, 60),
    "yi-34b": (7168, 60),
}


@pytest.mark.parametrize(("name", "shape"), MEASURED.items())
def test_every_measured_model_has_a_card(name: str, shape: tuple[int, int]) -> None:
    model = load_model(name)
    assert (model.hidden, model.layer_count) == shape


def test_models_go_by_the_names_of_their_owners() -> None:
    assert load_model("meta-llama/Llama-3.3-70B-Instruct") == load_model("llama-3.1-70b")
    assert load_model("openai/gpt-oss-120b").name == "gpt-oss-120b"
    with pytest.raises(CardError, match="Did you mean 'gpt-oss-20b'"):
        load_model("openai/gpt-oss-20")


@needs_configs
@pytest.mark.parametrize(("name", "total", "source"), TOTALS)
def test_config_matches_published_total(name: str, total: float, source: str) -> None:
    assert source
    assert read(name).total_parameters == pytest.approx(total, rel=0.01)


@needs_configs
@pytest.mark.parametrize(("name", "active", "with_embedding", "source"), ACTIVE)
def test_config_matches_published_active(
    name: str, active: float, with_embedding: bool, source: str
) -> None:
    model = read(name)
    assert source
    counted = model.active_parameters if with_embedding else without_embedding(model)
    assert counted == pytest.approx(active, rel=0.01)


@needs_configs
def test_every_config_is_read() -> None:
    paths = [path for path in CONFIGS.glob("*config.json") if "hf_quant" not in path.name]
    assert len(paths) > 50
    for path in paths:
        model = load_model(str(path))
        assert model.layer_count > 0
        assert not any("generic decoder" in note for note in model.warnings), path.name


@needs_configs
def test_kv_of_a_token() -> None:
    assert load_model("llama-3.1-8b").kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2
    # DeepSeek-V3 report: 70.272 KB per token in bf16, whatever the tensor-parallel degree
    assert read("deepseek-ai--DeepSeek-V3").kv_bytes_per_token(8) == 70_272
    qwen = read("Qwen--Qwen3-235B-A22B")  # 4 KV heads: replicated beyond tp 4
    assert qwen.kv_bytes_per_token(8) == qwen.kv_bytes_per_token(4)


@pytest.mark.skipif(not LOGS.is_file(), reason="shared measurements are not here")
def test_weights_are_those_that_vllm_logged() -> None:
    compared = 0
    with LOGS.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if not row["weights_gib_per_gpu"] or "Mistral-Small-3.2" in row["model"]:
                continue  # that one's log counts its vision encoder, the card does not
            ours = load_model(row["model"]).weight_bytes(int(row["tp"])) / GIB
            assert ours == pytest.approx(float(row["weights_gib_per_gpu"]), rel=0.01), row["model"]
            compared += 1
    assert compared == 4


@needs_configs
def test_quantised_sizes() -> None:
    # gpt-oss model card: checkpoints of 60.8 and 12.8 GiB
    assert read("openai--gpt-oss-120b").weight_bytes() / GIB == pytest.approx(60.8, rel=0.01)
    assert read("openai--gpt-oss-20b").weight_bytes() / GIB == pytest.approx(12.8, rel=0.01)
    # block-quantised fp8: one byte and one fp32 scale per 128 x 128 block
    fp8, bf16 = read("Qwen--Qwen3-32B-FP8"), read("Qwen--Qwen3-32B")
    saved = bf16.weight_bytes() - fp8.weight_bytes()
    linear = bf16.total_parameters - 2 * bf16.head().parameters
    assert saved == pytest.approx(linear * (1 - 4 / 128**2))


@needs_configs
def test_quantisation_reaches_the_right_tensors() -> None:
    kimi = read("moonshotai--Kimi-K2.5")  # int4 experts alone
    dense, sparse = kimi.layers
    assert dense.mlp is not None
    assert dense.mlp.format.name == "bf16"
    assert isinstance(sparse.mlp, MoeMlp)
    assert sparse.mixer is not None
    formats = (sparse.mlp.format.name, sparse.mlp.shared_format.name, sparse.mixer.format.name)
    assert formats == ("int4", "bf16", "bf16")
    minimax = read("nvidia--MiniMax-M2.5-NVFP4")  # attention of every layer is left out
    assert minimax.layers[0].mixer is not None
    assert minimax.layers[0].mixer.format.name == "bf16"
    assert minimax.layers[0].mlp is not None
    assert minimax.layers[0].mlp.format.name == "nvfp4"
    assert minimax.kv_dtype == "fp8"
    # hf_quant_config.json beside the config, which itself says nothing
    llama = read("nvidia--Llama-3.1-70B-Instruct-FP8")
    assert llama.layers[0].mlp is not None
    assert llama.layers[0].mlp.format.name == "fp8"
    assert llama.head_format.name == "bf16"
    qwen = read("nvidia--Qwen3.5-397B-A17B-NVFP4")  # `mtp.layers.0*` is no decoder layer
    experts = [layer.mlp.format.name for layer in qwen.layers if layer.mlp]
    assert experts == ["nvfp4", "nvfp4"]
    nemotron = read("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4")
    mamba = {
        layer.mixer.format.name: layer.count
        for layer in nemotron.layers
        if isinstance(layer.mixer, RecurrentMixer)
    }
    assert set(mamba) == {"bf16", "nvfp4"}  # those before an attention layer are kept
    assert sum(mamba.values()) == 23


@needs_configs
def test_layer_kinds() -> None:
    oss = read("openai--gpt-oss-120b")
    assert [(layer.count, layer.mixer.window_tokens) for layer in oss.layers] == [  # type: ignore[union-attr]
        (18, 128),
        (18, 0),
    ]
    deepseek = read("deepseek-ai--DeepSeek-V3.2")
    assert [layer.count for layer in deepseek.layers] == [3, 58]
    assert isinstance(deepseek.layers[0].mixer, LatentAttention)
    assert deepseek.window_tokens == 2048
    qwen = read("Qwen--Qwen3.5-397B-A17B")
    assert {type(layer.mixer): layer.count for layer in qwen.layers} == {
        RecurrentMixer: 45,
        SoftmaxAttention: 15,
    }
    maverick = read("meta-llama--Llama-4-Maverick-17B-128E-Instruct")
    sparse = sum(layer.count for layer in maverick.layers if isinstance(layer.mlp, MoeMlp))
    assert sparse == 24
    assert any("chunked" in note for note in maverick.warnings)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}


def write(tmp_path: Path, **changes: object) -> str:
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_defaults_of_the_class(tmp_path: Path) -> None:
    model = load_model(write(tmp_path))
    attention = model.layers[0].mixer
    assert isinstance(attention, SoftmaxAttention)
    assert (attention.kv_heads, attention.head_dim) == (4, 16)
    assert not model.tied_embeddings
    assert load_model("./config.json", near=tmp_path).layers == model.layers
    assert load_model(str(tmp_path)).layers == model.layers  # the folder that holds it


def test_missing_keys_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path, hidden_size=None, vocab_size=None, num_attention_heads=None)
    with pytest.raises(CardError) as caught:
        load_model(path)
    named = {fault.path for fault in caught.value.faults}
    assert {"hidden_size", "vocab_size", "num_attention_heads"} <= named
    assert "config.json" in str(caught.value)


def test_unknown_type_is_noted_and_never_guessed(tmp_path: Path) -> None:
    model = load_model(write(tmp_path, model_type="newcomer", tie_word_embeddings=True))
    assert any("newcomer" in note for note in model.warnings)
    with pytest.raises(CardError, match="tie_word_embeddings"):
        load_model(write(tmp_path, model_type="newcomer"))
    with pytest.raises(CardError, match="'squeeze' is not known"):
        load_model(write(tmp_path, quantization_config={"quant_method": "squeeze"}))
    with pytest.raises(CardError, match="layer_types"):
        load_model(write(tmp_path, layer_types=["full_attention", "moonlight"]))


def test_sliding_window_rules(tmp_path: Path) -> None:
    assert load_model(write(tmp_path, sliding_window=32)).window_tokens == 32
    off = write(tmp_path, sliding_window=32, use_sliding_window=False)
    assert load_model(off).window_tokens == 0
    half = load_model(write(tmp_path, sliding_window=32, sliding_window_pattern=2))
    assert [layer.count for layer in half.layers] == [1, 1]


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(CardError, match=r"Did you mean 'llama-3.1-8b'"):
        load_model("lama-3.1-8b")
    with pytest.raises(CardError, match="no such file"):
        load_model("./nowhere/config.json")
