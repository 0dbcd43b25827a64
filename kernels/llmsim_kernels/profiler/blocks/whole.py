"""Block 13: steps of a whole decoder beside the sum of their operators, never folded into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmsim.specs.profile_rows import row_key
from llmsim_kernels.engine.cache import PagedCache
from llmsim_kernels.engine.model import Decoder, DecoderShape
from llmsim_kernels.profiler.blocks.decode import PAGE, decode
from llmsim_kernels.profiler.blocks.elementwise import elementwise
from llmsim_kernels.profiler.blocks.gemm import gemm
from llmsim_kernels.profiler.blocks.mixed import mixed
from llmsim_kernels.profiler.blocks.moe import moe
from llmsim_kernels.profiler.blocks.prefill import prefill
from llmsim_kernels.profiler.blocks.sampling import sampler
from llmsim_kernels.profiler.plan import ITEM_BYTES, Plan
from llmsim_kernels.profiler.spec import Build, Call, RowSpec
from llmsim_kernels.profiler.torchbench import TorchBench

ON_GPU = DecoderShape(8, 4096, 32, 8, 128, 14336, 128256)
"""Eight layers of Llama-3.1-8B and its LM head."""

OF_EXPERTS = DecoderShape(4, 2048, 32, 4, 128, 768, 151936)
EXPERTS, TOPK = 128, 8
"""Four layers of Qwen3-30B-A3B; its routing (softmax and top-k) is part of the step and of no
operator."""

ON_CPU = DecoderShape(2, 1024, 8, 2, 128, 2816, 8192)
"""Small, but with more weights than a usual last-level cache holds."""


@dataclass(frozen=True, slots=True)
class Case:
    """One step.

    Parameters
    ----------
    kind : str
        decode, prefill, ``mixed`` (decodes beside the chunk of one prompt), or ``moe``: decodes of
        a mixture of experts.
    batch : int [requests]
        Decodes, or prompts.
    tokens : int [tokens]
        Context of each decode, its new token included; or length of each prompt.
    chunk : int [tokens]
        Of the prompt in a mixed step.
    """

    kind: str
    batch: int
    tokens: int
    chunk: int = 0

    @property
    def requests(self) -> tuple[tuple[int, int], ...]:
        """New tokens of each request, and tokens before them; the prompt of a mixed step first."""
        if self.kind == "prefill":
            return ((self.tokens, 0),) * self.batch
        decodes = ((1, self.tokens - 1),) * self.batch
        return ((self.chunk, 0), *decodes) if self.chunk else decodes

    @property
    def new_tokens(self) -> int:
        """Computed in the step [tokens]."""
        return sum(new for new, _ in self.requests)


def cases(plan: Plan) -> tuple[Case, ...]:
    """Return the steps that this device gets."""
    if not plan.on_gpu:
        return (Case("decode", 1, 128), Case("decode", 4, 256), Case("prefill", 1, 32))
    decodes = ((1, 1024), (16, 4096), (64, 2048), (256, 1024))
    return (
        *(Case("decode", batch, tokens) for batch, tokens in decodes),
        *(Case("prefill", 1, tokens) for tokens in (512, 4096)),
        Case("mixed", 16, 4096, 512),
        Case("moe", 32, 1024),
    )


def shape_of(plan: Plan, case: Case) -> DecoderShape:
    """Return the decoder that this device runs."""
    if not plan.on_gpu:
        return ON_CPU
    return OF_EXPERTS if case.kind == "moe" else ON_GPU


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return the operators of each step, then the steps, eager and from a graph."""
    for case in cases(plan):
        for _, spec in parts(plan, case):
            yield spec
    for case in cases(plan):
        for graph in (True, False) if plan.graph else (False,):
            yield whole(plan, case, graph)


def parts(plan: Plan, case: Case) -> list[tuple[int, RowSpec]]:
    """Return the operators of a step, each with how often it runs.

    Parameters
    ----------
    plan : Plan
    case : Case
    """
    s, m, dtype = shape_of(plan, case), case.new_tokens, plan.dtype
    width = s.heads * s.head_dim

    def product(n: int, k: int, rows: int = m) -> RowSpec:
        return gemm(plan, rows, n, k, dtype, block=13)

    def small(op: str, inner: int) -> RowSpec:
        return elementwise(plan, op, m, inner, kv_heads=s.kv_heads, block=13)

    heads = (s.heads, s.kv_heads)
    if case.kind in ("decode", "moe"):
        contexts = (case.tokens,) * case.batch
        attention = decode(plan, contexts, *heads, head_dim=s.head_dim, block=13)
    elif case.kind == "mixed":
        attention = mixed(plan, case.chunk, case.batch, case.tokens, *heads)
    else:
        attention = prefill(plan, case.batch, case.tokens, 0, *heads, head_dim=s.head_dim, block=13)
    feed_forward = [
        (s.layers, product(2 * s.inter, s.hidden)),
        (s.layers, small("activation", s.inter)),
        (s.layers, product(s.hidden, s.inter)),
    ]
    if case.kind == "moe":
        feed_forward = [
            (s.layers, product(EXPERTS, s.hidden)),
            (s.layers, moe(plan, EXPERTS, TOPK, s.hidden, s.inter, m, block=13)),
        ]
    return [
        (1, small("gather", s.hidden)),
        (2 * s.layers + 1, small("norm", s.hidden)),
        (s.layers, product(s.qkv_width, s.hidden)),
        (s.layers, small("rope", width)),
        (s.layers, small("kv_write", width)),
        (s.layers, attention),
        (s.layers, product(s.hidden, width)),
        *feed_forward,
        (1, product(s.vocab, s.hidden, len(case.requests))),
        (1, sampler(plan, len(case.requests), s.vocab, "greedy")),
    ]


def whole(plan: Plan, case: Case, graph: bool) -> RowSpec:
    """Return the row of a whole step.

    Parameters
    ----------
    plan : Plan
    case : Case
    graph : bool
    """
    s = shape_of(plan, case)
    pieces = parts(plan, case)
    decoding = case.kind != "prefill"
    key: dict[str, Any] = {
        "op": "whole_model",
        "kernel_id": "llmsim.decoder.v2",
        "dtype_a": plan.dtype,
        "dtype_w": plan.dtype,
        "dtype_kv": plan.dtype,
        "phase": "decode" if case.kind == "moe" else case.kind,
        "batch": case.batch,
        "q_len": case.chunk or (1 if decoding else case.tokens),
        "kv_len": case.tokens if decoding else 0,
        "heads_q": s.heads,
        "heads_kv": s.kv_heads,
        "head_dim": s.head_dim,
        "hidden": s.hidden,
        "inter": s.inter,
        "vocab": s.vocab,
        "layers": s.layers,
        "variant": f"{case.kind}.{'graph' if graph else 'eager'}",
        "cold": True,
        "graph": graph,
    }
    inner = 3 * s.inter * (EXPERTS + 1 if case.kind == "moe" else 1)
    weights = s.layers * (s.qkv_width + s.heads * s.head_dim + inner) * s.hidden
    resident = (weights + 2 * s.vocab * s.hidden) * ITEM_BYTES[plan.dtype]
    resident += case.batch * case.tokens * s.layers * 2 * s.kv_heads * s.head_dim * 2
    return RowSpec(
        13,
        key,
        sum(count * spec.flops for count, spec in pieces),
        sum(count * spec.moved_bytes for count, spec in pieces),
        _step(plan, case),
        "triton" if decoding and plan.on_gpu else "",
        resident,
        holdout=True,
    )


def _step(plan: Plan, case: Case) -> Build:
    def build(bench: TorchBench) -> Call:
        from llmsim_kernels.engine.cache import StepAttention
        from llmsim_kernels.engine.graphs import DecodeAttention
        from llmsim_kernels.profiler.triton_calls import page_table

        torch, s = bench.torch, shape_of(plan, case)
        bench.forget()
        lengths = tuple(new + past for new, past in case.requests)
        kind = ExpertDecoder if case.kind == "moe" else Decoder
        decoder = kind(s, bench.device, bench.dtypes[plan.dtype], max(lengths))
        table, pages = page_table(bench, lengths, PAGE)
        cache = PagedCache(s, pages, PAGE, bench.device, bench.dtypes[plan.dtype])
        places = [
            torch.arange(past, past + new, device=bench.device) for new, past in case.requests
        ]
        slots = torch.cat(
            [
                row[at // PAGE].long() * PAGE + at % PAGE
                for row, at in zip(table, places, strict=True)
            ]
        )
        tokens, positions = bench.integers((case.new_tokens,), s.vocab), torch.cat(places)
        contexts = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
        if bench.on_gpu and case.kind in ("decode", "moe"):
            attention: Any = DecodeAttention(cache, slots, table, contexts, case.tokens)
        elif case.kind == "mixed":
            attention = OneLaunch(bench, case, cache, slots, table, contexts, s)
        else:
            requests = [
                (new, past, row[: -(-(new + past) // PAGE)].long())
                for (new, past), row in zip(case.requests, table, strict=True)
            ]
            attention = StepAttention(cache, slots, requests)
        ends = torch.tensor([new for new, _ in case.requests], device=bench.device).cumsum(0)
        last = ends - 1
        return Call([lambda: decoder.forward(tokens, positions, last, attention)])

    return build


class ExpertDecoder(Decoder):
    """A decoder whose MLPs are `EXPERTS` routed experts, `TOPK` of them for each token."""

    def __init__(self, shape: DecoderShape, device: Any, dtype: Any, max_tokens: int) -> None:
        super().__init__(shape, device, dtype, max_tokens)
        torch, width = self.torch, shape.hidden

        def random(*size: int) -> list[Any]:
            return [
                torch.empty(size, device=device, dtype=dtype).normal_(0.0, 0.02)
                for _ in range(shape.layers)
            ]

        self.router = random(EXPERTS, width)
        self.experts_up = random(EXPERTS, 2 * shape.inter, width)
        self.experts_down = random(EXPERTS, width, shape.inter)

    def feed_forward(self, layer: int, x: Any) -> Any:
        """Return what the chosen experts make of each token."""
        from llmsim_kernels.ops.fused_moe import fused_moe

        odds = self.torch.nn.functional.linear(x, self.router[layer]).float().softmax(-1)
        shares, chosen = odds.topk(TOPK, dim=-1)
        chosen = chosen.to(self.torch.int32)
        return fused_moe(x, self.experts_up[layer], self.experts_down[layer], shares, chosen)


class OneLaunch:
    """Prompts and decodes of a step in one launch of the varlen kernel."""

    def __init__(
        self,
        bench: TorchBench,
        case: Case,
        cache: PagedCache,
        slots: Any,
        table: Any,
        contexts: Any,
        shape: DecoderShape,
    ) -> None:
        from llmsim_kernels.ops.varlen_attention import plan_batch, varlen_attention

        self._cache, self._slots, self._table, self._contexts = cache, slots, table, contexts
        news = [new for new, _ in case.requests]
        group = shape.heads // shape.kv_heads
        self._cut = plan_batch(news, group, shape.head_dim, bench.device)
        self._attend = varlen_attention

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Return the mix that each query sees (tokens, heads, head_dim)."""
        self._cache.write(layer, self._slots, k, v)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        q = q.contiguous()
        return self._attend(q, keys, values, self._table, self._contexts, self._cut)


def check(plan: Plan, done: Mapping[tuple[str, ...], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each measured step beside the sum of its operators, for `meta.json`.

    Parameters
    ----------
    plan : Plan
    done : mapping
        Rows by key.

    Returns
    -------
    list of dict
        ``ratio`` is measured over summed; absent where operators have no time, which are named.
    """
    found = []
    for case in cases(plan):
        pieces = parts(plan, case)
        for graph in (True, False):
            row = done.get(row_key(whole(plan, case, graph).key))
            if row is None or not _timed(row):
                continue
            entry: dict[str, Any] = {
                "step": row["variant"],
                "batch": case.batch,
                "tokens": case.tokens,
                "measured_us": float(row["t_median_us"]),
            }
            rows = [(count, done.get(row_key(spec.key))) for count, spec in pieces]
            absent = _absent(pieces, done)
            if absent:
                entry["untimed"] = absent
            else:
                total = sum(count * float(part["t_median_us"]) for count, part in rows if part)
                entry["sum_us"] = total
                entry["ratio"] = entry["measured_us"] / total
            found.append(entry)
    return found


def _absent(
    pieces: Iterable[tuple[int, RowSpec]], done: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> list[str]:
    """Return the operators without a time."""
    return [
        str(spec.key["op"]) for _, spec in pieces if not _timed(done.get(row_key(spec.key), {}))
    ]


def _timed(row: Mapping[str, Any]) -> bool:
    return row.get("status") == "ok" and bool(row.get("t_median_us"))
