"""A Llama-shaped decoder with random weights: real work, meaningless text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from llmsim.core.errors import Fault, InputError
from llmsim.specs.layers import DenseMlp, SoftmaxAttention
from llmsim.specs.model import ModelSpec

_ROPE_BASE = 500_000.0  # of Llama 3; the angles' values cost nothing
_NORM_EPS = 1e-5
_STD = 0.02  # of the weights: keeps activations finite through any number of layers


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a dense decoder.

    Parameters
    ----------
    layers, hidden, heads, kv_heads, head_dim, inter, vocab : int
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int

    @classmethod
    def of_model(cls, model: ModelSpec) -> DecoderShape:
        """Return the sizes of a model card.

        Raises
        ------
        InputError
            If the model is not Llama-shaped: one kind of layer, full softmax attention, gated MLP.
        """
        mixer, mlp = model.layers[0].mixer, model.layers[0].mlp
        plain = (
            len(model.layers) == 1
            and isinstance(mixer, SoftmaxAttention)
            and isinstance(mlp, DenseMlp)
            and not mixer.window_tokens
        )
        if not plain:
            message = "the reference engine runs dense Llama-shaped decoders only."
            raise InputError("reference engine", [Fault("", model.name, message)])
        assert isinstance(mixer, SoftmaxAttention)
        assert isinstance(mlp, DenseMlp)
        return cls(
            model.layer_count,
            model.hidden,
            mixer.heads,
            mixer.kv_heads,
            mixer.head_dim,
            mlp.intermediate,
            model.vocab,
        )

    @property
    def qkv_width(self) -> int:
        """Columns of the joined query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


class Attend(Protocol):
    """Writes new keys and values to the cache and attends to all of them."""

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Return the mix (tokens, heads, head_dim) of what q may see; k, v have KV heads."""
        ...


class Decoder:
    """The decoder; one forward pass serves prompts and decodes alike.

    Parameters
    ----------
    shape : DecoderShape
    device : torch.device
    dtype : torch.dtype
    max_tokens : int [tokens]
        Longest context, of which the rotary angles are tabled.
    seed : int
    """

    def __init__(
        self, shape: DecoderShape, device: Any, dtype: Any, max_tokens: int, seed: int = 0
    ) -> None:
        import torch

        self.shape = shape
        self.torch = torch
        generator = torch.Generator(device=device).manual_seed(seed)

        def random(*size: int) -> Any:
            values = torch.empty(size, device=device, dtype=dtype)
            return values.normal_(0.0, _STD, generator=generator)

        width = shape.heads * shape.head_dim
        self.embedding = random(shape.vocab, shape.hidden)
        self.head = random(shape.vocab, shape.hidden)
        self.qkv = [random(shape.qkv_width, shape.hidden) for _ in range(shape.layers)]
        self.out = [random(shape.hidden, width) for _ in range(shape.layers)]
        self.gate_up = [random(2 * shape.inter, shape.hidden) for _ in range(shape.layers)]
        self.down = [random(shape.hidden, shape.inter) for _ in range(shape.layers)]
        self.norm_weight = torch.ones(shape.hidden, device=device, dtype=dtype)
        half = shape.head_dim // 2
        steps = torch.arange(half, device=device, dtype=torch.float32) / half
        turns = torch.arange(max_tokens, device=device, dtype=torch.float32)
        angles = turns[:, None] * _ROPE_BASE ** -steps[None]
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, tokens: Any, positions: Any, sampled: Any, attend: Attend) -> Any:
        """Return the next token of each sampled row.

        Parameters
        ----------
        tokens, positions : Tensor (tokens,)
            Every new token of the step, request by request, and its place in its request.
        sampled : Tensor (rows,)
            Indices of the tokens whose logits are wanted.
        attend : callable

        Returns
        -------
        Tensor (rows,)
        """
        functional = self.torch.nn.functional
        shape = self.shape
        rest = self.embedding.index_select(0, tokens)
        cos, sin = self.cos.index_select(0, positions), self.sin.index_select(0, positions)
        x = self._norm(rest)
        for layer in range(shape.layers):
            heads = functional.linear(x, self.qkv[layer]).view(len(tokens), -1, shape.head_dim)
            turned = self._rope(heads[:, : shape.heads + shape.kv_heads], cos, sin)
            values = heads[:, shape.heads + shape.kv_heads :]
            mixed = attend(layer, turned[:, : shape.heads], turned[:, shape.heads :], values)
            rest = rest + functional.linear(mixed.reshape(len(tokens), -1), self.out[layer])
            rest = rest + self.feed_forward(layer, self._norm(rest))
            x = self._norm(rest)
        return functional.linear(x.index_select(0, sampled), self.head).argmax(-1)

    def feed_forward(self, layer: int, x: Any) -> Any:
        """Return the gated MLP of a layer."""
        functional = self.torch.nn.functional
        both = functional.linear(x, self.gate_up[layer])
        inner = functional.silu(both[:, : self.shape.inter]) * both[:, self.shape.inter :]
        return functional.linear(inner, self.down[layer])

    def _norm(self, x: Any) -> Any:
        norm = self.torch.nn.functional.rms_norm
        return norm(x, (self.shape.hidden,), self.norm_weight, _NORM_EPS)

    def _rope(self, heads: Any, cos: Any, sin: Any) -> Any:
        """Rotate the two halves of each head (the layout of Llama's HuggingFace weights)."""
        half = self.shape.head_dim // 2
        first, second = heads[..., :half], heads[..., half:]
        cos, sin = cos[:, None], sin[:, None]
        out = self.torch.empty_like(heads)
        out[..., :half] = first * cos - second * sin
        out[..., half:] = second * cos + first * sin
        return out
