"""Block 4: prompts and decodes in one launch, which cost more than the decodes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from llmsim_kernels.profiler.blocks.prefill import causal_pairs
from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

CHUNKS = (128, 512, 2048)
DECODES = (8, 64)
CONTEXTS = (1024, 8192)
HEADS = ((32, 8), (64, 8))
"""Four and eight query heads for each KV head."""

HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class VarlenShape:
    """One launch over requests of different lengths.

    Parameters
    ----------
    requests : tuple of (int, int) [tokens]
        New tokens and tokens before, of each; a decode has one new token.
    heads_q, heads_kv, head_dim : int
    dtype : str
    window, page : int [tokens]
    pack : bool
        Whether the query heads of a KV head share a tile.
    """

    requests: tuple[tuple[int, int], ...]
    heads_q: int
    heads_kv: int
    head_dim: int
    dtype: str
    window: int = 0
    page: int = 16
    pack: bool = True


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return one prompt chunk beside some decodes, at every point of the grid."""
    for chunk, decodes, context, heads in product(CHUNKS, DECODES, CONTEXTS, HEADS):
        for pack in (True, False):
            yield mixed(plan, chunk, decodes, context, *heads, pack=pack)


def mixed(
    plan: Plan,
    chunk: int,
    decodes: int,
    context: int,
    heads_q: int,
    heads_kv: int,
    *,
    pack: bool = True,
) -> RowSpec:
    """Return the row of one chunk of `chunk` tokens beside `decodes` requests.

    Parameters
    ----------
    plan : Plan
    chunk : int [tokens]
    decodes : int [requests]
    context : int [tokens]
        Of each decode, its new token included.
    heads_q, heads_kv : int
    pack : bool
        Without, the decodes of a launch cost what engines that do not pack pay.
    """
    item = ITEM_BYTES[plan.dtype]
    pairs = causal_pairs(chunk, 0) + decodes * context
    cached = chunk + decodes * context
    kv_bytes = 2.0 * heads_kv * HEAD_DIM * cached * item
    own = 2.0 * heads_q * HEAD_DIM * (chunk + decodes) * item
    key: dict[str, Any] = {
        "op": "attention_mixed",
        "kernel_id": "triton.varlen_attention.v1",
        "dtype_a": plan.dtype,
        "dtype_kv": plan.dtype,
        "phase": "mixed",
        "batch": 1,
        "q_len": chunk,
        "kv_len": 0,
        "decode_batch": decodes,
        "decode_kv_len": context,
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "head_dim": HEAD_DIM,
        "page": 16,
        "variant": None if pack else "unpacked",
        "cold": True,
        "graph": plan.graph,
    }
    requests = ((chunk, 0), *((1, context - 1),) * decodes)
    shape = VarlenShape(requests, heads_q, heads_kv, HEAD_DIM, plan.dtype, pack=pack)
    return RowSpec(
        4,
        key,
        4.0 * heads_q * HEAD_DIM * pairs,
        kv_bytes + own,
        _build(shape),
        "triton",
        kv_bytes,
    )


def _build(shape: VarlenShape) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler.triton_calls import varlen_attention

        return varlen_attention(bench, shape)

    return build
