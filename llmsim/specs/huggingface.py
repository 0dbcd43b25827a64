"""From a HuggingFace ``config.json`` to a `ModelSpec`.

Keys decide, not names: the same reader serves every decoder with standard keys. A key that is
needed and missing is a fault that names it; defaults are used only where the model class itself
defines them. Nothing is guessed silently: what was taken for granted stands in
`ModelSpec.warnings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmsim.core.errors import CardError, Fault
from llmsim.specs.cards import CardRow
from llmsim.specs.layers import (
    DenseMlp,
    LatentAttention,
    LayerSpec,
    Mixer,
    Mlp,
    MoeMlp,
    RecurrentMixer,
    SoftmaxAttention,
    SparseIndexer,
)
from llmsim.specs.model import ModelSpec
from llmsim.specs.quantisation import Quantisation, read_quantisation

_TIED_BY_DEFAULT = {
    "deepseek_v2": False,
    "deepseek_v3": False,
    "deepseek_v32": False,
    "gemma4_text": True,
    "glm_moe_dsa": False,
    "gpt_oss": False,
    "kimi_k2": False,
    "llama": False,
    "llama4_text": False,
    "minimax_m2": False,
    "mistral": False,
    "mixtral": False,
    "nemotron_h": False,
    "qwen2": False,
    "qwen2_moe": False,
    "qwen3": False,
    "qwen3_5_moe_text": False,
    "qwen3_moe": False,
    "qwen3_vl_moe_text": False,
    "qwen3_vl_text": False,
}
"""Model types whose keys were checked; whether their class ties embeddings by default."""

_LLAMA4_FULL_EVERY = 4  # Llama4TextConfig: no_rope_layer_interval


@dataclass
class _Config:
    """The text part of a config under reading; collects faults and warnings."""

    keys: Mapping[str, Any]
    where: str
    quant: Quantisation
    faults: list[Fault]
    warnings: list[str]

    def get(self, *names: str) -> Any:
        """Return the first of these keys that is there and not null, else None."""
        return next((self.keys[name] for name in names if self.keys.get(name) is not None), None)

    def count(self, *names: str, default: int | None = None) -> int:
        """Return a whole number; without default it must be there."""
        value = self.get(*names)
        if value is None:
            if default is None:
                fault = Fault(self.where, " or ".join(names), "missing.")
                if fault not in self.faults:
                    self.faults.append(fault)
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.faults.append(
                Fault(self.where, names[0], f"must be a whole number (got {value!r}).")
            )
            return 0
        return value

    @property
    def model_type(self) -> str:
        return str(self.get("model_type") or "")


def parse_config(
    config: Mapping[str, Any],
    name: str,
    source: str,
    where: str = "",
    hf_quant: Mapping[str, Any] | None = None,
    rows: tuple[CardRow, ...] = (),
) -> ModelSpec:
    """Build a `ModelSpec` from the content of a ``config.json``.

    Parameters
    ----------
    config : mapping
        The parsed file; a nested ``text_config`` or ``llm_config`` is looked into.
    name, source : str
    where : str
        File named in faults.
    hf_quant : mapping or None
        Content of ``hf_quant_config.json``.
    rows : tuple of CardRow
        Facts to attach.

    Raises
    ------
    CardError
        With every missing or wrong key.
    """
    inner = config.get("text_config") or config.get("llm_config")
    keys = {**config, **inner} if inner else dict(config)
    quant, faults = read_quantisation(keys.get("quantization_config"), hf_quant, where)
    text = _Config(keys, where, quant, faults, [])
    hidden = text.count("hidden_size")
    vocab = text.count("vocab_size")
    tied = _tied(text)
    layers = _layers(text, hidden)
    _note(text, config)
    if text.faults:
        raise CardError(name, text.faults)
    return ModelSpec(
        name=name,
        source=source,
        model_type=text.model_type,
        hidden=hidden,
        vocab=vocab,
        layers=layers,
        tied_embeddings=tied,
        max_context_tokens=text.count("max_position_embeddings", default=0),
        kv_dtype=quant.kv_dtype,
        draft_layers=text.count(
            "num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", default=0
        ),
        warnings=tuple(text.warnings),
        sources=rows,
    )


def _tied(text: _Config) -> bool:
    stated = text.get("tie_word_embeddings")
    if stated is not None:
        return bool(stated)
    if text.model_type in _TIED_BY_DEFAULT:
        return _TIED_BY_DEFAULT[text.model_type]
    text.faults.append(
        Fault(text.where, "tie_word_embeddings", f"missing, no default for '{text.model_type}'.")
    )
    return False


def _note(text: _Config, config: Mapping[str, Any]) -> None:
    if text.model_type not in _TIED_BY_DEFAULT:
        text.warnings.append(
            f"model_type '{text.model_type}' is not known: read as a generic decoder by its keys"
        )
    if config.get("vision_config") or config.get("audio_config"):
        text.warnings.append("text model only: encoders of other modalities are not counted")
    if text.get("attention_chunk_size"):
        text.warnings.append("chunked attention is priced as a sliding window of the same size")
    dtype = text.get("torch_dtype", "dtype")
    if dtype is None or str(dtype) == "float32":
        text.warnings.append(f"dtype is {dtype or 'not stated'}: weights taken as 16 bits")


def _layers(text: _Config, hidden: int) -> tuple[LayerSpec, ...]:
    """Return the layer kinds with their counts, in order of first appearance."""
    pattern = text.get("hybrid_override_pattern")
    total = text.count("num_hidden_layers")
    kinds: dict[tuple[Mixer | None, Mlp | None], int] = {}
    for index in range(total):
        if pattern:
            kind = _pattern_layer(
                text, hidden, index, pattern[index] if index < len(pattern) else ""
            )
        else:
            kind = (_mixer(text, hidden, index), _mlp(text, index))
        kinds[kind] = kinds.get(kind, 0) + 1
        if text.faults:
            break
    return tuple(LayerSpec(mixer, mlp, count) for (mixer, mlp), count in kinds.items())


def _pattern_layer(
    text: _Config, hidden: int, index: int, letter: str
) -> tuple[Mixer | None, Mlp | None]:
    """Nemotron-H: each layer is one part alone, M(amba2), * attention, - MLP or E(xperts)."""
    if letter == "M":
        return _mamba2(text, index), None
    if letter == "*":
        return _softmax(text, hidden, index, 0), None
    if letter == "-":
        return None, _dense(text, index, text.count("intermediate_size"))
    if letter == "E":
        return None, _moe(text, index)
    message = f"layer {index} is {letter!r}; known: M * - E, one letter per layer."
    text.faults.append(Fault(text.where, "hybrid_override_pattern", message))
    return None, None


def _mixer(text: _Config, hidden: int, index: int) -> Mixer:
    if text.get("kv_lora_rank"):
        return _latent(text, index)
    kind, window = _layer_type(text, index)
    if kind == "linear_attention":
        return _gated_delta(text, index)
    return _softmax(text, hidden, index, window)


def _layer_type(text: _Config, index: int) -> tuple[str, int]:
    """Return what kind of attention a layer has, and its window (0 for none)."""
    window = int(text.get("sliding_window") or 0)
    if text.get("use_sliding_window") is False:
        window = 0
    types = text.get("layer_types")
    if types:
        if index >= len(types):
            text.faults.append(Fault(text.where, "layer_types", "shorter than num_hidden_layers."))
            return "full_attention", 0
        return _named_type(text, types[index], window)
    if text.get("full_attention_interval"):
        full = (index + 1) % text.count("full_attention_interval") == 0
        return ("full_attention", window) if full else ("linear_attention", 0)
    chunk = int(text.get("attention_chunk_size") or 0)
    if chunk:
        marks = text.get("no_rope_layers")
        every = text.count("no_rope_layer_interval", default=_LLAMA4_FULL_EVERY)
        full = not marks[index] if marks else (index + 1) % every == 0
        return "full_attention", 0 if full else chunk
    pattern = text.get("sliding_window_pattern")
    if pattern:
        return "full_attention", 0 if (index + 1) % int(pattern) == 0 else window
    first_windowed = text.get("max_window_layers") or 0
    return "full_attention", window if index >= first_windowed else 0


def _named_type(text: _Config, name: str, window: int) -> tuple[str, int]:
    if name in ("full_attention", "linear_attention"):
        return name, 0
    if name == "sliding_attention" and window:
        return name, window
    if name == "chunked_attention" and text.get("attention_chunk_size"):
        return name, text.count("attention_chunk_size")
    known = "full_attention, linear_attention, sliding_attention (with sliding_window)"
    text.faults.append(
        Fault(text.where, "layer_types", f"'{name}' cannot be read.", f"Known: {known}.")
    )
    return "full_attention", 0


def _softmax(text: _Config, hidden: int, index: int, window: int) -> SoftmaxAttention:
    heads = text.count("num_attention_heads")
    kv_heads = text.count("num_key_value_heads", default=heads)
    head_dim = text.count("head_dim", "attention_head_dim", default=hidden // max(1, heads))
    shared = False
    if not window and text.get("global_head_dim"):  # Gemma 4: full layers have their own heads
        head_dim = text.count("global_head_dim")
        kv_heads = text.count("num_global_key_value_heads", default=kv_heads)
        shared = bool(text.get("attention_k_eq_v"))
    return SoftmaxAttention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window_tokens=window,
        output_gate=bool(text.get("attn_output_gate")),
        shared_key_value=shared,
        format=text.quant.of(index, "self_attn.q_proj", "self_attn.o_proj", "mixer.q_proj"),
    )


def _latent(text: _Config, index: int) -> LatentAttention:
    topk = text.get("index_topk")
    indexer = None
    if topk:
        indexer = SparseIndexer(
            text.count("index_n_heads"), text.count("index_head_dim"), text.count("index_topk")
        )
    return LatentAttention(
        heads=text.count("num_attention_heads"),
        kv_rank=text.count("kv_lora_rank"),
        query_rank=text.count("q_lora_rank", default=0),
        nope_dim=text.count("qk_nope_head_dim"),
        rope_dim=text.count("qk_rope_head_dim"),
        value_dim=text.count("v_head_dim"),
        indexer=indexer,
        format=text.quant.of(index, "self_attn.q_proj", "self_attn.q_b_proj", "self_attn.o_proj"),
    )


def _gated_delta(text: _Config, index: int) -> RecurrentMixer:
    return RecurrentMixer(
        kind="gated-delta",
        heads=text.count("linear_num_value_heads"),
        head_dim=text.count("linear_value_head_dim"),
        state_dim=text.count("linear_key_head_dim"),
        groups=text.count("linear_num_key_heads"),
        conv_kernel=text.count("linear_conv_kernel_dim"),
        format=text.quant.of(index, "linear_attn.in_proj_qkv", "linear_attn.out_proj"),
    )


def _mamba2(text: _Config, index: int) -> RecurrentMixer:
    return RecurrentMixer(
        kind="mamba2",
        heads=text.count("mamba_num_heads"),
        head_dim=text.count("mamba_head_dim"),
        state_dim=text.count("ssm_state_size", "mamba_d_state"),
        groups=text.count("n_groups"),
        conv_kernel=text.count("conv_kernel"),
        format=text.quant.of(index, "mixer.in_proj", "mixer.out_proj"),
    )


def _gated(text: _Config) -> bool:
    """Every activation of known decoders gates, ReLU squared alone does not."""
    return bool(text.get("mlp_hidden_act", "hidden_act") != "relu2")


def _dense(text: _Config, index: int, width: int) -> DenseMlp:
    names = ("mlp.gate_proj", "mlp.up_proj", "feed_forward.gate_proj", "mixer.up_proj")
    return DenseMlp(width, _gated(text), text.quant.of(index, *names))


def _mlp(text: _Config, index: int) -> Mlp:
    if text.get("num_local_experts", "num_experts", "n_routed_experts") and _is_sparse(text, index):
        return _moe(text, index)
    return _dense(text, index, text.count("intermediate_size_mlp", "intermediate_size"))


def _is_sparse(text: _Config, index: int) -> bool:
    """Say whether this layer of a mixture-of-experts model has experts."""
    if index < text.count("first_k_dense_replace", default=0):
        return False
    if index in (text.get("mlp_only_layers") or ()):
        return False
    listed = text.get("moe_layers")
    if listed:
        return index in listed
    every = text.get("moe_layer_freq")
    if isinstance(every, list):
        return bool(every[index])
    step = text.count("decoder_sparse_step", "interleave_moe_layer_step", default=1) or 1
    if (index + 1) % step:
        return False
    stride = int(every or 1)
    return index % stride == 0


def _moe(text: _Config, index: int) -> MoeMlp:
    width = text.count("moe_intermediate_size", "intermediate_size")
    return MoeMlp(
        experts=text.count("num_local_experts", "num_experts", "n_routed_experts"),
        active_experts=text.count(
            "num_experts_per_tok", "moe_topk", "top_k_experts", "experts_per_token"
        ),
        intermediate=width,
        shared_intermediate=_shared_width(text, width),
        gated=_gated(text),
        format=text.quant.of(
            index,
            "mlp.experts.0.gate_proj",
            "block_sparse_moe.experts.0.w1",
            "feed_forward.experts.0.gate_proj",
            "mixer.experts.0.up_proj",
        ),
        shared_format=text.quant.of(
            index,
            "mlp.shared_experts.gate_proj",
            "mlp.shared_expert.gate_proj",
            "feed_forward.shared_expert.gate_proj",
            "mixer.shared_experts.up_proj",
        ),
    )


def _shared_width(text: _Config, width: int) -> int:
    """Return the width of the path that every token takes beside the routed experts."""
    if text.model_type == "llama4_text":  # one shared expert, as wide as a routed one
        return width
    if text.get("enable_moe_block"):  # Gemma 4: the dense MLP stays, beside the experts
        return text.count("intermediate_size")
    shared = text.count("n_shared_experts", default=0)
    if shared:
        return shared * text.count("moe_shared_expert_intermediate_size", default=width)
    return text.count("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
