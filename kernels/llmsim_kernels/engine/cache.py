"""Paged KV and its attention: by torch on any device, by our Triton kernel for decodes on a GPU."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import Any

from llmsim_kernels.engine.model import DecoderShape
from llmsim_kernels.engine.scheduler import Slice


class PagedCache:
    """Keys and values of all layers, in blocks.

    Parameters
    ----------
    shape : DecoderShape
    blocks : int
        Usable ones; one more is for padded rows.
    block_tokens : int [tokens]
    device, dtype
        Of torch.

    Attributes
    ----------
    keys, values : list of Tensor (blocks + 1, block_tokens, kv_heads, head_dim)
        By layer.
    """

    def __init__(
        self, shape: DecoderShape, blocks: int, block_tokens: int, device: Any, dtype: Any
    ) -> None:
        import torch

        size = (blocks + 1, block_tokens, shape.kv_heads, shape.head_dim)
        self.block_tokens = block_tokens
        self.keys = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.layers)]

    def write(self, layer: int, slots: Any, k: Any, v: Any) -> None:
        """Store new keys and values.

        Parameters
        ----------
        layer : int
        slots : Tensor (tokens,)
            Place of each token: block times block size plus offset.
        k, v : Tensor (tokens, kv_heads, head_dim)
        """
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            cache.view(-1, *new.shape[1:]).index_copy_(0, slots, new)

    def gathered(self, layer: int, table: Any, tokens: int) -> tuple[Any, Any]:
        """Return the first `tokens` keys and values of one request, (tokens, kv_heads, dim)."""
        found = []
        for cache in (self.keys[layer], self.values[layer]):
            rows = cache.index_select(0, table)
            found.append(rows.view(-1, *rows.shape[2:])[:tokens])
        return found[0], found[1]


def kv_bytes_per_block(shape: DecoderShape, block_tokens: int, item_bytes: int) -> int:
    """Return the size of one block over all layers, keys and values [bytes]."""
    return 2 * shape.layers * block_tokens * shape.kv_heads * shape.head_dim * item_bytes


@dataclass
class StepAttention:
    """Attention of one step, request by request, with torch.

    Parameters
    ----------
    cache : PagedCache
    slots : Tensor (tokens,)
    parts : sequence of (int, int, Tensor)
        New tokens, tokens before, block table of each request, in the order of the tokens.
    """

    cache: PagedCache
    slots: Any
    parts: Series[tuple[int, int, Any]]

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Write k and v; return the mix that each query sees (tokens, heads, head_dim)."""
        self.cache.write(layer, self.slots, k, v)
        return self.attend(layer, q, 0)

    def attend(self, layer: int, q: Any, start: int) -> Any:
        """Attend to what is in the cache, from the token `start` on; earlier rows are not set."""
        import torch

        out = torch.empty_like(q)
        for new, past, table in self.parts:
            keys, values = self.cache.gathered(layer, table, past + new)
            mixed = _attend(q[start : start + new], keys, values, past)
            out[start : start + new] = mixed
            start += new
        return out


def _attend(q: Any, keys: Any, values: Any, past: int) -> Any:
    """Return causal attention of (new, heads, dim) behind `past` tokens."""
    import torch

    new = len(q)
    how: dict[str, Any] = {}
    if new > 1 and not past:
        how["is_causal"] = True
    elif new > 1 and q.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        how["attn_mask"] = causal_lower_right(new, past + new)
    elif new > 1:
        rows = torch.arange(new, device=q.device)[:, None]
        how["attn_mask"] = torch.arange(past + new, device=q.device)[None] <= rows + past
    mixed = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        enable_gqa=q.shape[1] != keys.shape[1],
        **how,
    )
    return mixed[0].transpose(0, 1)


def slots_of(part: Slice, block_tokens: int) -> list[int]:
    """Return where the new tokens of a slice are stored."""
    blocks = part.sequence.blocks
    return [
        blocks[at // block_tokens] * block_tokens + at % block_tokens
        for at in range(part.past, part.past + part.new)
    ]
