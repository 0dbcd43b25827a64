"""`requantise`: the architecture stays, the formats are those of public checkpoints."""

from __future__ import annotations

import pytest

from llmsim.core.errors import InputError
from llmsim.specs import SCHEMES, MoeMlp, load_model, requantise


@pytest.mark.parametrize("scheme", SCHEMES)
def test_requantising_keeps_the_architecture(scheme: str) -> None:
    for name in ("llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "nvidia-nemotron-nano-9b-v2"):
        old = load_model(name)
        new = requantise(old, scheme)
        assert new.total_parameters == old.total_parameters
        assert new.active_parameters == old.active_parameters
        assert new.layer_count == old.layer_count
        assert new.head_format == old.head_format
        assert requantise(new, "bf16").weight_bytes() == 2.0 * old.total_parameters


# (16-bit card, scheme, card of the checkpoint that the scheme follows)
FOLLOWED = [
    ("llama-3.1-70b", "fp8", "llama-3.1-70b-fp8"),
    ("qwen3-32b", "fp8_block", "qwen3-32b-fp8"),
    ("qwen3-235b-a22b", "fp8_block", "qwen3-235b-a22b-fp8"),
    ("qwen3-235b-a22b", "nvfp4", "qwen3-235b-a22b-nvfp4"),
    ("qwen3.5-397b-a17b", "nvfp4", "qwen3.5-397b-a17b-nvfp4"),
    ("deepseek-v3", "nvfp4", "deepseek-r1-nvfp4"),
    ("kimi-k2.5", "nvfp4", "kimi-k2.5-nvfp4"),
    ("glm-5", "nvfp4", "glm-5-nvfp4"),
    ("glm-5", "fp8_block", "glm-5-fp8"),
]


@pytest.mark.parametrize(("name", "scheme", "followed"), FOLLOWED)
def test_requantising_gives_the_public_checkpoint(name: str, scheme: str, followed: str) -> None:
    new, public = requantise(load_model(name), scheme), load_model(followed)
    assert new.layers == public.layers
    assert new.kv_dtype == public.kv_dtype


def test_requantising_by_hand() -> None:
    llama = load_model("llama-3.1-8b")
    inner = llama.total_parameters - 2 * llama.head().parameters
    ends = 4.0 * llama.head().parameters  # embedding and head, 16 bits each
    assert requantise(llama, "fp8").weight_bytes() == inner + ends
    assert requantise(llama, "int4_awq").weight_bytes() == inner * (0.5 + 2.5 / 128) + ends
    sparse = requantise(load_model("qwen3-30b-a3b"), "mxfp4")
    assert isinstance(sparse.layers[0].mlp, MoeMlp)
    assert sparse.layers[0].mlp.format.name == "mxfp4"
    assert sparse.layers[0].mixer is not None
    assert sparse.layers[0].mixer.format.name == "bf16"
    dense = requantise(llama, "mxfp4")
    assert dense.layers[0].mixer is not None
    assert dense.layers[0].mixer.format.compute_dtype == "fp4"
    with pytest.raises(InputError, match="Did you mean 'nvfp4'"):
        requantise(llama, "nvfp5")
