"""Block 8: choosing the next token, greedily and within top-k and top-p."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from llmsim_kernels.profiler.plan import Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

ROWS = (1, 16, 64, 256)
VOCABS = (32000, 128256, 151936)
"""Of Llama 2, Llama 3, Qwen 3."""

TOP_K, TOP_P = 50, 0.9
_FP32 = 4.0


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return both ways at every point; on a GPU the filtered one by our kernel as well."""
    for vocab, count, way in product(VOCABS, ROWS, ("greedy", "filtered")):
        yield sampler(plan, count, vocab, way)
    if plan.on_gpu:
        for vocab, count in product(VOCABS, ROWS):
            yield sampler(plan, count, vocab, "filtered", ours=True)


def sampler(plan: Plan, count: int, vocab: int, way: str, *, ours: bool = False) -> RowSpec:
    """Return the row of sampling `count` tokens.

    Parameters
    ----------
    plan : Plan
    count : int [rows]
    vocab : int
    way : str
        ``greedy``, or ``filtered`` by top-k and top-p.
    ours : bool
        By the Triton sampler.

    Notes
    -----
    Bytes: fp32 logits once when greedy, four times when sorted (read, sorted values and indices
    written, read again).
    """
    key: dict[str, Any] = {
        "op": "sampler",
        "kernel_id": "triton.sampler.v2" if ours else _KERNELS[way],
        "dtype_a": plan.dtype,  # of the model; logits are fp32 whatever it is
        "logit_rows": count,
        "vocab": vocab,
        "variant": way,
        "cold": False,
        "graph": plan.graph,
    }
    times = 1.0 if way == "greedy" else 4.0
    build = _ours(count, vocab) if ours else _BUILDERS[way](count, vocab)
    moved = times * _FP32 * count * vocab
    return RowSpec(8, key, 0.0, moved, build, "triton" if ours else "", moved)


_KERNELS = {"greedy": "torch.argmax", "filtered": "torch.sort"}


def _greedy(count: int, vocab: int) -> Build:
    def build(bench: TorchBench) -> Call:
        logits = bench.warm((count, vocab), "fp32")
        return Call([lambda: logits.argmax(-1)])

    return build


def _filtered(count: int, vocab: int) -> Build:
    """Sort, cut, and draw by exponential races, which needs no host."""

    def build(bench: TorchBench) -> Call:
        torch = bench.torch
        logits = bench.warm((count, vocab), "fp32")

        def call() -> Any:
            values, order = logits.sort(dim=-1, descending=True)
            odds = values[:, :TOP_K].softmax(-1)
            kept = odds * (odds.cumsum(-1) - odds < TOP_P)
            race = torch.empty_like(kept).exponential_()
            return order.gather(-1, (kept / race).argmax(-1, keepdim=True))

        return Call([call])

    return build


def _ours(count: int, vocab: int) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.profiler.triton_calls import sample

        return sample(bench, bench.warm((count, vocab), "fp32"), TOP_K, TOP_P)

    return build


_BUILDERS = {"greedy": _greedy, "filtered": _filtered}
