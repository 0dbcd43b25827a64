"""What turns images into tokens of a prompt: a model's vision encoder, as layers of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmsim.specs.layers import DenseMlp, LayerSpec, SoftmaxAttention

if TYPE_CHECKING:
    from llmsim.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class VisionEncoder:
    """A vision transformer over the patches of one image.

    Parameters
    ----------
    layers : int [layers]
    hidden, intermediate : int [elements]
    heads : int
    patches_per_token : int [patches]
        How many become one token of the prompt.
    mergers : int
        Times that patches are joined into tokens: at the end, and at inner layers (DeepStack).
    out_hidden : int [elements]
        Width of the language model; 0 where nothing is said of how patches are joined.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    patches_per_token: int
    mergers: int = 0
    out_hidden: int = 0

    def as_model(self, of: ModelSpec) -> ModelSpec:
        """Return the encoder as a model without embedding and head, for the cost model.

        Parameters
        ----------
        of : ModelSpec
            Whose encoder it is.

        Notes
        -----
        A merger has two matrices, over all patches of a token at once: ``(p H)^2`` and ``p H D``.
        It counts as an MLP that does as many FLOPs for each patch; its weights count less by p.
        The patch embedding (0.4% of the FLOPs in Qwen3-VL) is left out.
        """
        attention = SoftmaxAttention(self.heads, self.heads, self.hidden // self.heads)
        mlp = DenseMlp(self.intermediate, gated=False)
        layers = [LayerSpec(attention, mlp, self.layers)]
        if self.mergers and self.out_hidden:
            wide = self.patches_per_token * self.hidden
            width = wide * (wide + self.out_hidden) // (self.patches_per_token * 2 * self.hidden)
            layers.append(LayerSpec(None, DenseMlp(width, gated=False), self.mergers))
        kind = type(of)
        return kind(
            name=f"{of.name} (vision encoder)",
            source=of.source,
            model_type="vision_encoder",
            hidden=self.hidden,
            vocab=1,
            layers=tuple(layers),
            tied_embeddings=False,
            has_embedding=False,
            has_head=False,
        )


def read_encoder(config: Mapping[str, Any]) -> VisionEncoder | None:
    """Return the vision encoder that a config describes; None where its keys do not say enough.

    Parameters
    ----------
    config : mapping
        The parsed ``config.json``, whose ``vision_config`` is read. ``spatial_merge_size`` (Qwen)
        and ``pooling_kernel_size`` (Gemma 4) are edges of a square of patches; only the former
        has mergers.
    """
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return None

    def first(*names: str) -> int:
        found = next((vision[name] for name in names if vision.get(name) is not None), 0)
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0

    layers, hidden = first("depth", "num_hidden_layers"), first("hidden_size")
    intermediate, heads = first("intermediate_size"), first("num_heads", "num_attention_heads")
    merge, pool = first("spatial_merge_size"), first("pooling_kernel_size")
    edge = merge or pool
    if not (layers and hidden and intermediate and heads and edge) or hidden % heads:
        return None
    inner = vision.get("deepstack_visual_indexes")
    mergers = (1 + len(inner) if isinstance(inner, list) else 1) if merge else 0
    out = first("out_hidden_size") if merge else 0
    return VisionEncoder(layers, hidden, intermediate, heads, edge * edge, mergers, out)
