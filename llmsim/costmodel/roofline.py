"""`RooflineCost`: the step price without any profile of the machine at hand.

Everything that depends on token counts alone is tabulated at construction; what depends on
contexts is a closed form. A step then costs a few list lookups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llmsim.core.errors import InvariantError
from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.attention import (
    CONTEXT_TILE,
    ChunkSums,
    MixerPrice,
    price_mixer,
    scaled_mixer,
)
from llmsim.costmodel.communication import Network, all_gather, fused_tokens, token_collectives
from llmsim.costmodel.contract import FOREVER, Chunk, PriceLine
from llmsim.costmodel.exchange import expert_exchange
from llmsim.costmodel.explain import OperatorRow, StepBreakdown, attention_rows, explain_step
from llmsim.costmodel.layout import check_layout, check_link
from llmsim.costmodel.operators import (
    ACTIVATION_BYTES,
    Floats,
    OpTable,
    elementwise,
    head_operators,
    layer_operators,
    routed_experts,
    scaled,
    without,
)
from llmsim.specs import (
    UNSCALED,
    EngineLimits,
    GpuCard,
    HostTerms,
    LayerSpec,
    LinkCard,
    ModelSpec,
    MoeMlp,
    OperatorScales,
    ParallelPlan,
)

Sums = tuple[int, int, float, int, float, int]
"""`ChunkSums` as the hot path hands it on, without an object."""

Operators = Callable[[Floats], Iterator[OpTable]]


class _Prefill:
    """A mixer's prefill form for the hot path, context terms folded into new and past."""

    def __init__(self, mixer: MixerPrice) -> None:
        c, m = mixer.compute_ns, mixer.memory_ns
        self.fixed_ns = float(mixer.prefill_fixed_ns)
        self.c_pairs = float(c.pairs)
        self.c_clipped_pairs = float(c.clipped_pairs)
        self.c_new = float(c.new + c.context + c.clipped_context)
        self.c_past = float(c.past + c.context)
        self.m_pairs = float(m.pairs)
        self.m_new = float(m.new + m.context + m.clipped_context)
        self.m_past = float(m.past + m.context)
        self.m_clipped_past = float(m.clipped_context)
        self.starved = float(mixer.starved)
        self.norm = float(mixer.norm)
        self.root = 1.0 / self.norm


def _decode_sums(mixers: Sequence[MixerPrice], mixed: bool) -> tuple[float, float, float, float]:
    """Add up all mixers' decode terms: fixed, per request, per token, per windowed token [ns]."""
    fixed = request = token = windowed = 0.0
    for mixer in mixers:
        scale = mixer.mixed_scale if mixed else 1.0
        fixed += mixer.mixed_fixed_ns if mixed else mixer.decode_fixed_ns
        request += scale * mixer.decode_ns.request
        token += scale * mixer.decode_ns.padded
        windowed += scale * mixer.decode_ns.windowed
    return fixed, request, token, windowed


class RooflineCost:
    """Smooth roofline over the operator list; implements `StepCost`.

    Parameters
    ----------
    model : ModelSpec
    gpu : GpuCard
    link : LinkCard or None
        Between the GPUs of the plan; needed when there are several.
    plan : ParallelPlan
    limits : EngineLimits
    kv_dtype : str or None
        KV cache type, a key of `KV_BYTES`; None for what the checkpoint asks for.
    lookahead : int
        1 for asynchronous scheduling, ``step = max(gpu, host)``; 0 for their sum.
    host : HostTerms
    scales : OperatorScales
        Factors on whole operator families, on the GPU alone.
    scale_out : LinkCard or None
        Between nodes; needed when the plan has more GPUs than a node.
    fused_norm : bool
        Whether the all-reduces of tensor parallelism do the residual and norm behind them, up to
        a size (`fused_tokens`).

    Raises
    ------
    InputError
        If the model does not split over the plan, or its layers have different windows.

    Notes
    -----
    Launching kernels one by one, for steps larger than the largest captured graph or for what the
    graph of a mixed step leaves out, runs beside the GPU: it counts as host work that the GPU can
    hide, with and without lookahead. Steps up to that size are padded to a captured size, mixed
    ones too (piecewise graphs of vLLM v1). Padding costs products, not attention: vLLM gives the
    rows it adds a context of 0 (`GPUModelRunner._prepare_inputs`), and on B300 a ninth request of
    4,100 tokens adds 0.1 to 0.4 ms to a step where seven more would add 2 at tp 1.

    With windowed layers the switch between host-bound and GPU-bound decode is placed for equal
    contexts; of the two sums it is given, `decode_line` needs only the padded one.
    """

    context_tile: int = CONTEXT_TILE
    window_tokens: int
    prefill_ns: float = 0.0
    """Prefill attention of the step that `step_ns` priced last [ns]."""
    prefill_tokens: int = 0
    """New prompt tokens of that step [tokens]."""

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuCard,
        link: LinkCard | None = None,
        plan: ParallelPlan | None = None,
        limits: EngineLimits | None = None,
        kv_dtype: str | None = None,
        lookahead: int = 1,
        host: HostTerms | None = None,
        scales: OperatorScales = UNSCALED,
        scale_out: LinkCard | None = None,
        fused_norm: bool = False,
    ) -> None:
        self.model = model
        self.gpu = gpu
        self.link = link
        self.plan = plan or ParallelPlan()
        self.limits = limits or EngineLimits()
        self.kv_dtype = kv_dtype or model.kv_dtype
        self.lookahead = lookahead
        self.host = host or HostTerms()
        if self.plan.pp > 1:
            raise InvariantError("stages of a pipeline are priced one by one: see PipelineCost")
        check_layout(model, gpu, self.plan)
        check_link(self.plan, gpu, link, scale_out)
        self.network = None if link is None else Network(link, gpu.node_gpus, scale_out)
        self.window_tokens = model.window_tokens
        self.fused_tokens = 0
        if fused_norm and self.plan.tp > 1:
            self.fused_tokens = fused_tokens(model.hidden, gpu.architecture, self.plan.tp)
        self.scales = scales
        self.mixers = tuple(
            scaled_mixer(price, scales, gpu)
            for layer in model.layers
            for price in price_mixer(layer, gpu, self.plan.tp, self.kv_dtype)
        )
        self._tabulate()
        self._prefill = [_Prefill(mixer) for mixer in self.mixers]
        self._decode = _decode_sums(self.mixers, mixed=False)
        self._mixed = _decode_sums(self.mixers, mixed=True)
        self._lines: dict[int, tuple[PriceLine, PriceLine]] = {}

    def _tabulate(self) -> None:
        """Price every token count and every count of logit rows once."""
        limits = self.limits
        self._graph_sizes = limits.graph_sizes()
        self.graph_tokens = max(self._graph_sizes, default=0)
        top = limits.max_num_batched_tokens + limits.max_num_seqs
        self._token_ns = self._sum_ns(self.token_operators, self.padded(np.arange(top + 1.0)))
        self._head_ns = self._sum_ns(self.head_tables, np.arange(limits.max_num_seqs + 1.0))
        self._eager_ns = self.host.eager_layer_s * self.model.layer_count * NS_PER_S
        self._prefill_launch_ns = self.host.prefill_layer_s * self.model.layer_count * NS_PER_S
        self._host_base_ns = self.host.base_s * NS_PER_S
        self._host_request_ns = self.host.per_request_s * NS_PER_S
        self._gap_ns = self.host.gap_s * NS_PER_S
        self._chunk_gap_ns = self.host.gap_per_chunk_s * NS_PER_S

    @staticmethod
    def _sum_ns(operators: Operators, sizes: Floats) -> list[float]:
        total = np.zeros_like(sizes)
        for table in operators(sizes):
            total += table.count * table.seconds
        total[sizes == 0] = 0.0
        priced: list[float] = (total * NS_PER_S).tolist()
        return priced

    def padded(self, tokens: Floats) -> Floats:
        """Round token counts up to captured graph sizes; larger ones stay.

        Parameters
        ----------
        tokens : ndarray of float (n,) [tokens]
        """
        sizes = np.array([0.0, *self._graph_sizes])
        index = np.searchsorted(sizes, tokens).clip(max=len(sizes) - 1)
        return np.where(tokens <= self.graph_tokens, sizes[index], tokens)

    def token_operators(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield every operator that depends on the number of tokens alone, scaled.

        Parameters
        ----------
        tokens : ndarray of float (n,) [tokens]
            As computed, graph padding included.
        """
        for table in self._token_operators(tokens):
            yield scaled(table, self.scales, self.gpu)

    def expert_tables(self, tokens: Floats) -> Iterator[OpTable]:
        """Yield the routed experts of `token_operators`, scaled.

        Parameters
        ----------
        tokens : ndarray of float (n,) [tokens]
        """
        model = self.model
        for layer in model.layers:
            if isinstance(layer.mlp, MoeMlp):
                table = routed_experts(
                    layer.mlp, layer.count, model.hidden, self.plan, tokens, self.gpu
                )
                yield scaled(table, self.scales, self.gpu)

    def head_tables(self, rows: Floats) -> Iterator[OpTable]:
        """Yield LM head, its gather and the sampler, scaled.

        Parameters
        ----------
        rows : ndarray of float (n,) [rows]
            Logit rows.
        """
        for table in self._head_tables(rows):
            yield scaled(table, self.scales, self.gpu)

    def _token_operators(self, tokens: Floats) -> Iterator[OpTable]:
        model, tp = self.model, self.plan.tp
        row = ACTIVATION_BYTES * model.hidden * tokens
        if model.has_embedding:
            yield elementwise("embed", 1, 2.0 * row, self.gpu)
        for layer in model.layers:
            yield from self.layer_tables(layer, tokens)
        if model.has_head:
            yield elementwise("final norm", 1, 2.0 * row, self.gpu)
        if self.network is not None and tp > 1:
            yield from token_collectives(model, self.plan, tokens, self.network)
        if self.network is not None and self.plan.dp > 1:
            yield from expert_exchange(model, self.plan, tokens, self.network, self.gpu)

    def layer_tables(self, layer: LayerSpec, tokens: Floats) -> Iterator[OpTable]:
        """Return the token-wise operators of one layer kind, without norms that all-reduces do.

        Parameters
        ----------
        layer : LayerSpec
        tokens : ndarray of float (n,) [tokens]
        """
        tables = layer_operators(layer, self.model.hidden, self.plan, tokens, self.gpu)
        return without(tables, "norm", tokens <= self.fused_tokens) if self.fused_tokens else tables

    def _head_tables(self, rows: Floats) -> Iterator[OpTable]:
        tp = self.plan.tp
        if not self.model.has_head:
            return
        yield from head_operators(self.model, tp, rows, self.gpu)
        if self.network is not None and tp > 1:
            size = ACTIVATION_BYTES * self.model.vocab * rows
            yield all_gather("gather logits", 1, size, self.network, tp)

    def decode_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Price a decode-only step; see `StepCost.decode_line`."""
        try:
            low, high = self._lines[batch]
        except KeyError:
            low, high = self._lines[batch] = self._build_lines(batch)
        return low if padded_tokens <= low.until_tokens else high

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price one step of any composition; see `StepCost.step_ns`."""
        self.prefill_ns = 0.0
        self.prefill_tokens = 0
        if not chunks and decode and logits == decode:
            line = self.decode_line(decode, padded_tokens)
            return max(1, rounded(line.at_ns(padded_tokens, windowed_tokens)))
        tokens = decode
        gpu_ns = 0.0
        if decode:
            fixed, request, token, windowed = self._mixed if chunks else self._decode
            gpu_ns = fixed + request * decode + token * padded_tokens + windowed * windowed_tokens
        if chunks:
            sums = self.sums(chunks)
            self.prefill_tokens = new = sums[0]
            tokens += new
            decode_ns = gpu_ns
            gpu_ns = self._add_prefill(decode_ns, sums)
            self.prefill_ns = gpu_ns - decode_ns
        if tokens < len(self._token_ns) and logits < len(self._head_ns):
            gpu_ns += self._token_ns[tokens]
            gpu_ns += self._head_ns[logits]
        else:
            gpu_ns += self._at(self._token_ns, tokens, self.token_operators)
            gpu_ns += self._at(self._head_ns, logits, self.head_tables)
        return max(1, rounded(self._with_host(gpu_ns, tokens, decode, len(chunks))))

    def attention_ns(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, windowed_tokens: int
    ) -> float:
        """Return the attention of a step, all layers [ns]; parameters as for `step_ns`."""
        time_ns = 0.0
        if decode:
            fixed, request, token, windowed = self._mixed if chunks else self._decode
            time_ns = fixed + request * decode + token * padded_tokens + windowed * windowed_tokens
        return self._add_prefill(time_ns, self.sums(chunks)) if chunks else time_ns

    def attention_line(self, batch: int, padded_tokens: int) -> PriceLine:
        """Return decode attention alone as a line; parameters as for `decode_line`."""
        fixed, request, token, windowed = self._decode
        return PriceLine(fixed + request * batch, token, windowed)

    def _add_prefill(self, time_ns: float, sums: Sums) -> float:
        """Return `time_ns` [ns] plus the prefill attention of all layers."""
        new, past, pairs, clipped_past, clipped_pairs, tiles = sums
        for w in self._prefill:
            compute = w.c_pairs * pairs + w.c_clipped_pairs * clipped_pairs
            compute = compute + w.c_new * new + w.c_past * past
            compute *= 1.0 + w.starved / tiles
            memory = w.m_pairs * pairs + w.m_new * new + w.m_past * past
            memory += w.m_clipped_past * clipped_past
            joined = math.pow(compute, w.norm) + math.pow(memory, w.norm)
            time_ns += w.fixed_ns + math.pow(joined, w.root)
        return time_ns

    def chunk_sums(self, chunks: Sequence[Chunk]) -> ChunkSums:
        """Sum what prefill attention depends on.

        Parameters
        ----------
        chunks : sequence of (new, past) [tokens]
        """
        return ChunkSums(*self.sums(chunks))

    def sums(self, chunks: Sequence[Chunk]) -> Sums:
        """Return the fields of `chunk_sums` as a plain tuple, which costs a step less."""
        new = past = tiles = 0
        pairs = 0.0
        for c, s in chunks:
            new += c
            past += s
            pairs += c * (s + 0.5 * (c + 1))
            tiles += (c + 127) // 128
        window = self.window_tokens
        if not window:
            return new, past, pairs, past, pairs, tiles
        clipped_past = 0
        clipped_pairs = 0.0
        for c, s in chunks:
            clipped_past += min(s, window)
            rising = min(c, max(0, window - s))
            clipped_pairs += rising * (s + 0.5 * (rising + 1)) + (c - rising) * window
        return new, past, pairs, clipped_past, clipped_pairs, tiles

    def explain(
        self,
        chunks: Sequence[Chunk] = (),
        contexts: Sequence[int] = (),
        logits: int | None = None,
    ) -> StepBreakdown:
        """Split the price of a step by operator.

        Parameters
        ----------
        chunks : sequence of (new, past) [tokens]
        contexts : sequence of int [tokens]
            Context of each decoding request, this step's token included: ``[1024] * 64`` for 64
            requests at 1,024.
        logits : int or None [rows]
            Rows through the LM head; None for the decodes plus one per chunk.

        Returns
        -------
        StepBreakdown
            Rows whose seconds add up to the price.
        """
        rows = len(contexts) + len(chunks) if logits is None else logits
        return explain_step(self, chunks, contexts, rows)

    def attention_rows(self, chunks: Sequence[Chunk], contexts: Sequence[int]) -> list[OperatorRow]:
        """Return a row per mixer and phase of a step; parameters as for `explain`."""
        return list(attention_rows(self, chunks, contexts))

    def host_ns(self, tokens: int, decode: int, chunks: int) -> tuple[float, float]:
        """Return host work that adds to the GPU's, and host work that runs beside it [ns].

        Parameters
        ----------
        tokens : int [tokens]
            In the step.
        decode, chunks : int [requests]
            Decoding, and in prefill.
        """
        work = self._host_base_ns + self._host_request_ns * (decode + chunks)
        launch = 0.0
        if tokens > self.graph_tokens:
            launch = self._eager_ns
        elif chunks:
            launch = self._prefill_launch_ns
        gap = self._gap_ns + self._chunk_gap_ns * chunks
        return (gap, work + launch - gap) if self.lookahead else (gap + work, launch)

    def _with_host(self, gpu_ns: float, tokens: int, decode: int, chunks: int) -> float:
        added, beside = self.host_ns(tokens, decode, chunks)
        return added + (gpu_ns if gpu_ns > beside else beside)

    def _at(self, table: list[float], size: int, operators: Operators) -> float:
        """Look a size up; one beyond the engine's limits is priced on the spot, exactly."""
        if size < len(table):
            return table[size]
        sizes = np.array([float(size)])
        return self._sum_ns(operators, sizes)[0]

    def _build_lines(self, batch: int) -> tuple[PriceLine, PriceLine]:
        """Return the host-bound and the GPU-bound piece; twice the latter if it is the only one."""
        fixed, request, token, windowed = self._decode
        gpu_ns = (
            fixed
            + request * batch
            + self._at(self._token_ns, batch, self.token_operators)
            + self._at(self._head_ns, batch, self.head_tables)
        )
        added, beside = self.host_ns(batch, batch, 0)
        line = PriceLine(added + gpu_ns, token, windowed)
        until = self._knot(beside - gpu_ns, batch)
        if until < 1:
            return line, line
        if until >= line.until_tokens:
            flat = PriceLine(added + beside, 0.0)
            return flat, flat
        return PriceLine(added + beside, 0.0, 0.0, until), line

    def _knot(self, slack_ns: float, batch: int) -> int:
        """Return the largest padded sum whose attention fits into `slack_ns`, contexts equal."""
        _, _, token, windowed = self._decode
        if slack_ns < 0:
            return 0
        tile = self.context_tile
        edge = batch * (-(-self.window_tokens // tile) * tile)
        if windowed and slack_ns <= (token + windowed) * edge:
            return int(slack_ns / (token + windowed))
        slack_ns -= windowed * edge
        return int(slack_ns / token) if token else FOREVER

    def warnings(self) -> tuple[str, ...]:
        """Return what was taken for granted: the model's notes, and formats the chip lacks."""
        names = {self.model.head_format.name: self.model.head_format}
        for layer in self.model.layers:
            for part in layer.linears(self.model.hidden, self.plan.tp):
                names[part.format.name] = part.format
        notes = [
            f"{self.gpu.name} has no {form.compute_dtype} products: {name} weights are unpacked "
            f"to 16 bits"
            for name, form in names.items()
            if self.gpu.compute_dtype(form.compute_dtype) != form.compute_dtype
        ]
        if any(isinstance(layer.mlp, MoeMlp) and not layer.mlp.skew for layer in self.model.layers):
            notes.append("experts are hit uniformly: no load skew")
        return (*self.model.warnings, *notes)
