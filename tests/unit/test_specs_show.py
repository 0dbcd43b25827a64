"""`llmsim show model`: its tables add up, fit 80 columns, and are there for any file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.costmodel.per_token import token_operators
from llmsim.specs import load_model, model_names
from llmsim.specs.anatomy import mixer_words, weight_classes

CONFIGS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="shared configs are not here")
PATHS = sorted(path for path in CONFIGS.glob("*config.json") if "hf_quant" not in path.name)


def show(*words: str) -> str:
    result = CliRunner().invoke(app, ["show", "model", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", model_names())
def test_classes_add_up(name: str) -> None:
    model = load_model(name)
    classes = weight_classes(model)
    assert sum(part.parameters for part in classes) == model.total_parameters
    assert sum(part.weight_bytes for part in classes) == pytest.approx(model.weight_bytes())


@pytest.mark.parametrize("name", model_names())
@pytest.mark.many
def test_every_card_fits_80_columns(name: str) -> None:
    assert max(len(line) for line in show(name).splitlines()) <= 80


@needs_configs
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.many
def test_every_config_is_shown(path: Path) -> None:
    text = show(str(path))
    assert "one token decoded alone" in text
    assert "num_hidden_layers" in text


def test_a_dense_token_does_two_flops_per_weight() -> None:
    model = load_model("llama-3.1-8b")
    by_name = {row.name: row for row in token_operators(model, 1, "bf16")}
    dense = sum(by_name[name].flops for name in ("qkv", "o", "gate_up", "down", "lm_head"))
    assert dense == 2.0 * (model.total_parameters - model.embedding().parameters)
    # 4 FLOP per head dimension, head and layer for each token read
    at = {n: {r.name: r for r in token_operators(model, n, "bf16")}["attention"] for n in (1, 1000)}
    assert at[1000].flops == 1000 * at[1].flops == 1000 * 4.0 * 32 * 128 * 32
    assert at[1000].bytes == 1000 * model.kv_bytes_per_token()


def test_a_sparse_token_reads_its_experts_alone() -> None:
    model = load_model("qwen3-30b-a3b")
    experts = {row.name: row for row in token_operators(model, 1, "bf16")}["experts"]
    weights = 48 * 8 * 3 * 2048 * 768
    assert experts.flops == 2.0 * weights
    activations = 48 * 8 * (2 * 2048 + 3 * 768)
    assert experts.bytes == pytest.approx(2.0 * (weights + activations))


def test_windowed_layers_stop_reading() -> None:
    model = load_model("gpt-oss-20b")

    def attention(context: int) -> dict[str, float]:
        rows = token_operators(model, context, "bf16")
        return {row.name: row.bytes for row in rows if row.name.startswith("attention")}

    short, long = attention(128), attention(12_800)
    assert long["attention"] == 100 * short["attention"]
    assert long["attention (window)"] == short["attention (window)"]


def test_what_is_shown() -> None:
    text = show("deepseek-v3.2", "--context", "4096")
    assert "latent 128 heads, 512+64 KV, top 2,048" in text
    assert "8/256 experts of 2,048 + 2,048" in text
    assert "fp8-block128" in text
    assert "context of 4,096" in text
    quantised = show("llama-3.1-8b", "--quantisation", "nvfp4")
    assert "nvfp4" in quantised
    assert "fp8, as the checkpoint asks" in quantised
    nemotron = load_model("nvidia-nemotron-nano-9b-v2")
    assert mixer_words(nemotron.layers[0].mixer) == "mamba2, state 128 x 80 x 128"
    assert "one sequence, whatever its length" in show("nvidia-nemotron-nano-9b-v2")


def test_wrong_words_say_so() -> None:
    result = CliRunner().invoke(app, ["show", "model", "llama-3.1-8b", "--quantisation", "fp9"])
    assert result.exit_code == 2
    assert "Did you mean 'fp8'" in result.stderr
