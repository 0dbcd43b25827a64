"""From a HuggingFace ``config.json`` to a `ModelSpec`.

Keys decide, not names: the same reader serves every decoder with standard keys. A key that is
needed and missing is a fault that names it; defaults are used only where the model class itself
defines them. Nothing is guessed silently: what was taken for granted stands in
`ModelSpec.warnings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsim.core.errors import CardError
from llmsim.specs import parts
from llmsim.specs.cards import CardRow
from llmsim.specs.config import ConfigReader, text_keys
from llmsim.specs.decoders import DECODERS, UNREADABLE
from llmsim.specs.layers import LayerSpec, Mixer, Mlp, SoftmaxAttention
from llmsim.specs.model import ModelSpec
from llmsim.specs.quantisation import read_quantisation
from llmsim.specs.vision import read_encoder

_PARTS = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
"""Nemotron-H's newer words for the letters of its pattern."""


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
        The parsed file; a nested ``text_config`` or the like is looked into.
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
    keys = text_keys(config)
    quant, faults = read_quantisation(keys.get("quantization_config"), hf_quant, where)
    text = ConfigReader(keys, where, quant, faults)
    _refuse(text)
    hidden = text.count("hidden_size")
    vocab = text.count("vocab_size")
    tied = _tied(text)
    layers, order = _layers(text)
    _note(text, config, layers)
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
        max_context_tokens=text.count(
            "max_position_embeddings", "max_sequence_length", "seq_length", default=0
        ),
        kv_dtype=quant.kv_dtype,
        draft_layers=text.count(
            "num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", default=0
        ),
        warnings=tuple(text.warnings),
        sources=rows,
        order=order,
        encoder=read_encoder(config),
    )


def _refuse(text: ConfigReader) -> None:
    for key, meaning in UNREADABLE.items():
        value = text.get(key)
        usual = key == "attn_type_list" and isinstance(value, list) and set(value) == {1}
        if value and not usual:
            text.fault(key, f"{meaning} cannot be read yet.")


def _tied(text: ConfigReader) -> bool:
    stated = text.get("tie_word_embeddings")
    if stated is not None:
        return bool(stated)
    if text.model_type in DECODERS:
        return text.decoder.tied
    of = f"for '{text.model_type}'" if text.model_type else "without a model_type"
    text.fault("tie_word_embeddings", f"missing, no default {of}.")
    return False


def _note(text: ConfigReader, config: Mapping[str, Any], layers: tuple[LayerSpec, ...]) -> None:
    """Say what was taken for granted."""
    if text.model_type not in DECODERS:
        text.warnings.append(
            f"model_type '{text.model_type}' is not known: read as a generic decoder by its keys"
        )
    seen = "vision_config" if read_encoder(config) is None else "audio_config"
    if any(config.get(key) for key in (seen, "audio_config", "thinker_config")):
        text.warnings.append("text model only: encoders of other modalities are not counted")
    if text.get("hidden_size_per_layer_input"):
        text.warnings.append("per-layer embeddings and their gates are not counted")
    windows = {
        layer.mixer.window_tokens for layer in layers if isinstance(layer.mixer, SoftmaxAttention)
    } - {0}
    if text.get("attention_chunk_size") in windows:
        text.warnings.append("chunked attention is priced as a sliding window of the same size")
    if len(windows) > 1:
        listed = ", ".join(str(window) for window in sorted(windows))
        text.warnings.append(f"layers have windows of {listed}: all are priced as the widest")
    dtype = text.get("torch_dtype", "dtype")
    if dtype is None or str(dtype) == "float32":
        text.warnings.append(f"dtype is {dtype or 'not stated'}: weights taken as 16 bits")


def _layers(text: ConfigReader) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Return the layer kinds with their counts, in order of appearance, and each layer's kind."""
    pattern = text.get("hybrid_override_pattern")
    blocks = text.get("layers_block_type") if text.model_type == "nemotron_h" else None
    if blocks:
        pattern = "".join(_PARTS.get(block, "?") for block in blocks)
    kinds: dict[tuple[Mixer | None, Mlp | None], int] = {}
    order = []
    for index in range(max(1, text.count("num_hidden_layers"))):
        if pattern:
            letter = pattern[index] if index < len(pattern) else ""
            kind = _pattern_layer(text, index, letter)
        else:
            kind = (_mixer(text, index), parts.mlp(text, index))
        kinds[kind] = kinds.get(kind, 0) + 1
        order.append(kind)
    numbers = {kind: number for number, kind in enumerate(kinds)}
    layers = tuple(LayerSpec(mixer, mlp, count) for (mixer, mlp), count in kinds.items())
    return layers, tuple(numbers[kind] for kind in order)


def _pattern_layer(text: ConfigReader, index: int, letter: str) -> tuple[Mixer | None, Mlp | None]:
    """Nemotron-H: each layer is one part alone, M(amba2), * attention, - MLP or E(xperts)."""
    if letter == "M":
        return parts.mamba(text, index), None
    if letter == "*":
        return parts.softmax(text, index, 0), None
    if letter == "-":
        return None, parts.dense(text, index, text.count("intermediate_size"))
    if letter == "E":
        return None, parts.moe(text, index)
    message = f"layer {index} is {letter!r}; known: M * - E, one letter per layer."
    text.fault("hybrid_override_pattern", message)
    return None, None


def _mixer(text: ConfigReader, index: int) -> Mixer:
    if text.get("kv_lora_rank"):
        return parts.latent(text, index)
    kind, window = _layer_type(text, index)
    if kind == "linear_attention":
        return parts.gated_delta(text, index)
    if kind == "mamba":
        return parts.mamba(text, index)
    return parts.softmax(text, index, window)


def _layer_type(text: ConfigReader, index: int) -> tuple[str, int]:
    """Return what kind of mixer a layer has, and its window (0 for none) [tokens]."""
    window = text.count("sliding_window", default=0)
    if text.get("use_sliding_window") is False:
        window = 0
    if text.get("layer_types", "layers_block_type"):
        named = text.per_layer(index, "layer_types", "layers_block_type")
        return _named_type(text, named, window) if named else ("full_attention", 0)
    if text.get("attn_layer_period"):
        period, offset = text.count("attn_layer_period"), text.count("attn_layer_offset", default=0)
        return ("full_attention", window) if index % period == offset else ("mamba", 0)
    if text.get("attn_layer_indices"):
        return (
            ("full_attention", window) if index in text.get("attn_layer_indices") else ("mamba", 0)
        )
    if text.get("full_attention_interval"):
        full = (index + 1) % text.count("full_attention_interval") == 0
        return ("full_attention", window) if full else ("linear_attention", 0)
    chunk = text.count("attention_chunk_size", default=0)
    if chunk:
        marks = text.get("no_rope_layers")
        every = text.count("no_rope_layer_interval")
        full = not text.per_layer(index, "no_rope_layers") if marks else (index + 1) % every == 0
        return ("full_attention", 0) if full else ("chunked_attention", chunk)
    return "full_attention", _windowed(text, index, window)


def _windowed(text: ConfigReader, index: int, window: int) -> int:
    """Return the window of a layer by the pattern keys; every n-th layer sees everything."""
    pattern = text.get("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(pattern, str) and set(pattern) <= {"L", "G"}:
        return window if pattern[index % len(pattern)] == "L" else 0
    if pattern:
        every = text.count("sliding_window_pattern", "_sliding_window_pattern")
        return 0 if every and (index + 1) % every == 0 else window
    first_windowed = text.count("max_window_layers", default=0)
    return window if index >= first_windowed else 0


def _named_type(text: ConfigReader, name: str, window: int) -> tuple[str, int]:
    if name in ("full_attention", "linear_attention", "mamba"):
        return name, 0
    if name == "attention":
        return "full_attention", 0
    if name == "sliding_attention" and window:
        return name, window
    if name == "chunked_attention" and text.get("attention_chunk_size"):
        return name, text.count("attention_chunk_size")
    known = "full_attention, linear_attention, mamba, sliding_attention (with sliding_window)"
    text.fault("layer_types", f"'{name}' cannot be read.", f"Known: {known}.")
    return "full_attention", 0
