"""What a model is made of, for showing: its weights by class, its layers in words."""

from __future__ import annotations

from dataclasses import dataclass

from llmsim.specs.layers import (
    DenseMlp,
    LatentAttention,
    Linear,
    Mixer,
    Mlp,
    MoeMlp,
    RecurrentMixer,
    SoftmaxAttention,
)
from llmsim.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class WeightClass:
    """All weights of one kind.

    Parameters
    ----------
    name : str
        Such as ``attention`` or ``routed experts``.
    parameters : int [elements]
    weight_bytes : float [bytes]
        Scales included.
    formats : tuple of str
        Formats of its matrices, in order of first appearance.
    """

    name: str
    parameters: int
    weight_bytes: float
    formats: tuple[str, ...]


def weight_classes(model: ModelSpec) -> tuple[WeightClass, ...]:
    """Return the weights of a model by class; they add up to its totals.

    Parameters
    ----------
    model : ModelSpec

    Returns
    -------
    tuple of WeightClass
        In order of first appearance; a tied LM head is the embedding.
    """
    found: dict[str, list[tuple[int, Linear]]] = {}
    if not model.tied_embeddings:
        found["embedding"] = [(1, model.embedding())]
    for layer in model.layers:
        for part in layer.mixer.linears(model.hidden, 1) if layer.mixer else ():
            found.setdefault(_mixer_class(layer.mixer, part), []).append((layer.count, part))
        for part in layer.mlp.linears(model.hidden, 1) if layer.mlp else ():
            found.setdefault(_mlp_class(layer.mlp, part), []).append((layer.count, part))
    head = "embedding = LM head" if model.tied_embeddings else "LM head"
    found[head] = [(1, model.head())]
    return tuple(
        WeightClass(
            name,
            sum(count * part.parameters for count, part in parts),
            sum(count * part.weight_bytes for count, part in parts),
            tuple(dict.fromkeys(part.format.name for _, part in parts)),
        )
        for name, parts in found.items()
    )


def _mixer_class(mixer: Mixer | None, part: Linear) -> str:
    if part.name.startswith("indexer"):
        return "indexer"
    return "recurrent mixers" if isinstance(mixer, RecurrentMixer) else "attention"


def _mlp_class(mlp: Mlp | None, part: Linear) -> str:
    if isinstance(mlp, DenseMlp):
        return "dense MLPs"
    if part.name == "router":
        return "router"
    return "routed experts" if part.name.startswith("expert_") else "shared experts"


def mixer_words(mixer: Mixer | None) -> str:
    """Return a mixer in a few words; attention as query/KV heads x width of a head."""
    if mixer is None:
        return "-"
    if isinstance(mixer, SoftmaxAttention):
        heads = f"attention {mixer.heads}/{mixer.kv_heads} x {mixer.head_dim}"
        window = f", window {mixer.window_tokens:,}" if mixer.window_tokens else ""
        return heads + window + (", reads another's KV" if mixer.reuses_cache else "")
    if isinstance(mixer, LatentAttention):
        sparse = f", top {mixer.indexer.topk_tokens:,}" if mixer.indexer else ""
        return f"latent {mixer.heads} heads, {mixer.kv_rank}+{mixer.rope_dim} KV{sparse}"
    states = f"{mixer.heads} x {mixer.head_dim} x {mixer.state_dim}"
    return f"{mixer.kind}, state {states}"


def mlp_words(mlp: Mlp | None) -> str:
    """Return an MLP in a few words; experts as active/all of their width + what is shared."""
    if mlp is None:
        return "-"
    if isinstance(mlp, MoeMlp):
        shared = f" + {mlp.shared_intermediate:,}" if mlp.shared_intermediate else ""
        return f"{mlp.active_experts}/{mlp.experts} experts of {mlp.intermediate:,}{shared}"
    return f"dense {mlp.intermediate:,}" + ("" if mlp.gated else ", not gated")
