"""The operators of a step that depend on token counts, priced from a profile.

The roofline lists them; each gets its measured time where the profile has one. Prices are looked
up at a few hundred token counts; between those the ratio to the roofline is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.exchange import EXCHANGE
from llmsim.costmodel.measured.certainty import Widths
from llmsim.costmodel.measured.families import FAMILIES, Types
from llmsim.costmodel.measured.means import Floats
from llmsim.costmodel.measured.profile import shape_names
from llmsim.costmodel.measured.several import Profiles
from llmsim.costmodel.measured.tables import Context
from llmsim.costmodel.operators import (
    ACTIVATION_BYTES,
    OpTable,
    elementwise,
    family_of,
    head_operators,
    moe_family,
)
from llmsim.specs import (
    MXFP4_MARLIN,
    TRITON,
    GpuCard,
    LayerSpec,
    Linear,
    ModelSpec,
    MoeMlp,
    ParallelPlan,
    SoftmaxAttention,
    WeightFormat,
)

KNOTS_PER_OCTAVE = 12
"""Token counts priced per doubling, beyond the small ones that are all priced."""
_EVERY_TO = 64

LOAD_SKEW = 1.01
"""Load of experts that is asked of a profile, the exponent of a power law; the nearest that it has
answers. Real loads are uneven: of 4,471 tokens of GSM8K the busiest of OLMoE-1B-7B's 64 experts
(layer 0, KaxitPandya/cerebras-assesment2) takes 5.1 times the mean, where an even deal would give 1
and this law, as aiconfigurator draws it, gives 8."""


def types_of(form: WeightFormat, gpu: GpuCard) -> Types:
    """Return the number formats of a weight matrix's rows in a profile.

    Parameters
    ----------
    form : WeightFormat
    gpu : GpuCard
        Without tensor cores for the format, activations stay at 16 bits.
    """
    name = form.name
    if name == "bf16" or form.bytes_per_weight == 2.0:
        return Types()
    weights = "fp8_block" if name.startswith("fp8-block") else name
    if name == MXFP4_MARLIN:
        weights = "mxfp4"
    if name.startswith("int") and name not in ("int4", "int8"):
        weights = f"w{name.removeprefix('int')}"
    compute = gpu.compute_dtype(form.compute_dtype)
    if compute == "bf16":
        return Types("bf16", weights)
    if compute == "fp8" and weights.endswith("fp4"):
        return Types("fp8", weights)
    return Types(weights, weights)


def expert_rows(form: WeightFormat, gpu: GpuCard) -> Iterator[tuple[Types, str]]:
    """Yield the formats and kernels whose rows may price experts of a format, the best first.

    Parameters
    ----------
    form : WeightFormat
    gpu : GpuCard

    Notes
    -----
    MXFP4 weights meet 8-bit activations where the roofline takes them to (`moe_family`). Experts
    that Marlin multiplies are priced by Marlin alone: with such weights, or with integers.
    """
    if form.name == MXFP4_MARLIN:
        yield Types("bf16", "mxfp4"), "*marlin*"
        yield Types("bf16", "int4"), "*marlin*"
    elif form.name.endswith(TRITON):
        yield types_of(form, gpu), "*triton*"
        yield types_of(form, gpu), "vllm_fused_moe*"  # its name in tables of vLLM before 0.24
    elif moe_family(form, gpu)[0] == "mxfp4_fp8":
        yield Types("fp8", "mxfp4"), ""
    else:
        yield types_of(form, gpu), ""


class TokenOperators:
    """Prices token-wise operators of one model on one rank.

    Parameters
    ----------
    profiles : Profiles
    model : ModelSpec
    gpu : GpuCard
    plan : ParallelPlan
    context : Context
        Its formats are replaced by each operator's own.
    layer_tables : callable
        The token-wise operators of a layer at token counts, as the roofline prices them.
    """

    def __init__(
        self,
        profiles: Profiles,
        model: ModelSpec,
        gpu: GpuCard,
        plan: ParallelPlan,
        context: Context,
        layer_tables: Callable[[LayerSpec, Floats], Iterator[OpTable]],
    ) -> None:
        self.profiles = profiles
        self.model = model
        self.gpu = gpu
        self.plan = plan
        self.context = context
        self.layer_tables = layer_tables
        self.missing: set[str] = set()
        self.widths = Widths()

    def of_tokens(self, tokens: Floats, collectives: Iterator[OpTable]) -> Iterator[OpTable]:
        """Yield what depends on the number of tokens.

        Parameters
        ----------
        tokens : ndarray of float (n,) [tokens], rising
        collectives : iterator of OpTable
            As the roofline prices them.
        """
        model = self.model
        row = ACTIVATION_BYTES * model.hidden * tokens
        if model.has_embedding:
            embed = elementwise("embed", 1, 2.0 * row, self.gpu)
            yield self._timed("gather", embed, "tokens", tokens, {"hidden": model.hidden})
        for layer in model.layers:
            yield from self._of_layer(layer, tokens)
        if model.has_head:
            norm = elementwise("final norm", 1, 2.0 * row, self.gpu)
            yield self._timed("norm", norm, "tokens", tokens, {"hidden": model.hidden})
        for table in collectives:
            if table.name in EXCHANGE:
                yield self._note(table)
                continue
            ring = 2.0 * (self.plan.tp - 1) / self.plan.tp
            yield self._collective("all_reduce", table, table.bytes / ring)

    def of_rows(self, rows: Floats, collectives: Iterator[OpTable]) -> Iterator[OpTable]:
        """Yield LM head, sampler and the gather of logits."""
        model, tp = self.model, self.plan.tp
        if not model.has_head:
            return
        for table in head_operators(model, tp, rows, self.gpu):
            if table.name == "sampler":
                yield self._timed("sampler", table, "logit_rows", rows, {"vocab": model.vocab})
            else:
                yield self._product(table, model.head(tp), rows)
        for table in collectives:
            yield self._collective("all_gather", table, ACTIVATION_BYTES * model.vocab * rows)

    def _of_layer(self, layer: LayerSpec, tokens: Floats) -> Iterator[OpTable]:
        model, tp = self.model, self.plan.tp
        linears = {part.name: part for part in layer.linears(model.hidden, tp)}
        for table in self.layer_tables(layer, tokens):
            if table.name in linears:
                yield self._product(table, linears[table.name], tokens)
            elif table.name == "experts" and isinstance(layer.mlp, MoeMlp):
                yield self._experts(table, layer.mlp, tokens)
            else:
                yield self._elementwise(table, layer, linears, tokens)

    def _product(self, table: OpTable, linear: Linear, rows: Floats) -> OpTable:
        if linear.format.compute_dtype == "fp32":
            return self._note(table)  # profiles have no such rows
        shape = {"n": linear.n, "k": linear.k}
        asked = self._asking("gemm", types_of(linear.format, self.gpu))
        return self._timed("gemm", table, "m", rows, shape, asked)

    def _experts(self, table: OpTable, moe: MoeMlp, tokens: Floats) -> OpTable:
        """Price the routed experts; those without a gate have no rows and keep the roofline."""
        if not moe.gated:
            return self._note(table)
        plan = self.plan
        shape = {
            "hidden": self.model.hidden,
            "inter": moe.intermediate // plan.expert_split,
            "topk": moe.active_experts,
            "experts": moe.experts,
            "experts_local": (moe.experts + plan.spare_experts) // plan.ep,
            "skew": LOAD_SKEW,
        }
        sides = {side: float(shape[side]) for side in ("hidden", "experts", "inter")}
        for types, kernel in expert_rows(moe.format, self.gpu):
            context = self._asking("moe", types, kernel)
            if self.profiles.of("moe").reaches("moe", sides, context):
                return self._timed("moe", table, "tokens", tokens, shape, context)
        return self._note(table)

    def _asking(self, op: str, types: Types, kernel: str = "") -> Context:
        """Return what an operator is asked for; a kernel that the scenario names goes before."""
        kernels = self.context.kernels
        if kernel and not self.context.kernel_of(op):
            kernels = (*kernels, (op, kernel))
        return replace(self.context, types=types, kernels=kernels)

    def _elementwise(
        self, table: OpTable, layer: LayerSpec, linears: Mapping[str, Linear], tokens: Floats
    ) -> OpTable:
        if table.name == "norm":
            return self._timed("norm", table, "tokens", tokens, {"hidden": self.model.hidden})
        prefix = table.name.removesuffix("act")
        if table.name.endswith("act") and f"{prefix}down" in linears:
            shape = {"inter": linears[f"{prefix}down"].k}
            return self._timed("activation", table, "tokens", tokens, shape)
        mixer = layer.mixer
        if table.name == "rope+kv write" and isinstance(mixer, SoftmaxAttention):
            heads = {
                "heads_q": mixer.heads // self.plan.tp,
                "heads_kv": mixer.kv_heads_per_rank(self.plan.tp),
                "head_dim": mixer.head_dim,
            }
            return self._timed("rope", table, "tokens", tokens, heads, also="kv_write")
        return self._note(table)

    def _collective(self, op: str, table: OpTable, size: Floats) -> OpTable:
        return self._timed(op, table, "message_bytes", size, {"gpus": self.plan.tp, "nodes": 1})

    def _note(self, table: OpTable) -> OpTable:
        self.missing.add(table.name)
        self.widths.add(family_of(table), float((table.count * table.seconds).mean()), None)
        return table

    def _timed(
        self,
        op: str,
        table: OpTable,
        axis: str,
        sizes: Floats,
        shape: Mapping[str, float],
        asking: Context | None = None,
        also: str = "",
    ) -> OpTable:
        """Put the profile's time in place of the roofline's, where it has rows.

        A second operator adds its time where it was measured apart; a profile without rows of it
        has one kernel for both.
        """
        context = asking or self._asking(op, Types())
        profile = self.profiles.of(op)
        if not profile.covers(op, context):
            return self._note(table)
        knots, index = np.unique(_knots(sizes), return_index=True)
        live = knots > 0
        if not live.any():
            return table
        asked = {axis: knots[live], **{name: np.array([float(v)]) for name, v in shape.items()}}
        answer = profile.latencies(op, asked, context)
        seconds = answer.seconds
        second = self.profiles.of(also)
        if also and second.covers(also, context):
            part = {name: asked[name] for name in shape_names(FAMILIES[also])}
            seconds = seconds + second.latencies(also, part, context).seconds
        weight = table.count * seconds
        sigma = float(np.average(answer.sigma, weights=weight))
        self.widths.add(family_of(table), float(weight.mean()), sigma)
        return _replaced(table, sizes, knots[live], seconds, index[live])


def _knots(sizes: Floats) -> Floats:
    """Return sizes with those between knots replaced by the knot below them."""
    octaves = np.log2(np.maximum(sizes, 1.0))
    octaves = octaves - np.log2(np.maximum(sizes[sizes > 0].min(initial=np.inf), 1.0))
    if len(sizes) <= 4 * _EVERY_TO:
        return sizes
    bucket = np.floor(octaves * KNOTS_PER_OCTAVE)
    first = np.ones(len(sizes), dtype=bool)
    first[1:] = bucket[1:] != bucket[:-1]
    first[: _EVERY_TO + 1] = True
    first[-1] = True
    return sizes[np.maximum.accumulate(np.where(first, np.arange(len(sizes)), 0))]


def _replaced(
    table: OpTable, sizes: Floats, knots: Floats, seconds: Floats, index: NDArray[np.intp]
) -> OpTable:
    """Return the table with measured seconds, spread from the knots to all sizes."""
    kept = table.seconds[index] > 0.0  # others do the work of the rest: see `RooflineCost`
    if not kept.any():
        return table
    ratio = np.log(seconds[kept] / table.seconds[index[kept]])
    spread = np.exp(np.interp(np.log(np.maximum(sizes, 1e-9)), np.log(knots[kept]), ratio))
    timed = table.seconds * spread
    fixed = np.minimum(table.fixed_s, timed)
    return replace(table, fixed_s=fixed, seconds=timed)
