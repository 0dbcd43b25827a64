"""What every kernel should return, in plain torch and fp32 or fp64: slow, short, obvious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def _softmax_values(q: Any, k: Any, v: Any, seen: Any) -> Any:
    """Return attention of (queries, heads, dim) to (keys, heads, dim); zeros where none is seen."""
    scores = torch.einsum("qhd,nhd->hqn", q.double(), k.double()) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hqn,nhd->qhd", weights, v.double()).float()


def paged_attention(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    page_table: Any,
    contexts: Sequence[int],
    new_tokens: Sequence[int],
    window: int = 0,
) -> Any:
    """Causal attention over a paged cache of numbers, request by request.

    Parameters
    ----------
    q : Tensor (new tokens of all requests, heads_q, dim)
    k_cache, v_cache : Tensor (pages, page, heads_kv, dim)
    page_table : Tensor (requests, pages of a request)
    contexts, new_tokens : sequence of int (requests,) [tokens]
        A context includes the new tokens.
    window : int [tokens]
        Tokens that each token sees, itself included; 0 for all.
    """
    group = q.shape[1] // k_cache.shape[2]
    outs, start = [], 0
    for request, (context, count) in enumerate(zip(contexts, new_tokens, strict=True)):
        pages = page_table[request].long()
        k, v = (
            cache[pages].flatten(0, 1)[:context].repeat_interleave(group, 1)
            for cache in (k_cache, v_cache)
        )
        key = torch.arange(context, device=q.device)[None]
        position = torch.arange(context - count, context, device=q.device)[:, None]
        seen = key <= position
        if window:
            seen = seen & (key > position - window)
        outs.append(_softmax_values(q[start : start + count], k, v, seen))
        start += count
    return torch.cat(outs)


def block_sparse_attention(
    q: Any, k: Any, v: Any, lists: Any, counts: Any, block: int, block_q: int
) -> Any:
    """Dense causal attention with the mask that the lists stand for; see `sparse_attention`."""
    batch, tokens_q, heads_q, _ = q.shape
    tokens_kv, group = k.shape[1], heads_q // k.shape[2]
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    key = torch.arange(tokens_kv, device=q.device)
    token = torch.arange(tokens_q, device=q.device)
    causal = key[None] <= (tokens_kv - tokens_q + token)[:, None]
    for request in range(batch):
        keys, values = (x[request].repeat_interleave(group, 1) for x in (k, v))
        seen = torch.zeros((heads_q, tokens_q, tokens_kv), dtype=torch.bool, device=q.device)
        for head in range(heads_q):
            owner = head // (heads_q // lists.shape[1])
            for tile in range(lists.shape[2]):
                count = int(counts[request, owner, tile])
                listed = torch.isin(key // block, lists[request, owner, tile, :count].long())
                seen[head, tile * block_q : (tile + 1) * block_q] = listed
        out[request] = _softmax_values(q[request], keys, values, seen & causal)
    return out


def unpacked_product(a: Any, levels: Any, scales: Any, bits: int) -> Any:
    """Return a times the transpose of ``(level - 2^(bits - 1)) * scale``; scales (k / 128, n)."""
    whole = levels.double() - 2 ** (bits - 1)
    return (a.double() @ (whole.T * scales.double().repeat_interleave(128, 0))).float()


def experts_one_by_one(x: Any, gate_up: Any, down: Any, routing: Any, experts_of: Any) -> Any:
    """Run every token's experts one by one; see `fused_moe`."""
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    inter = down.shape[2]
    for expert in range(gate_up.shape[0]):
        token, choice = torch.nonzero(experts_of == expert, as_tuple=True)
        both = x[token].double() @ gate_up[expert].double().T
        inner = torch.nn.functional.silu(both[:, :inter]) * both[:, inter:]
        result = inner @ down[expert].double().T
        out.index_add_(0, token, result * routing[token, choice].double()[:, None])
    return out.float()


def hadamard(order: int, device: Any) -> Any:
    """Return Sylvester's matrix of an order that is a power of two, made orthogonal."""
    matrix = torch.ones((1, 1), dtype=torch.float64, device=device)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / order**0.5


def rotated64(x: Any) -> Any:
    """Return blocks of 64 numbers times the Hadamard matrix."""
    return (x.double().unflatten(-1, (-1, 64)) @ hadamard(64, x.device)).flatten(-2).float()


def int4_numbers(cache: Any, terms: Any) -> Any:
    """Return the numbers of a 4-bit cache; see `paged_decode`."""
    levels = torch.cat([cache & 15, cache >> 4], -1).float()
    step, middle = terms.float().unbind(-1)
    return middle[..., None] + (levels - 8.0) * step[..., None]


def nearest_int4(x: Any) -> Any:
    """Return what 4 bits leave of each row: 16 levels from its least to its largest number."""
    least, largest = x.aminmax(dim=-1, keepdim=True)
    step = ((largest - least) / 15.0).half().float()
    middle = (least + 8.0 * step).half().float()
    level = torch.floor((x - middle) / step + 8.5).clamp(0.0, 15.0)
    return middle + (level - 8.0) * step


def quantised(x: Any, kind: str, group: int = 0) -> Any:
    """Return what is left of numbers after quantisation, as numbers; see `quantise`."""
    rows = x.float().unflatten(-1, (-1, group or x.shape[-1]))
    largest = 127.0 if kind == "int8" else 448.0
    size = rows.abs().amax(-1, keepdim=True)
    scale = torch.where(size > 0, size / largest, torch.ones_like(size))
    scaled = (rows / scale).clamp(-largest, largest)
    if kind == "int8":
        kept = torch.floor(scaled + 0.5)
    else:
        kept = scaled.to(torch.float8_e4m3fn).float()
    return (kept * scale).flatten(-2)


def rmsnorm(x: Any, weight: Any, residual: Any = None, epsilon: float = 1e-5) -> Any:
    """Return rows over the root of their mean square, times a weight."""
    total = x.double() if residual is None else x.double() + residual.double()
    mean = (total * total).mean(-1, keepdim=True)
    return (total * (mean + epsilon).rsqrt() * weight.double()).float()


def rotary(x: Any, cos: Any, sin: Any, positions: Any) -> Any:
    """Rotate the halves of (tokens, heads, dim) against each other."""
    first, second = x.double().chunk(2, -1)
    c, s = (table[positions.long()].double()[:, None] for table in (cos, sin))
    return torch.cat([first * c - second * s, second * c + first * s], -1).float()


def sampled(logits: Any, top_k: Any, top_p: Any, temperature: Any, uniform: Any) -> Any:
    """Draw tokens by sorting; ties with the last token kept are kept; see `sample`."""
    out = []
    for row, x in enumerate(logits.double()):
        k = int(top_k[row]) or len(x)
        order = x.argsort(descending=True, stable=True)
        kept = x >= x[order[min(k, len(x)) - 1]]
        odds = ((x - x.max()) / float(temperature[row])).exp() * kept
        share = odds[order].cumsum(0) / odds.sum()
        if float(top_p[row]) < 1.0:
            last = int(torch.searchsorted(share, float(top_p[row])))
            kept = kept & (x >= x[order[min(last, len(x) - 1)]])
        running = (odds * kept).cumsum(0)
        out.append(int(torch.searchsorted(running, float(uniform[row]) * running[-1], right=True)))
    return torch.tensor(out, dtype=torch.int32, device=logits.device)
