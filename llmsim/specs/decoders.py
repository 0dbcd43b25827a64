"""What a model class defines when its ``config.json`` is silent, by ``model_type``.

A config leaves out what its class knows. These are the facts that counts and sizes depend on;
everything else is read from the keys, the same way for every decoder.

References
----------
Defaults are those of the configuration classes of HuggingFace transformers 4.57 and, for the types
it lacks (aquila, deci, deepseek_v32, kimi_k2), of the class published beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Decoder:
    """What one model class defines.

    Parameters
    ----------
    tied : bool
        Whether the LM head is the embedding when the config does not say.
    gated : bool
        Three MLP matrices (SwiGLU and kin) or two.
    defaults : mapping of str to any
        Values of keys that the config leaves out.
    renamed : mapping of str to str
        The class's own words for standard keys, standard word second.
    mlp_ratio : int
        Width of the MLP in hidden sizes when the config does not say; 0: it must say.
    multi_query : bool
        Whether a config without a count of key/value heads may ask for a single one by
        ``multi_query``.
    wide_router : bool
        Whether engines keep the router's weights, and multiply them, at 32 bits (vLLM's
        ``minimax_m2.py`` and ``glm4_moe.py``).
    """

    tied: bool = False
    gated: bool = True
    defaults: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    renamed: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    mlp_ratio: int = 0
    multi_query: bool = False
    wide_router: bool = False


_GPT = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
}
_NO_WINDOW = {"use_sliding_window": False}
_GEMMA3 = {
    "vocab_size": 262208,
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 131072,
}
_LLAMA4 = {"attention_chunk_size": 8192, "no_rope_layer_interval": 4}
_QWEN_NEXT = {"full_attention_interval": 4, "attn_output_gate": True}

DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "aquila": Decoder(),
        "bamba": Decoder(),
        "bloom": Decoder(
            tied=True,
            gated=False,
            renamed={**_GPT, "n_embed": "hidden_size", "seq_length": "max_position_embeddings"},
            mlp_ratio=4,
        ),
        "cohere": Decoder(tied=True),
        "cohere2": Decoder(tied=True, defaults={"sliding_window_pattern": 4}),
        "deci": Decoder(),
        "deepseek_v2": Decoder(),
        "deepseek_v3": Decoder(),
        "deepseek_v32": Decoder(),
        "ernie4_5": Decoder(tied=True),
        "ernie4_5_moe": Decoder(tied=True),
        "exaone4": Decoder(defaults={"sliding_window_pattern": 4}),
        "falcon": Decoder(
            tied=True,
            gated=False,
            renamed={"num_kv_heads": "num_key_value_heads", "ffn_hidden_size": "intermediate_size"},
            mlp_ratio=4,
            multi_query=True,
        ),
        "gemma": Decoder(tied=True, defaults={"head_dim": 256}),
        "gemma2": Decoder(tied=True, defaults={"head_dim": 256, "sliding_window_pattern": 2}),
        "gemma3_text": Decoder(tied=True, defaults=_GEMMA3),
        "gemma4_text": Decoder(tied=True),
        "glm": Decoder(),
        "glm4": Decoder(),
        "glm4_moe": Decoder(wide_router=True),
        "glm_moe_dsa": Decoder(),
        "gpt2": Decoder(tied=True, gated=False, renamed=_GPT, mlp_ratio=4),
        "gpt_bigcode": Decoder(tied=True, gated=False, renamed=_GPT, mlp_ratio=4, multi_query=True),
        "gpt_neox": Decoder(gated=False),
        "gpt_oss": Decoder(defaults={"sliding_window_pattern": 2}),
        "gptj": Decoder(gated=False, renamed=_GPT, mlp_ratio=4),
        "granite": Decoder(),
        "granitemoe": Decoder(),
        "granitemoehybrid": Decoder(),
        "jamba": Decoder(),
        "kimi_k2": Decoder(),
        "llama": Decoder(),
        "llama4_text": Decoder(defaults=_LLAMA4),
        "minimax_m2": Decoder(wide_router=True),
        "ministral3": Decoder(),
        "mistral": Decoder(),
        "mixtral": Decoder(),
        "nemotron": Decoder(gated=False),
        "nemotron_h": Decoder(gated=False),
        "olmo": Decoder(),
        "olmo2": Decoder(),
        "olmo3": Decoder(),
        "olmoe": Decoder(),
        "opt": Decoder(tied=True, gated=False, renamed={"ffn_dim": "intermediate_size"}),
        "phi": Decoder(gated=False),
        "phi3": Decoder(),
        "phimoe": Decoder(),
        "qwen2": Decoder(defaults=_NO_WINDOW),
        "qwen2_5_vl_text": Decoder(defaults=_NO_WINDOW),
        "qwen2_moe": Decoder(defaults=_NO_WINDOW),
        "qwen2_vl_text": Decoder(defaults=_NO_WINDOW),
        "qwen3": Decoder(defaults=_NO_WINDOW),
        "qwen3_5_moe_text": Decoder(defaults=_QWEN_NEXT),
        "qwen3_5_text": Decoder(defaults=_QWEN_NEXT),
        "qwen3_moe": Decoder(defaults=_NO_WINDOW),
        "qwen3_next": Decoder(defaults=_QWEN_NEXT),
        "qwen3_omni_moe_text": Decoder(defaults=_NO_WINDOW),
        "qwen3_vl_moe_text": Decoder(defaults=_NO_WINDOW),
        "qwen3_vl_text": Decoder(defaults=_NO_WINDOW),
        "seed_oss": Decoder(),
        "smollm3": Decoder(tied=True, defaults=_NO_WINDOW),
        "stablelm": Decoder(),
        "starcoder2": Decoder(tied=True, gated=False),
    }
)
"""Model types whose keys were checked."""

UNREADABLE: Mapping[str, str] = MappingProxyType(
    {
        "attn_type_list": "lightning attention (MiniMax-01)",
        "block_configs": "blocks that differ layer by layer (Puzzle)",
        "cross_attention_layers": "cross-attention to image tokens",
        "linear_attn_config": "Kimi delta attention",
        "use_cla": "attention that shares its KV across layers",
    }
)
"""Keys that change what a model costs and that no reader here knows, with what they stand for."""
