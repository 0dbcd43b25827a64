"""Our Triton kernels as calls: operands, rotation, and the gate that each must pass first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmsim_kernels.catalog import LIMITS, find
from llmsim_kernels.profiler.plan import ITEM_BYTES
from llmsim_kernels.profiler.spec import Call
from llmsim_kernels.profiler.torchbench import TorchBench, in_turn

if TYPE_CHECKING:
    from llmsim_kernels.profiler.blocks.decode import DecodeShape
    from llmsim_kernels.profiler.blocks.mixed import VarlenShape


def gated(
    bench: TorchBench, calls: list[Callable[[], Any]], kernel_id: str, variant: str, dtype: str
) -> Call:
    """Return calls of a catalogued kernel, timed only once its check has passed here.

    Parameters
    ----------
    bench : TorchBench
    calls : list of callables
    kernel_id, variant : str
        Of `llmsim_kernels.catalog`.
    dtype : str
        Of the activations.
    """
    kernel = find(kernel_id, variant)
    gate = f"{kernel_id} {variant} {dtype}"
    return Call(calls, gate, lambda: kernel.check(str(bench.device), dtype), LIMITS[dtype])


def page_table(bench: TorchBench, contexts: tuple[int, ...], page: int) -> tuple[Any, int]:
    """Return scattered block tables (requests, blocks), int32, and how many blocks there are."""
    torch = bench.torch
    counts = [-(-context // page) for context in contexts]
    total = sum(counts)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(total)).to(torch.int32)
    table = torch.zeros((len(contexts), max(counts)), dtype=torch.int32)
    start = 0
    for row, count in enumerate(counts):
        table[row, :count] = order[start : start + count]
        start += count
    return table.to(bench.device), total


def paged_decode(bench: TorchBench, shape: DecodeShape) -> Call:
    """Return calls of the paged decode kernel, each on KV of its own."""
    from llmsim_kernels.ops.paged_decode import KERNEL_ID, paged_decode

    torch = bench.torch
    table, pages = page_table(bench, shape.contexts, shape.page)
    contexts = torch.tensor(shape.contexts, dtype=torch.int32, device=bench.device)
    q = bench.warm((len(shape.contexts), shape.heads_q, shape.head_dim), shape.dtype)
    copies = bench.copies(shape.kv_bytes)
    longest = max(shape.contexts)
    cache = (2, pages, shape.page, shape.heads_kv, shape.head_dim)
    if shape.dtype_kv == "int4":
        packed = bench.rotated((*cache[:-1], shape.head_dim // 2), "int8", copies)
        terms = bench.rotated((*cache[:-1], 2), "fp16", copies)

        def low(operands: tuple[Any, Any]) -> Any:
            kv, term = operands[0].view(torch.uint8), operands[1]
            return paged_decode(
                q,
                kv[0],
                kv[1],
                table,
                contexts,
                longest,
                window=shape.window,
                k_terms=term[0],
                v_terms=term[1],
            )

        calls = in_turn(low, list(zip(packed, terms, strict=True)))
    else:

        def plain(kv: Any) -> Any:
            return paged_decode(q, kv[0], kv[1], table, contexts, longest, window=shape.window)

        calls = in_turn(plain, bench.rotated(cache, shape.dtype_kv, copies))
    same = shape.dtype_kv == shape.dtype
    kind = f"kv {'same' if same else shape.dtype_kv}"
    return gated(bench, calls, KERNEL_ID, kind, shape.dtype)


def varlen_attention(bench: TorchBench, shape: VarlenShape) -> Call:
    """Return calls of the kernel that serves prompts and decodes in one launch."""
    from llmsim_kernels.ops.varlen_attention import KERNEL_ID, plan_batch, varlen_attention

    torch = bench.torch
    lengths = tuple(new + past for new, past in shape.requests)
    table, pages = page_table(bench, lengths, shape.page)
    contexts = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
    new_tokens = [new for new, _ in shape.requests]
    cut = plan_batch(
        new_tokens, shape.heads_q // shape.heads_kv, shape.head_dim, bench.device, pack=shape.pack
    )
    q = bench.warm((sum(new_tokens), shape.heads_q, shape.head_dim), shape.dtype)
    cache = (2, pages, shape.page, shape.heads_kv, shape.head_dim)
    size = 2 * sum(lengths) * shape.heads_kv * shape.head_dim * ITEM_BYTES[shape.dtype]

    def call(kv: Any) -> Any:
        return varlen_attention(q, kv[0], kv[1], table, contexts, cut, window=shape.window)

    caches = bench.rotated(cache, shape.dtype, bench.copies(size))
    kind = "packed" if shape.pack else "unpacked"
    return gated(bench, in_turn(call, caches), KERNEL_ID, kind, shape.dtype)


def weight_only_gemm(
    bench: TorchBench, m: int, n: int, k: int, bits: int, group: int, dtype: str
) -> Call:
    """Return calls of the GEMM with low-bit weights."""
    from llmsim_kernels.ops.wna16_gemm import KERNEL_ID, wna16_gemm

    torch = bench.torch
    copies = bench.copies(n * k * bits / 8)
    words = bench.rotated((k // 32, bits, n, 4), "int8", copies)  # any bits are weights
    scales = bench.rotated((k // group, n), dtype, copies)
    a = bench.warm((m, k), dtype)

    def call(operands: tuple[Any, Any]) -> Any:
        packed = operands[0].view(torch.int32).squeeze(-1)
        return wna16_gemm(a, packed, operands[1])

    calls = in_turn(call, list(zip(words, scales, strict=True)))
    return gated(bench, calls, KERNEL_ID, f"w{bits}a16", dtype)


def w4a8_gemm(bench: TorchBench, m: int, n: int, k: int, group: int, dtype: str) -> Call:
    """Return calls of the GEMM of int8 activations and 4-bit weights."""
    from llmsim_kernels.ops.wna16_gemm import A8_ID, wna16_gemm

    torch = bench.torch
    copies = bench.copies(n * k / 2)
    words = bench.rotated((k // 32, 4, n, 4), "int8", copies)
    scales = bench.rotated((k // group, n), dtype, copies)
    a = bench.warm((m, k), "int8")
    steps = torch.full((m,), 0.01, dtype=torch.float32, device=bench.device)

    def call(operands: tuple[Any, Any]) -> Any:
        packed = operands[0].view(torch.int32).squeeze(-1)
        return wna16_gemm(a, packed, operands[1], a_scales=steps, dtype=bench.dtypes[dtype])

    calls = in_turn(call, list(zip(words, scales, strict=True)))
    return gated(bench, calls, A8_ID, "w4a8", dtype)


def fused_moe(
    bench: TorchBench,
    draws: list[Any],
    experts: int,
    hidden: int,
    inter: int,
    dtype: str,
    of_experts: int = 0,
) -> Call:
    """Return calls of the fused expert layer, each with another draw of experts.

    Parameters
    ----------
    bench : TorchBench
    draws : list of Tensor (tokens, topk)
    experts, hidden, inter : int
        Experts on this GPU.
    dtype : str
    of_experts : int
        Experts of all GPUs; 0 where this one holds them all.
    """
    from llmsim_kernels.ops.fused_moe import KERNEL_ID, fused_moe

    torch = bench.torch
    tokens, topk = draws[0].shape
    gate_up = bench.rotated((experts, 2 * inter, hidden), dtype, 1)[0]
    down = bench.rotated((experts, hidden, inter), dtype, 1)[0]
    x = bench.warm((tokens, hidden), dtype)
    routing = torch.full((tokens, topk), 1.0 / topk, dtype=torch.float32, device=bench.device)
    chosen = [draw.to(torch.int32) for draw in draws]

    def call(ids: Any) -> Any:
        return fused_moe(x, gate_up, down, routing, ids, of_experts=of_experts)

    return gated(bench, in_turn(call, chosen), KERNEL_ID, "even", dtype)


def fused_norm(bench: TorchBench, tokens: int, width: int, dtype: str) -> Call:
    """Return calls of residual addition and norm in one kernel."""
    from llmsim_kernels.ops.rmsnorm import KERNEL_ID, rmsnorm

    x, rest = bench.warm((tokens, width), dtype), bench.warm((tokens, width), dtype)
    weight = bench.warm((width,), dtype)
    return gated(bench, [lambda: rmsnorm(x, weight, rest)], KERNEL_ID, "same", dtype)


def quantise(bench: TorchBench, tokens: int, width: int, dtype: str) -> Call:
    """Return calls of quantisation to fp8, one scale per token."""
    from llmsim_kernels.ops.quantise import KERNEL_ID, quantise

    x = bench.warm((tokens, width), dtype)
    return gated(bench, [lambda: quantise(x, "fp8")], KERNEL_ID, "fp8", dtype)


def sample(bench: TorchBench, logits: Any, top_k: int, top_p: float) -> Call:
    """Return calls of the top-k and top-p sampler."""
    from llmsim_kernels.ops.sampler import KERNEL_ID, sample

    torch = bench.torch
    rows = len(logits)
    full = {"device": bench.device}
    k = torch.full((rows,), top_k, dtype=torch.int32, **full)
    p = torch.full((rows,), top_p, dtype=torch.float32, **full)
    heat = torch.ones((rows,), dtype=torch.float32, **full)
    draws = torch.rand((rows,), **full)
    calls: list[Callable[[], Any]] = [lambda: sample(logits, k, p, heat, draws)]
    return gated(bench, calls, KERNEL_ID, "top-k top-p", "fp32")
