"""The operators of a step whose cost depends on the number of tokens alone.

One function per operator kind, vectorised over token counts: the cost model prices all counts
once at construction, `explain` prices a single one through the same code.

References
----------
F and X are the FLOPs and bytes of one rank, 2 FLOP per multiply-add, as in the operator lists of
GenZ and LLM-Viewer; the smooth roofline is described in `llmsim.specs.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.popularity import loads
from llmsim.specs import (
    MXFP4_MARLIN,
    TRITON,
    DenseMlp,
    GpuCard,
    LatentAttention,
    LayerSpec,
    Linear,
    ModelSpec,
    MoeMlp,
    OperatorScales,
    ParallelPlan,
    RecurrentMixer,
    SmoothRoofline,
    SoftmaxAttention,
    WeightFormat,
)

Floats = NDArray[np.float64]

ACTIVATION_BYTES = 2.0
"""Activations are 16 bits between operators [bytes]."""

TILE = 128.0
"""Output tiles of a GEMM are this many rows and columns."""

LOOP_ELEMENTS = 1024.0
"""Elements of the inner dimension that `GemmTerms.loop_s` is the time of."""

FP32_LOOP_S = 1.7e-6
"""The same of 32-bit products, without tensor cores, on any GPU: a router of 6,144 x 128 takes
cuBLAS 13.6 us for 2 tokens (vLLM pull request 44343, the GPU not named), 3.5 of them the launch."""

QUANTISED_BYTES = {"fp8": 1.0, "int8": 1.0, "fp4": 0.5 + 1.0 / 16}
"""Of one activation, by compute dtype [bytes]; 16-bit ones stay as they are."""

LOGIT_BYTES = 4.0
"""The sampler works on fp32 logits [bytes]."""


@dataclass(frozen=True, slots=True)
class OpTable:
    """One operator, priced for several sizes at once.

    Parameters
    ----------
    name : str
    count : int
        Times that the operator runs in a step.
    dtype : str
        Compute dtype, or ``elementwise`` or ``network``.
    flops, bytes : ndarray (n,) [FLOP], [bytes]
        Of one call.
    fixed_s, compute_s, memory_s : ndarray (n,) [s]
        Launch floor, and the time either limit alone would take.
    seconds : ndarray (n,) [s]
        Time of one call.
    """

    name: str
    count: int
    dtype: str
    flops: Floats
    bytes: Floats
    fixed_s: Floats
    compute_s: Floats
    memory_s: Floats
    seconds: Floats


def smooth(
    name: str,
    count: int,
    dtype: str,
    flops: Floats,
    moved: Floats,
    terms: SmoothRoofline,
    gpu: GpuCard,
    extra_s: Floats | float = 0.0,
    serial_s: float = 0.0,
) -> OpTable:
    """Price an operator by the smooth roofline.

    Parameters
    ----------
    name, count, dtype
        See `OpTable`.
    flops, moved : ndarray (n,) [FLOP], [bytes]
    terms : SmoothRoofline
    gpu : GpuCard
    extra_s : ndarray or float [s]
        Added to the launch floor.
    serial_s : float [s]
        A third limit, beside compute and memory: steps that wait for each other.
    """
    compute = flops / (terms.compute_frac * gpu.peak_flops_per_s[dtype])
    memory = moved / (terms.memory_frac * gpu.memory_bytes_per_s)
    fixed = np.zeros_like(compute) + terms.t0_s + extra_s
    limits = compute**terms.norm + memory**terms.norm + serial_s**terms.norm
    joined = limits ** (1.0 / terms.norm)
    return OpTable(name, count, dtype, flops, moved, fixed, compute, memory, fixed + joined)


def family_of(table: OpTable) -> str:
    """Return the family that an operator belongs to: a field of `OperatorScales`."""
    if table.dtype == "elementwise":
        return "elementwise"
    if table.dtype == "network":
        return "communication"
    return "moe" if table.name == "experts" else "gemm"


def family_scale(table: OpTable, scales: OperatorScales) -> float:
    """Return the factor of the family that an operator belongs to."""
    found: float = getattr(scales, family_of(table))
    return found


def scaled(table: OpTable, scales: OperatorScales, gpu: GpuCard) -> OpTable:
    """Multiply an operator's time by the factor of its family.

    Notes
    -----
    Matrix products stay at or above FLOP/peak and bytes/bandwidth, whatever the factor.
    """
    factor = family_scale(table, scales)
    if factor == 1.0:
        return table
    seconds = factor * table.seconds
    if table.dtype in gpu.peak_flops_per_s:
        floor = np.maximum(
            table.flops / gpu.peak_flops_per_s[table.dtype], table.bytes / gpu.memory_bytes_per_s
        )
        seconds = np.maximum(seconds, floor)
    share = np.divide(seconds, table.seconds, out=np.ones_like(seconds), where=table.seconds > 0)
    return replace(
        table,
        fixed_s=share * table.fixed_s,
        compute_s=share * table.compute_s,
        memory_s=share * table.memory_s,
        seconds=seconds,
    )


def elementwise(name: str, count: int, moved: Floats, gpu: GpuCard) -> OpTable:
    """Price a norm, rotary embedding, gather or activation.

    Notes
    -----
    Its input was just written: while the set fits the last-level cache it moves at cache speed,
    above at memory speed; never below the launch floor.
    """
    kernels = gpu.kernels
    warm = moved / (kernels.cache_bandwidth_ratio * gpu.memory_bytes_per_s)
    cold = moved / (kernels.gemm["bf16"].roofline.memory_frac * gpu.memory_bytes_per_s)
    memory = np.where(moved < gpu.cache_bytes, warm, cold)
    fixed = np.zeros_like(moved) + kernels.elementwise_floor_s
    zero = np.zeros_like(moved)
    return OpTable(
        name, count, "elementwise", zero, moved, fixed, zero, memory, np.maximum(fixed, memory)
    )


def without(tables: Iterator[OpTable], name: str, where: NDArray[np.bool_]) -> Iterator[OpTable]:
    """Yield operators with nothing left of one of them where another does its work.

    Parameters
    ----------
    tables : iterator of OpTable
    name : str
        Of the one.
    where : ndarray of bool (n,)
    """
    kept = ~where
    for table in tables:
        if table.name != name:
            yield table
        elif kept.any():
            yield replace(
                table,
                bytes=table.bytes * kept,
                fixed_s=table.fixed_s * kept,
                compute_s=table.compute_s * kept,
                memory_s=table.memory_s * kept,
                seconds=table.seconds * kept,
            )


_TRITON_HIDDEN = 256
"""Multiple that vLLM pads a model's width to for Triton's MXFP4 experts."""


def gemm_family(form: WeightFormat, gpu: GpuCard) -> tuple[str, str]:
    """Return which coefficients and which compute dtype a product with these weights runs with."""
    dtype = gpu.compute_dtype(form.compute_dtype)
    if dtype == "fp32":  # no table of it was found: the shares that 16-bit products reach
        return "bf16", dtype
    if dtype == "bf16" and form.bytes_per_weight < 2.0:
        return ("w4a16" if form.bytes_per_weight < 1.0 else "w8a16"), dtype
    return ("fp8_block" if _by_block(form) and dtype == "fp8" else dtype), dtype


def _by_block(form: WeightFormat) -> bool:
    return form.name.startswith("fp8-block")


def gemm(linear: Linear, count: int, rows: Floats, gpu: GpuCard) -> OpTable:
    """Price ``rows`` tokens through one weight matrix.

    Notes
    -----
    Few tiles of outputs leave SMs idle, and no tile is done before it went through all of k: both
    hold the price up where bytes and FLOPs are few.
    """
    family, dtype = gemm_family(linear.format, gpu)
    terms = gpu.kernels.gemm[family]
    loop_s = FP32_LOOP_S if dtype == "fp32" else terms.loop_s
    flops = 2.0 * linear.n * linear.k * rows
    moved = linear.weight_bytes + ACTIVATION_BYTES * (linear.n + linear.k) * rows
    tiles = np.maximum(rows / TILE, 1.0) * (linear.n / TILE)
    slowed = flops * (1.0 + terms.half_tiles_per_sm * gpu.sm_count / tiles)
    quantised = rows * linear.k * (ACTIVATION_BYTES + QUANTISED_BYTES.get(dtype, 0.0))
    priced = smooth(
        linear.name,
        count,
        dtype,
        slowed,
        moved,
        terms.roofline,
        gpu,
        extra_s=terms.quantise_s_per_byte * quantised,
        serial_s=loop_s * linear.k / LOOP_ELEMENTS,
    )
    return replace(priced, flops=flops)


def moe_family(form: WeightFormat, gpu: GpuCard) -> tuple[str, str]:
    """Return which coefficients and which compute dtype a routed expert runs with.

    Notes
    -----
    MXFP4 weights meet 16-bit activations, or 8-bit ones where the GPU was measured with such
    kernels (Blackwell: TensorRT-LLM's default, vLLM's with VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8).
    """
    dtype = gpu.compute_dtype(form.compute_dtype)
    if dtype == "bf16" and form.name == "mxfp4":
        return ("mxfp4_fp8", "fp8") if "mxfp4_fp8" in gpu.kernels.moe else ("mxfp4", dtype)
    if dtype == "bf16" and form.bytes_per_weight < 1.0:
        return ("mxfp4_marlin" if form.name == MXFP4_MARLIN else "w4a16"), dtype
    if dtype == "fp8" and _by_block(form):
        apart = form.name.endswith(TRITON) and "fp8_block_triton" in gpu.kernels.moe
        return ("fp8_block_triton" if apart else "fp8_block"), dtype
    return ("fp8" if dtype == "int8" else dtype), dtype


def expert_padding_bytes(model: ModelSpec, plan: ParallelPlan, gpu: GpuCard) -> float:
    """Return what routed experts take on one GPU beyond the weights of the checkpoint [bytes].

    Parameters
    ----------
    model : ModelSpec
    plan : ParallelPlan
    gpu : GpuCard

    Notes
    -----
    Kernels hold matrices padded to their tiles. gpt-oss-120b on one H100: 65.8 GiB of weights by
    Marlin where vLLM 0.10 logs 65.97 (vllm-project/vllm issue 23278), 64.5 by Triton where 0.14.1
    logs 64.38 (issue 33155); the checkpoint has 60.7.
    """
    found = 0.0
    for layer in model.layers:
        if isinstance(layer.mlp, MoeMlp):
            moe, split = layer.mlp, plan.expert_split
            family, _ = moe_family(moe.format, gpu)
            width = moe.intermediate // split
            share = gpu.kernels.moe[family].padded_share(model.hidden, width)
            if family == "mxfp4":  # Triton's: padded when loaded, though time shows little of it
                tall = -(-model.hidden // _TRITON_HIDDEN) * _TRITON_HIDDEN
                share = max(share, tall / model.hidden)
            held = sum(part.weight_bytes for part in moe.expert_linears(model.hidden, split))
            held *= 1.0 + plan.spare_experts / moe.experts
            found += (share - 1.0) * layer.count * held / plan.ep
    return found


def routed_experts(
    moe: MoeMlp, count: int, hidden: int, plan: ParallelPlan, tokens: Floats, gpu: GpuCard
) -> OpTable:
    """Price permute, grouped GEMMs of the experts that are hit, and un-permute.

    Notes
    -----
    Rows per expert below ``half_rows`` lower the reachable FLOP/s. With expert parallelism a rank
    has ``1 / ep`` of the experts (and of their copies), and as much of the hits and of the rows as
    `loads` says; its experts are ``ep`` times as wide as under tensor parallelism alone. Tokens are
    those of all attention ranks together.
    Matrices are padded to the kernel's tiles; FLOPs are counted without, time and bytes with that.
    """
    family, dtype = moe_family(moe.format, gpu)
    terms = gpu.kernels.moe[family]
    split = plan.expert_split
    padding = terms.padded_share(hidden, moe.intermediate // split)
    hit, rows = loads(moe, plan, tokens)
    per_expert = sum(part.weight_bytes for part in moe.expert_linears(hidden, split)) / moe.experts
    width = moe.intermediate // split
    matrices = 3 if moe.gated else 2
    flops = 2.0 * matrices * hidden * width * rows
    weights = padding * per_expert * hit
    moved = weights + ACTIVATION_BYTES * rows * (2.0 * hidden + matrices * width)
    per_hit = np.divide(rows, hit, out=np.ones_like(rows), where=hit > 0)
    slowed = padding * flops * (per_hit + terms.half_rows) / per_hit
    permute = terms.permute_s_per_byte * 4.0 * rows * hidden * ACTIVATION_BYTES
    priced = smooth(
        "experts", count, dtype, slowed, moved, terms.roofline, gpu, terms.expert_s * hit + permute
    )
    return OpTable(
        "experts",
        count,
        dtype,
        flops,
        moved,
        priced.fixed_s,
        priced.compute_s,
        priced.memory_s,
        priced.seconds,
    )


def layer_operators(
    layer: LayerSpec, hidden: int, plan: ParallelPlan, tokens: Floats, gpu: GpuCard
) -> Iterator[OpTable]:
    """Yield the token-wise operators of one layer kind, attention and collectives excepted."""
    count, tp = layer.count, plan.tp
    parts = (layer.mixer is not None) + (layer.mlp is not None)
    row = ACTIVATION_BYTES * tokens
    yield elementwise("norm", parts * count, 4.0 * hidden * row, gpu)
    mixer, mlp = layer.mixer, layer.mlp
    if isinstance(mixer, SoftmaxAttention):
        turned = (mixer.heads // tp + 2 * mixer.kv_heads_per_rank(tp)) * mixer.head_dim
        width = (mixer.heads // tp + mixer.kv_heads_per_rank(tp)) * mixer.head_dim
        if mixer.layer_norm:  # vLLM's MiniMaxText01RMSNormTP.forward_qk, compiled: read, then scale
            yield elementwise("qk variance", count, width * row, gpu)
        if mixer.layer_norm or mixer.head_norm:  # TensorRT-LLM has RoPE in it, and KV apart
            yield elementwise("qk norm", count, 2.0 * width * row, gpu)
        yield elementwise("rope+kv write", count, 2.0 * turned * row, gpu)
    elif isinstance(mixer, LatentAttention):
        turned = mixer.heads // tp * mixer.rope_dim + mixer.kv_rank + mixer.rope_dim
        yield elementwise("rope+kv write", count, 2.0 * turned * row, gpu)
    elif isinstance(mixer, RecurrentMixer):
        yield elementwise("conv+gate", count, 4.0 * mixer.conv_channels(tp) * row, gpu)
    if mixer is not None:
        for linear in mixer.linears(hidden, tp):
            if linear.name != "conv":
                yield gemm(linear, count, tokens, gpu)
    if isinstance(mlp, MoeMlp):
        yield from _moe_operators(mlp, count, hidden, plan, tokens, gpu)
    elif isinstance(mlp, DenseMlp):
        yield from _dense_operators(mlp, "", count, hidden, tp, tokens, gpu)


def _dense_operators(
    mlp: DenseMlp, prefix: str, count: int, hidden: int, tp: int, tokens: Floats, gpu: GpuCard
) -> Iterator[OpTable]:
    for linear in mlp.linears(hidden, tp):
        named = Linear(prefix + linear.name, linear.n, linear.k, linear.format)
        yield gemm(named, count, tokens, gpu)
    width = (2.0 + mlp.gated) * (mlp.intermediate // tp)
    yield elementwise(f"{prefix}act", count, width * ACTIVATION_BYTES * tokens, gpu)


def _moe_operators(
    mlp: MoeMlp, count: int, hidden: int, plan: ParallelPlan, tokens: Floats, gpu: GpuCard
) -> Iterator[OpTable]:
    tp = plan.tp
    router = next(part for part in mlp.linears(hidden, tp) if part.name == "router")
    yield gemm(router, count, tokens, gpu)
    yield elementwise("top-k", count, LOGIT_BYTES * mlp.experts * tokens, gpu)
    yield routed_experts(mlp, count, hidden, plan, tokens, gpu)
    shared = mlp.shared()
    if shared is not None:
        yield from _dense_operators(shared, "shared_", count, hidden, tp, tokens, gpu)


def head_operators(model: ModelSpec, tp: int, rows: Floats, gpu: GpuCard) -> Iterator[OpTable]:
    """Yield LM head and sampler for several counts of logit rows."""
    yield gemm(model.head(tp), 1, rows, gpu)
    kernels = gpu.kernels
    moved = kernels.sampler_passes * LOGIT_BYTES * model.vocab * rows
    memory = moved / (kernels.gemm["bf16"].roofline.memory_frac * gpu.memory_bytes_per_s)
    fixed = np.zeros_like(moved) + kernels.sampler_t0_s
    zero = np.zeros_like(moved)
    yield OpTable("sampler", 1, "elementwise", zero, moved, fixed, zero, memory, fixed + memory)
