"""`ModelSpec`: the architecture of one language model, as far as cost and memory depend on it."""

from __future__ import annotations

from dataclasses import dataclass

from llmsim.core.errors import Fault, InputError
from llmsim.specs.cards import CardRow
from llmsim.specs.layers import (
    BF16,
    LatentAttention,
    LayerSpec,
    Linear,
    MoeMlp,
    RecurrentMixer,
    SoftmaxAttention,
    WeightFormat,
)
from llmsim.specs.vision import VisionEncoder

KV_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
"""Bytes of one KV cache entry by dtype [bytes]."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One decoder-only language model.

    Parameters
    ----------
    name : str
        Card name, or the path it was read from.
    source : str
        Where the facts come from.
    model_type : str
        HuggingFace ``model_type``.
    hidden, vocab : int [elements]
    layers : tuple of LayerSpec (kinds,)
        Distinct layer kinds with counts, in order of first appearance.
    tied_embeddings : bool
        Whether the LM head is the embedding.
    max_context_tokens : int [tokens]
        Longest context the model was made for; 0 when its file does not say.
    embedding_format, head_format : WeightFormat
    kv_dtype : str
        KV cache type that the checkpoint asks for: bf16 or fp8.
    draft_layers : int [layers]
        Multi-token-prediction layers in the checkpoint; engines load them for speculation alone,
        so only `draft_parameters` counts them.
    warnings : tuple of str
        What the parser took for granted.
    sources : tuple of CardRow
        All facts with their source.
    order : tuple of int (layer_count,)
        Which of `layers` each layer is, from the first on; empty where that is not known.
    has_embedding, has_head : bool
        Whether the input embedding, and the LM head, are here; a pipeline stage may lack them.
    encoder : VisionEncoder or None
        What turns images into tokens; its weights count nowhere here. None where that is not known.
    """

    name: str
    source: str
    model_type: str
    hidden: int
    vocab: int
    layers: tuple[LayerSpec, ...]
    tied_embeddings: bool
    max_context_tokens: int = 0
    embedding_format: WeightFormat = BF16
    head_format: WeightFormat = BF16
    kv_dtype: str = "bf16"
    draft_layers: int = 0
    warnings: tuple[str, ...] = ()
    sources: tuple[CardRow, ...] = ()
    order: tuple[int, ...] = ()
    has_embedding: bool = True
    has_head: bool = True
    encoder: VisionEncoder | None = None

    @property
    def layer_count(self) -> int:
        """All layers [layers]."""
        return sum(layer.count for layer in self.layers)

    @property
    def window_tokens(self) -> int:
        """Widest window of the windowed layers; 0 when no layer has one [tokens].

        One clipped sum prices all of them: with several widths the narrower ones are priced too
        dear, and `warnings` says so.
        """
        windows = {
            layer.mixer.window_tokens
            for layer in self.layers
            if isinstance(layer.mixer, SoftmaxAttention | LatentAttention)
        }
        return max(windows, default=0)

    def head(self, tp: int = 1) -> Linear:
        """Return the LM head on one rank, split over the vocabulary."""
        return Linear("lm_head", -(-self.vocab // tp), self.hidden, self.head_format)

    def embedding(self, tp: int = 1) -> Linear:
        """Return the embedding table on one rank, split over the vocabulary."""
        return Linear("embed", -(-self.vocab // tp), self.hidden, self.embedding_format)

    def _ends(self, tp: int) -> tuple[Linear, ...]:
        head = (self.head(tp),) if self.has_head else ()
        shared = self.tied_embeddings and self.has_head
        return head if shared or not self.has_embedding else (self.embedding(tp), *head)

    @property
    def total_parameters(self) -> int:
        """Weights of the language model, norms and biases left out (below 0.1%) [elements]."""
        inner = sum(
            layer.count * part.parameters
            for layer in self.layers
            for part in layer.linears(self.hidden, 1)
        )
        return inner + sum(part.parameters for part in self._ends(1))

    @property
    def active_parameters(self) -> int:
        """`total_parameters` less the routed experts that a token does not visit [elements]."""
        idle = 0
        for layer in self.layers:
            if isinstance(layer.mlp, MoeMlp):
                moe = layer.mlp
                routed = sum(part.parameters for part in moe.expert_linears(self.hidden, 1))
                idle += layer.count * routed * (moe.experts - moe.active_experts) // moe.experts
        return self.total_parameters - idle

    @property
    def draft_parameters(self) -> int:
        """Weights of the multi-token-prediction layers, shared embedding and head left out.

        Each is one more layer of the last kind and a projection of the two joined inputs
        (DeepSeek-V3 report, section 2.2) [elements].
        """
        if not self.draft_layers:
            return 0
        last = sum(part.parameters for part in self.layers[-1].linears(self.hidden, 1))
        return self.draft_layers * (last + 2 * self.hidden * self.hidden)

    def weight_bytes(
        self, tp: int = 1, expert_gpus: int | None = None, spare_experts: int = 0
    ) -> float:
        """Return the weights on one GPU, scales included [bytes].

        Parameters
        ----------
        tp : int [GPUs]
        expert_gpus : int or None [GPUs]
            How many share the routed experts; None for `tp`.
        spare_experts : int
            Copies of routed experts in each layer, on all these GPUs together.
        """
        inner = sum(
            layer.count * part.weight_bytes
            for layer in self.layers
            for part in layer.linears(self.hidden, tp)
        )
        if expert_gpus is not None and expert_gpus != tp:
            routed = sum(
                layer.count * part.weight_bytes
                for layer in self.layers
                if isinstance(layer.mlp, MoeMlp)
                for part in layer.mlp.expert_linears(self.hidden, 1)
            )
            inner += routed / expert_gpus - routed / tp
        if spare_experts:
            copied = sum(
                layer.count * part.weight_bytes / layer.mlp.experts
                for layer in self.layers
                if isinstance(layer.mlp, MoeMlp)
                for part in layer.mlp.expert_linears(self.hidden, 1)
            )
            inner += spare_experts * copied / (expert_gpus or tp)
        return inner + sum(part.weight_bytes for part in self._ends(tp))

    def kv_bytes_per_token(self, tp: int = 1, kv_dtype: str = "bf16") -> float:
        """Return the KV cache of one token on one rank, all attention layers unclipped [bytes].

        Raises
        ------
        InputError
            If `kv_dtype` is not in `KV_BYTES`.
        """
        return sum(
            layer.count * attention_kv_bytes(layer.mixer, tp, kv_dtype)
            for layer in self.layers
            if isinstance(layer.mixer, SoftmaxAttention | LatentAttention)
        )

    def state_bytes_per_sequence(self, tp: int = 1) -> float:
        """Return the recurrent state of one sequence on one rank [bytes]."""
        return sum(
            layer.count * layer.mixer.state_bytes(tp)
            for layer in self.layers
            if isinstance(layer.mixer, RecurrentMixer)
        )

    def rows(self) -> list[CardRow]:
        """Return (field, value, unit, source) of every fact, derived ones last."""
        derived = "derived from the rows above"
        return [
            *self.sources,
            CardRow("total_parameters", self.total_parameters, "1", derived),
            CardRow("active_parameters", self.active_parameters, "1", derived),
            CardRow("weights", self.weight_bytes(), "bytes", derived),
            CardRow(
                "kv_per_token",
                self.kv_bytes_per_token(kv_dtype=self.kv_dtype),
                "bytes/token",
                derived,
            ),
        ]


def attention_kv_bytes(mixer: SoftmaxAttention | LatentAttention, tp: int, kv_dtype: str) -> float:
    """Return the KV cache of one token in one layer on one rank [bytes].

    Parameters
    ----------
    mixer : SoftmaxAttention or LatentAttention
    tp : int [GPUs]
    kv_dtype : str
        A key of `KV_BYTES`.

    Raises
    ------
    InputError
        If `kv_dtype` is unknown.

    Notes
    -----
    The sparse indexer keeps one fp8 key and one fp32 scale per token (DeepSeek-V3.2 report).
    """
    if kv_dtype not in KV_BYTES:
        raise InputError(
            "kv_dtype", [Fault("", kv_dtype, f"unknown. Known: {', '.join(KV_BYTES)}.")]
        )
    size = mixer.kv_elements_per_token(tp) * KV_BYTES[kv_dtype]
    if isinstance(mixer, LatentAttention) and mixer.indexer:
        size += mixer.indexer.head_dim + 4
    return size
