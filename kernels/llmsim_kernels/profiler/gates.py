"""The check that a Triton kernel must pass before it is timed: its reference, at two shapes.

Each returns the larger error norm, ``|got - wanted| / |wanted|``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmsim_kernels.profiler.torchbench import TorchBench


def _error(got: Any, wanted: Any) -> float:
    got, wanted = got.double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm())


def _paged(
    bench: TorchBench, lengths: list[int], heads_kv: int, dim: int, dtype: str
) -> tuple[Any, Any, Any]:
    """Return keys, values and a scattered table for requests of these lengths."""
    from llmsim_kernels.profiler.triton_calls import page_table

    table, pages = page_table(bench, tuple(lengths), 16)
    caches = bench.rotated((pages, 16, heads_kv, dim), dtype, 2)
    return caches[0], caches[1], table


def paged_decode(bench: TorchBench, dtype: str, dtype_kv: str) -> float:
    """Check decode attention: a short and a split context, four and eight heads a group."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.paged_decode import paged_decode

    torch, worst = bench.torch, 0.0
    for lengths, heads_q, heads_kv in (([7, 130, 33], 8, 2), ([700, 1], 8, 1)):
        q = bench.warm((len(lengths), heads_q, 64), dtype) * 10.0
        contexts = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
        terms: dict[str, Any] = {}
        if dtype_kv == "int4":
            packed = _paged(bench, lengths, heads_kv, 32, "int8")
            k, v, table = packed[0].view(torch.uint8), packed[1].view(torch.uint8), packed[2]
            steps = [bench.warm((*k.shape[:3], 2), "fp16") for _ in range(2)]
            terms = {"k_terms": steps[0], "v_terms": steps[1]}
            keys, values = (
                reference.int4_numbers(x, t) for x, t in zip((k, v), steps, strict=True)
            )
        else:
            k, v, table = _paged(bench, lengths, heads_kv, 64, dtype_kv)
            keys, values = k.float(), v.float()
        got = paged_decode(q, k, v, table, contexts, max(lengths), **terms)
        wanted = reference.paged_attention(q, keys, values, table, lengths, [1] * len(lengths))
        worst = max(worst, _error(got, wanted))
    return worst


def varlen_attention(bench: TorchBench, dtype: str, pack: bool) -> float:
    """Check mixed attention: a prompt, a chunk behind a history and decodes; with a window."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.varlen_attention import plan_batch, varlen_attention

    torch, worst = bench.torch, 0.0
    for news, lengths, window in (([40, 1, 20], [40, 77, 90], 0), ([33, 1], [50, 40], 16)):
        q = bench.warm((sum(news), 8, 64), dtype) * 10.0
        k, v, table = _paged(bench, lengths, 2, 64, dtype)
        contexts = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
        cut = plan_batch(news, 4, 64, bench.device, pack=pack)
        got = varlen_attention(q, k, v, table, contexts, cut, window=window)
        wanted = reference.paged_attention(q, k, v, table, lengths, news, window)
        worst = max(worst, _error(got, wanted))
    return worst


def weight_only_gemm(bench: TorchBench, dtype: str, bits: int) -> float:
    """Check the low-bit GEMM: few rows (split over k) and more."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.wna16_gemm import pack_weights, wna16_gemm

    worst = 0.0
    for m, n, k in ((3, 64, 256), (48, 128, 128)):
        levels = bench.integers((n, k), 2**bits)
        a, scales = bench.warm((m, k), dtype), bench.warm((k // 128, n), dtype)
        got = wna16_gemm(a, pack_weights(levels, bits), scales)
        worst = max(worst, _error(got, reference.unpacked_product(a, levels, scales, bits)))
    return worst


def fused_moe(bench: TorchBench, dtype: str) -> float:
    """Check the expert layer: one token, and enough for several blocks of one expert."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.fused_moe import fused_moe

    torch, worst = bench.torch, 0.0
    for tokens, experts, topk in ((1, 8, 2), (70, 4, 2)):
        x = bench.warm((tokens, 64), dtype) * 10.0
        gate_up = bench.rotated((experts, 128, 64), dtype, 1)[0] * 5.0
        down = bench.rotated((experts, 64, 64), dtype, 1)[0] * 5.0
        ids = torch.stack(
            [torch.randperm(experts, device=bench.device)[:topk] for _ in range(tokens)]
        ).to(torch.int32)
        routing = torch.rand((tokens, topk), device=bench.device)
        got = fused_moe(x, gate_up, down, routing, ids)
        wanted = reference.experts_one_by_one(x, gate_up, down, routing, ids)
        worst = max(worst, _error(got, wanted))
    return worst


def fused_norm(bench: TorchBench, dtype: str) -> float:
    """Check residual and norm at a width that is a power of two and one that is not."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.rmsnorm import rmsnorm

    worst = 0.0
    for tokens, width in ((3, 256), (5, 640)):
        x, rest = bench.warm((tokens, width), dtype), bench.warm((tokens, width), dtype)
        weight = bench.warm((width,), dtype)
        got, _, total = rmsnorm(x, weight, rest)
        worst = max(worst, _error(got, reference.rmsnorm(x, weight, rest)))
        worst = max(worst, _error(total, x.float() + rest.float()))
    return worst


def quantise(bench: TorchBench, dtype: str) -> float:
    """Check quantisation to fp8 at two widths."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.quantise import quantise

    worst = 0.0
    for tokens, width in ((3, 256), (5, 640)):
        x = bench.warm((tokens, width), dtype)
        numbers, scales = quantise(x, "fp8")
        worst = max(worst, _error(numbers.float() * scales, reference.quantised(x, "fp8")))
    return worst


def sampler(bench: TorchBench) -> float:
    """Return the share of rows where the sampler draws another token than sorting does."""
    from llmsim_kernels.ops import reference
    from llmsim_kernels.ops.sampler import sample

    wrong = rows = 0
    for top_k, top_p, vocab in _sampler_cases():
        torch, full = bench.torch, {"device": bench.device}
        logits = torch.randn((4, vocab), **full) * 3.0
        k = torch.full((4,), top_k, dtype=torch.int32, **full)
        p = torch.full((4,), top_p, dtype=torch.float32, **full)
        heat, uniform = torch.ones(4, **full), torch.tensor([0.1, 0.35, 0.6, 0.85], **full)
        got = sample(logits, k, p, heat, uniform)
        wrong += int((got != reference.sampled(logits, k, p, heat, uniform)).sum())
        rows += 4
    # a draw may fall between two tokens whose sums differ by rounding: once in a while
    return 0.0 if wrong <= 1 else wrong / rows


def _sampler_cases() -> Iterator[tuple[int, float, int]]:
    yield 20, 0.9, 1000
    yield 0, 0.8, 257
