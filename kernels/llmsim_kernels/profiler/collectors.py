"""Decode attention of serving engines, where they are installed: rows beside those of our kernel.

Each is checked against the same reference as ours before it is timed, so that a library whose
interface has changed gives an error row, not a wrong time.

References
----------
flashinfer, `BatchDecodeWithPagedKVCacheWrapper`: https://docs.flashinfer.ai/api/decode.html
vLLM's fork of FlashAttention, `flash_attn_varlen_func` with a block table:
https://github.com/vllm-project/flash-attention
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmsim_kernels.catalog import LIMITS
from llmsim_kernels.profiler.spec import Call
from llmsim_kernels.profiler.torchbench import TorchBench, in_turn
from llmsim_kernels.profiler.triton_calls import page_table

if TYPE_CHECKING:
    from llmsim_kernels.profiler.blocks.decode import DecodeShape

_WORKSPACE_BYTES = 128 << 20  # that flashinfer's documentation recommends


@dataclass(frozen=True, slots=True)
class Paged:
    """What a paged decode needs beside keys and values.

    Parameters
    ----------
    q : Tensor (batch, heads_q, head_dim)
    table : Tensor (batch, blocks), int32
    contexts : Tensor (batch,), int32 [tokens]
    """

    q: Any
    table: Any
    contexts: Any


Maker = Callable[[TorchBench, "DecodeShape", Paged], Callable[[Any], Any]]
"""Returns a function from (2, pages, page, heads_kv, head_dim) to (batch, heads_q, head_dim)."""


def _flashinfer(bench: TorchBench, shape: DecodeShape, paged: Paged) -> Callable[[Any], Any]:
    torch = bench.torch
    library = importlib.import_module("flashinfer")
    space = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=bench.device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(space, "NHD")
    counts = [-(-context // shape.page) for context in shape.contexts]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    pages = torch.cat([row[:count] for row, count in zip(paged.table, counts, strict=True)])
    last = [
        context - (count - 1) * shape.page
        for context, count in zip(shape.contexts, counts, strict=True)
    ]
    ints = {"dtype": torch.int32, "device": bench.device}
    wrapper.plan(
        torch.tensor(starts, **ints),
        pages,
        torch.tensor(last, **ints),
        shape.heads_q,
        shape.heads_kv,
        shape.head_dim,
        shape.page,
        q_data_type=paged.q.dtype,
        kv_data_type=bench.dtypes[shape.dtype_kv],
    )
    return lambda kv: wrapper.run(paged.q, (kv[0], kv[1]))


def _vllm(bench: TorchBench, shape: DecodeShape, paged: Paged) -> Callable[[Any], Any]:
    torch = bench.torch
    attend = importlib.import_module("vllm.vllm_flash_attn").flash_attn_varlen_func
    starts = torch.arange(len(shape.contexts) + 1, dtype=torch.int32, device=bench.device)

    def call(kv: Any) -> Any:
        return attend(
            paged.q,
            kv[0],
            kv[1],
            max_seqlen_q=1,
            cu_seqlens_q=starts,
            max_seqlen_k=max(shape.contexts),
            seqused_k=paged.contexts,
            causal=True,
            block_table=paged.table,
        )

    return call


COLLECTORS: Mapping[str, tuple[str, Maker]] = {
    "flashinfer.batch_decode": ("flashinfer", _flashinfer),
    "vllm.flash_attn_varlen": ("vllm", _vllm),
}
"""Kernel id to the package that it comes from and what makes its calls."""


def importable() -> list[str]:
    """Return the kernel ids whose packages are installed."""
    return [
        kernel_id
        for kernel_id, (package, _) in COLLECTORS.items()
        if importlib.util.find_spec(package) is not None
    ]


def paged_decode(bench: TorchBench, shape: DecodeShape, kernel_id: str) -> Call:
    """Return calls of another library's paged decode, each on KV of its own.

    Parameters
    ----------
    bench : TorchBench
    shape : DecodeShape
    kernel_id : str
        Of `COLLECTORS`.
    """
    cache, _, function = _made(bench, shape, kernel_id)
    caches = bench.rotated(cache, shape.dtype_kv, bench.copies(shape.kv_bytes))
    gate = f"{kernel_id} {shape.dtype}"
    return Call(
        in_turn(function, caches),
        gate,
        lambda: _error(bench, shape, kernel_id),
        LIMITS[shape.dtype],
    )


def _made(
    bench: TorchBench, shape: DecodeShape, kernel_id: str
) -> tuple[tuple[int, ...], Paged, Callable[[Any], Any]]:
    """Return the shape of the cache, what else attention needs, and the function that attends."""
    torch = bench.torch
    table, pages = page_table(bench, shape.contexts, shape.page)
    contexts = torch.tensor(shape.contexts, dtype=torch.int32, device=bench.device)
    # queries of size 1: with smaller ones all tokens weigh the same, and a wrong order would pass
    q = 10.0 * bench.warm((len(shape.contexts), shape.heads_q, shape.head_dim), shape.dtype)
    maker = COLLECTORS[kernel_id][1]
    cache = (2, pages, shape.page, shape.heads_kv, shape.head_dim)
    paged = Paged(q, table, contexts)
    return cache, paged, maker(bench, shape, paged)


def _error(bench: TorchBench, shape: DecodeShape, kernel_id: str) -> float:
    """Return the larger error norm of two small batches against plain torch."""
    from llmsim_kernels.ops import reference

    worst = 0.0
    for contexts in ((5, 131, 64), (700, 1)):
        small = replace(shape, contexts=contexts)
        cache, paged, function = _made(bench, small, kernel_id)
        keys, values = 10.0 * bench.rotated(cache, shape.dtype_kv, 1)[0]
        found = function((keys, values)).double()
        ones = [1] * len(contexts)
        right = reference.paged_attention(
            paged.q, keys, values, paged.table, contexts, ones
        ).double()
        worst = max(worst, float((found - right).norm() / right.norm()))
    return worst
