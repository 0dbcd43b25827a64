"""Block 6: routed experts, evenly loaded and by a power law, all of them or those of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from llmsim.specs.layers import MoeMlp
from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

LAYERS = ((8, 2, 4096, 14336), (64, 6, 2048, 1408), (128, 8, 2048, 768))
"""(experts, top-k, hidden, width of an expert): Mixtral-8x7B, DeepSeek-V2-Lite, Qwen3-30B-A3B."""

TOKENS = (1, 8, 32, 128, 512, 2048, 8192)
SKEWS = (0.0, 1.2)
"""Exponent of the power law of the experts' load; 0 is even."""

SPREAD = 128
"""Layers of so many experts are also timed as expert parallelism deals them out."""
RANKS = (4, 8)
"""GPUs that the experts are dealt out to."""


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return the grid, and the model's own expert layer."""
    layers = [*LAYERS]
    if plan.model is not None:
        for layer in plan.model.layers:
            if isinstance(layer.mlp, MoeMlp):
                mlp = layer.mlp
                layers.append(
                    (mlp.experts, mlp.active_experts, plan.model.hidden, mlp.intermediate)
                )
    for (experts, topk, hidden, inter), skew, tokens in product(
        dict.fromkeys(layers), SKEWS, TOKENS
    ):
        yield moe(plan, experts, topk, hidden, inter, tokens, skew=skew)
    for (experts, topk, hidden, inter), ranks, tokens in product(
        dict.fromkeys(layers), RANKS, TOKENS
    ):
        if experts >= SPREAD and experts % ranks == 0:
            yield moe(plan, experts, topk, hidden, inter, tokens, ranks=ranks)


def moe(
    plan: Plan,
    experts: int,
    topk: int,
    hidden: int,
    inter: int,
    tokens: int,
    *,
    skew: float = 0.0,
    ranks: int = 1,
    block: int = 6,
    holdout: bool = False,
) -> RowSpec:
    """Return the row of an expert layer, router left out, permutation included.

    Parameters
    ----------
    plan : Plan
    experts, topk : int
    hidden, inter : int
    tokens : int
    skew : float
        Exponent of the power law of the load.
    ranks : int
        GPUs that the experts are dealt out to; this one has the first share of them, and sees the
        tokens of all.
    block : int
    holdout : bool

    Notes
    -----
    FLOPs 6 H I per token and expert; bytes: weights of the distinct experts expected under even
    routing, ``E (1 - (1 - k/E)^T)``, and the activations in and out.
    """
    item = ITEM_BYTES[plan.dtype]
    local = experts // ranks
    hit = local * (1.0 - (1.0 - topk / experts) ** tokens)
    pairs = tokens * topk / ranks
    moved = 3.0 * hidden * inter * item * hit + item * pairs * (2.0 * hidden + 3.0 * inter)
    key: dict[str, Any] = {
        "op": "moe",
        "kernel_id": "triton.fused_moe.v1" if plan.on_gpu else "torch.experts_loop",
        "dtype_a": plan.dtype,
        "dtype_w": plan.dtype,
        "tokens": tokens,
        "hidden": hidden,
        "inter": inter,
        "topk": topk,
        "experts": experts,
        "experts_local": local,
        "skew": skew,
        "cold": True,
        "graph": plan.graph,
    }
    layer = _Layer(experts, local, topk, hidden, inter)
    build = _fused(plan, layer, tokens, skew) if plan.on_gpu else _loop(plan, layer, tokens, skew)
    return RowSpec(
        block,
        key,
        6.0 * hidden * inter * pairs,
        moved,
        build,
        "triton" if plan.on_gpu else "",
        3.0 * hidden * inter * item * local,
        holdout,
    )


class _Layer(NamedTuple):
    """An expert layer, and how many of its experts are here."""

    experts: int
    local: int
    topk: int
    hidden: int
    inter: int


def routing(
    bench: TorchBench, experts: int, topk: int, tokens: int, skew: float, turn: int = 0
) -> Any:
    """Return expert ids (tokens, topk), distinct within a token, loaded by a power law."""
    torch = bench.torch
    generator = torch.Generator().manual_seed(experts * 100_000 + 16 * tokens + turn)
    load = torch.arange(1, experts + 1, dtype=torch.float64) ** -skew
    load = load[torch.randperm(experts, generator=generator)]
    noise = torch.empty(tokens, experts, dtype=torch.float64).exponential_(generator=generator)
    return (noise / load).topk(topk, dim=-1, largest=False).indices.to(bench.device)


def _fused(plan: Plan, layer: _Layer, tokens: int, skew: float) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler.triton_calls import fused_moe

        experts, local, topk, hidden, inter = layer
        turns = 16 if tokens <= 64 else 1  # more tokens hit most experts whatever they choose
        draws = [routing(bench, experts, topk, tokens, skew, turn) for turn in range(turns)]
        return fused_moe(bench, draws, local, hidden, inter, plan.dtype, experts)

    return build


def _loop(plan: Plan, layer: _Layer, tokens: int, skew: float) -> Build:
    """One expert after the other, on the tokens that chose it."""

    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        experts, local, topk, hidden, inter = layer
        ids = routing(bench, experts, topk, tokens, skew).flatten()
        order = ids.argsort()
        counts = torch.bincount(ids, minlength=experts).tolist()[:local]
        x = bench.warm((tokens, hidden), plan.dtype)
        source = order // topk
        up = bench.rotated((2 * inter, hidden), plan.dtype, local)
        down = bench.rotated((hidden, inter), plan.dtype, local)
        linear, silu = torch.nn.functional.linear, torch.nn.functional.silu

        def call() -> Any:
            gathered, out, start = x[source], torch.zeros_like(x), 0
            for expert, count in enumerate(counts):
                if count:
                    both = linear(gathered[start : start + count], up[expert])
                    inner = silu(both[:, :inter]) * both[:, inter:]
                    rows = linear(inner, down[expert])
                    out.index_add_(0, source[start : start + count], rows)
                    start += count
            return out

        return Call([call])

    return build
