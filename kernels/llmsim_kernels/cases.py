"""Inputs for every kernel of the catalogue: random, seeded, paged through shuffled tables."""

from __future__ import annotations

from typing import Any

import torch

from llmsim_kernels.catalog import Case, Shape
from llmsim_kernels.ops import (
    fused_moe,
    kv_int4,
    paged_decode,
    quantise,
    reference,
    rmsnorm,
    rope_write,
    sampler,
    sparse_attention,
    varlen_attention,
    w4a16_gemm,
    wna16_gemm,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SEED = 20261125


class _Draw:
    """Random tensors on a device; drawn on the CPU, so that devices get the same."""

    def __init__(self, device: Any, dtype: str) -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.generator = torch.Generator().manual_seed(_SEED)

    def normal(self, *shape: int, scale: float = 1.0) -> Any:
        """Return normal numbers of the activations' type."""
        drawn = torch.randn(shape, generator=self.generator) * scale
        return drawn.to(self.device, self.dtype)

    def uniform(self, *shape: int) -> Any:
        """Return fp32 numbers from [0, 1)."""
        return torch.rand(shape, generator=self.generator).to(self.device)

    def integers(self, low: int, high: int, *shape: int, dtype: Any = torch.int32) -> Any:
        """Return whole numbers from `low` to `high` - 1."""
        drawn = torch.randint(low, high, shape, generator=self.generator)
        return drawn.to(self.device, dtype)

    def order(self, count: int) -> Any:
        """Return a permutation, int32."""
        return torch.randperm(count, generator=self.generator).to(self.device, torch.int32)

    def whole(self, numbers: Any) -> Any:
        """Return given whole numbers as an int32 tensor."""
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def paged(self, shape: Shape) -> tuple[Any, Any]:
        """Return a shuffled page table, with pages that no request owns, and the cache's shape."""
        each = -(-max(shape["contexts"]) // shape["page"])
        requests = len(shape["contexts"])
        pages = requests * each + 3
        table = self.order(pages)[: requests * each].view(requests, each).contiguous()
        return table, (pages, shape["page"], shape["heads_kv"], shape["head_dim"])


def paged_decode_case(draw: _Draw, shape: Shape) -> Case:
    """Decode attention over a cache of the activations' type, e4m3 or 4 bits."""
    table, size = draw.paged(shape)
    contexts = draw.whole(shape["contexts"])
    batch, longest = len(contexts), max(shape["contexts"])
    window = shape.get("window", 0)
    q = draw.normal(batch, shape["heads_q"], shape["head_dim"])
    caches = [draw.normal(*size) for _ in range(2)]
    numbers = caches
    options: dict[str, Any] = {}
    kind = shape.get("dtype_kv", "same")
    if kind == "fp8":
        caches = [cache.to(torch.float8_e4m3fn) for cache in caches]
        options = {"k_scale": 0.5, "v_scale": 2.0}
        numbers = [caches[0].float() * 0.5, caches[1].float() * 2.0]
    elif kind == "int4":
        half = (*size[:3], size[3] // 2)
        caches = [draw.integers(0, 256, *half, dtype=torch.uint8) for _ in range(2)]
        # steps near 0.4, so that 16 levels span what normal numbers do
        near = draw.whole([0]).new_tensor([0.4, 0.0], dtype=torch.float16)
        terms = [draw.normal(*size[:3], 2, scale=0.05).half() + near for _ in range(2)]
        options = {"k_terms": terms[0], "v_terms": terms[1]}
        numbers = [reference.int4_numbers(c, t) for c, t in zip(caches, terms, strict=True)]
    ones = [1] * batch
    (k, v), (keys, values) = caches, numbers
    return Case(
        lambda: paged_decode.paged_decode(
            q, k, v, table, contexts, longest, window=window, **options
        ),
        lambda: reference.paged_attention(q, keys, values, table, shape["contexts"], ones, window),
    )


def varlen_attention_case(draw: _Draw, shape: Shape) -> Case:
    """Prefills and decodes in one launch."""
    table, size = draw.paged(shape)
    new, window = shape["new"], shape.get("window", 0)
    q = draw.normal(sum(new), shape["heads_q"], shape["head_dim"])
    k, v = draw.normal(*size), draw.normal(*size)
    contexts = draw.whole(shape["contexts"])
    group = shape["heads_q"] // shape["heads_kv"]
    plan = varlen_attention.plan_batch(new, group, size[3], draw.device, pack=shape["pack"])
    return Case(
        lambda: varlen_attention.varlen_attention(q, k, v, table, contexts, plan, window=window),
        lambda: reference.paged_attention(q, k, v, table, shape["contexts"], new, window),
    )


def low_bit_gemm_case(draw: _Draw, shape: Shape) -> Case:
    """Weights of 2 to 8 bits, one scale for each group of 128."""
    m, n, k, bits = (shape[name] for name in ("m", "n", "k", "bits"))
    a = draw.normal(m, k)
    levels = draw.integers(0, 2**bits, n, k)
    words = wna16_gemm.pack_weights(levels, bits)
    scales = draw.uniform(k // w4a16_gemm.GROUP, n) + 0.5
    return Case(
        lambda: wna16_gemm.wna16_gemm(a, words, scales),
        lambda: reference.unpacked_product(a, levels, scales, bits),
    )


def w4a8_gemm_case(draw: _Draw, shape: Shape) -> Case:
    """4-bit weights and int8 activations."""
    m, n, k = (shape[name] for name in ("m", "n", "k"))
    a = draw.integers(-127, 128, m, k, dtype=torch.int8)
    a_scales = draw.uniform(m) * 0.01 + 0.01
    levels = draw.integers(0, 16, n, k)
    words = wna16_gemm.pack_weights(levels, 4, a8=True)
    scales = draw.uniform(k // w4a16_gemm.GROUP, n) * 0.01
    return Case(
        lambda: wna16_gemm.wna16_gemm(a, words, scales, a_scales=a_scales, dtype=draw.dtype),
        lambda: reference.unpacked_product(a.double() * a_scales[:, None], levels, scales, 4),
    )


def fused_moe_case(draw: _Draw, shape: Shape) -> Case:
    """Experts of every token; ``few`` leaves experts without tokens."""
    tokens, experts, topk = (shape[name] for name in ("tokens", "experts", "topk"))
    hidden, inter = shape["hidden"], shape["inter"]
    used = experts if shape["choose"] == "even" else topk + 1
    chosen = torch.stack([draw.order(used)[:topk] for _ in range(tokens)])
    x = draw.normal(tokens, hidden)
    gate_up = draw.normal(experts, 2 * inter, hidden, scale=hidden**-0.5)
    down = draw.normal(experts, hidden, inter, scale=inter**-0.5)
    routing = draw.uniform(tokens, topk) + 0.5
    return Case(
        lambda: fused_moe.fused_moe(x, gate_up, down, routing, chosen),
        lambda: reference.experts_one_by_one(x, gate_up, down, routing, chosen),
    )


def quantise_case(draw: _Draw, shape: Shape) -> Case:
    """Quantisation per token or per group; compared as the numbers that are left."""
    x = draw.normal(shape["tokens"], shape["hidden"], scale=3.0)
    group = shape.get("group", 0)

    def numbers(result: Any) -> Any:
        kept, scales = result
        return kept.float() * scales.repeat_interleave(x.shape[1] // scales.shape[1], 1)

    return Case(
        lambda: quantise.quantise(x, shape["kind"], group),
        lambda: reference.quantised(x, shape["kind"], group),
        numbers,
    )


def dequantise_case(draw: _Draw, shape: Shape) -> Case:
    """Numbers from quantised ones."""
    width = shape["hidden"]
    groups = width // shape.get("group", width)
    scales = draw.uniform(shape["tokens"], groups) + 0.5
    if shape["kind"] == "int8":
        x = draw.integers(-127, 128, shape["tokens"], width, dtype=torch.int8)
    else:
        x = draw.normal(shape["tokens"], width, scale=30.0).to(torch.float8_e4m3fn)
    return Case(
        lambda: quantise.dequantise(x, scales, draw.dtype),
        lambda: x.float() * scales.repeat_interleave(width // groups, 1),
    )


def hadamard64_case(draw: _Draw, shape: Shape) -> Case:
    """Rotation of blocks of 64 numbers."""
    x = draw.normal(shape["tokens"], shape["hidden"])
    return Case(lambda: kv_int4.rotate64(x), lambda: reference.rotated64(x))


def kv_write_int4_case(draw: _Draw, shape: Shape) -> Case:
    """Rotated 4-bit caches, read back as numbers and held to 16 even levels a row."""
    tokens, heads, dim, page = (shape[name] for name in ("tokens", "heads_kv", "head_dim", "page"))
    pages = -(-tokens // page) + 1
    x = draw.normal(tokens, heads, dim)
    slots = draw.order(pages * page)[:tokens].long()
    cache = torch.zeros((pages, page, heads, dim // 2), dtype=torch.uint8, device=draw.device)
    terms = torch.zeros((pages, page, heads, 2), dtype=torch.float16, device=draw.device)

    return Case(
        lambda: kv_int4.write_int4(x, slots, cache, terms),
        lambda: reference.nearest_int4(reference.rotated64(x)),
        lambda _: reference.int4_numbers(cache, terms).flatten(0, 1)[slots],
    )


def sparse_attention_case(draw: _Draw, shape: Shape) -> Case:
    """Prefill with lists per query head, decode with lists per KV head."""
    batch, heads_q, heads_kv = (shape[name] for name in ("batch", "heads_q", "heads_kv"))
    block, block_q, dim = shape["block"], shape["block_q"], shape["head_dim"]
    q = draw.normal(batch, shape["q_len"], heads_q, dim)
    k, v = (draw.normal(batch, shape["kv_len"], heads_kv, dim) for _ in range(2))
    owners = heads_kv if shape["q_len"] == 1 else heads_q
    blocks, tiles = -(-shape["kv_len"] // block), -(-shape["q_len"] // block_q)
    width = max(1, blocks // 2)
    lists = torch.stack([draw.order(blocks)[:width] for _ in range(batch * owners * tiles)])
    lists = lists.view(batch, owners, tiles, width)
    counts = draw.integers(1, width + 1, batch, owners, tiles)
    return Case(
        lambda: sparse_attention.sparse_attention(q, k, v, lists, counts, block, block_q),
        lambda: reference.block_sparse_attention(q, k, v, lists, counts, block, block_q),
    )


def rmsnorm_case(draw: _Draw, shape: Shape) -> Case:
    """RMS norm after the residual, quantised per token or not."""
    x, rest = (draw.normal(shape["tokens"], shape["hidden"]) for _ in range(2))
    weight, kind = draw.normal(shape["hidden"]), shape["kind"]

    def numbers(result: Any) -> Any:
        out, scales, _ = result
        return out if scales is None else out.float() * scales[:, None]

    def right() -> Any:
        out = reference.rmsnorm(x, weight, rest)
        return out if kind == "same" else reference.quantised(out, kind)

    return Case(lambda: rmsnorm.rmsnorm(x, weight, rest, kind=kind), right, numbers)


def rope_write_case(draw: _Draw, shape: Shape) -> Case:
    """Rotated queries, and the cache behind shuffled slots; every third token has none."""
    tokens, heads_q, heads_kv = (shape[name] for name in ("tokens", "heads_q", "heads_kv"))
    dim, page = shape["head_dim"], shape["page"]
    pages = -(-tokens // page) + 1
    qkv = draw.normal(tokens, heads_q + 2 * heads_kv, dim)
    angles = draw.uniform(64, dim // 2) * 6.3
    cos, sin = angles.cos(), angles.sin()
    positions = draw.integers(0, 64, tokens)
    slots = draw.order(pages * page)[:tokens].long()
    slots[1::3] = -1
    kept = slots >= 0
    cache = (pages, page, heads_kv, dim)
    kind = torch.float8_e4m3fn if shape["kind"] == "fp8" else draw.dtype

    k_cache, v_cache = (torch.zeros(cache, device=draw.device).to(kind) for _ in range(2))

    def numbers(q: Any) -> Any:
        return torch.cat([x.float().flatten() for x in (q, k_cache, v_cache)])

    def right() -> Any:
        turned = reference.rotary(qkv[:, : heads_q + heads_kv], cos, sin, positions)
        k, v = (torch.zeros(cache, device=draw.device).flatten(0, 1) for _ in range(2))
        k[slots[kept]] = turned[kept][:, heads_q:].to(kind).float()
        v[slots[kept]] = qkv[kept][:, heads_q + heads_kv :].to(kind).float()
        return torch.cat([turned[:, :heads_q].flatten(), k.flatten(), v.flatten()])

    return Case(
        lambda: rope_write.rope_write(qkv, cos, sin, positions, slots, k_cache, v_cache),
        right,
        numbers,
    )


def sampler_case(draw: _Draw, shape: Shape) -> Case:
    """Tokens drawn with limits that differ by row; the error is the share of rows that differ."""
    rows = shape["logit_rows"]
    logits = draw.normal(rows, shape["vocab"], scale=3.0)
    top_k = draw.whole([0, 1, 50, 200][:rows])
    top_p = draw.uniform(rows) * 0.5 + 0.5
    heat, uniform = draw.uniform(rows) + 0.5, draw.uniform(rows)
    return Case(
        lambda: sampler.sample(logits, top_k, top_p, heat, uniform),
        lambda: torch.ones(rows, device=draw.device),
        lambda found: found == reference.sampled(logits, top_k, top_p, heat, uniform),
    )


def make(builder: str, shape: Shape, device: str, dtype: str) -> Case:
    """Return the case that a builder named in the catalogue makes."""
    build = _BUILDERS[builder]
    return build(_Draw(device, dtype), shape)


_BUILDERS = {
    "paged_decode": paged_decode_case,
    "varlen_attention": varlen_attention_case,
    "low_bit_gemm": low_bit_gemm_case,
    "w4a8_gemm": w4a8_gemm_case,
    "fused_moe": fused_moe_case,
    "quantise": quantise_case,
    "dequantise": dequantise_case,
    "hadamard64": hadamard64_case,
    "kv_write_int4": kv_write_int4_case,
    "sparse_attention": sparse_attention_case,
    "rmsnorm": rmsnorm_case,
    "rope_write": rope_write_case,
    "sampler": sampler_case,
}
