"""Attention and recurrence: the operators whose cost depends on contexts, as closed forms.

A `MixerPrice` is one mixer kind on one rank reduced to a few numbers, in nanoseconds, all layers
of the kind together. Decode is a straight line in the batch and in the padded context sums: where
FLOPs and bytes both grow with the same sum, the smooth norm is a constant times that sum. Prefill
is one smooth roofline over sums of the step's chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from llmsim.core.units import NS_PER_S
from llmsim.costmodel.operators import ACTIVATION_BYTES
from llmsim.specs import (
    KV_BYTES,
    GpuCard,
    LatentAttention,
    LayerSpec,
    OperatorScales,
    RecurrentMixer,
    SmoothRoofline,
    SoftmaxAttention,
)
from llmsim.specs.layers import SparseIndexer

CONTEXT_TILE = 128
"""Decode kernels read KV in tiles of this many tokens [tokens]."""

_MMA_ROWS = 16  # tensor cores pad the query rows of one KV head to this multiple
_SCAN_TOKENS = 128  # tokens per state exchange of the parallel scan (Nemotron-H chunk_size)
_SCORE_BYTES = 8.0  # the indexer writes one fp32 score per pair, top-k reads it


class ChunkSums(NamedTuple):
    """What prefill attention depends on, summed over a step's chunks of c new on s past tokens.

    Parameters
    ----------
    new, past : int [tokens]
    pairs : float
        Query-key pairs, ``c (s + (c + 1) / 2)``.
    clipped_past, clipped_pairs : int, float
        The same with each query's keys limited to the window.
    tiles : int
        Query tiles of 128 rows, ``ceil(c / 128)``.
    """

    new: int
    past: int
    pairs: float
    clipped_past: int
    clipped_pairs: float
    tiles: int


class PerToken(NamedTuple):
    """A quantity of decode that grows with the context sums and the batch."""

    padded: float = 0.0
    windowed: float = 0.0
    request: float = 0.0


class PerChunk(NamedTuple):
    """A quantity of prefill, as weights of the entries of `ChunkSums`."""

    pairs: float = 0.0
    clipped_pairs: float = 0.0
    new: float = 0.0
    past: float = 0.0
    context: float = 0.0
    clipped_context: float = 0.0

    def of(self, sums: ChunkSums) -> float:
        """Return the weighted sum; context is past plus new."""
        return (
            self.pairs * sums.pairs
            + self.clipped_pairs * sums.clipped_pairs
            + self.new * sums.new
            + self.past * sums.past
            + self.context * (sums.past + sums.new)
            + self.clipped_context * (sums.clipped_past + sums.new)
        )

    def times(self, factor: float) -> PerChunk:
        """Return all weights multiplied by a factor."""
        return PerChunk(*(factor * weight for weight in self))


@dataclass(frozen=True, slots=True)
class MixerPrice:
    """One mixer kind on one rank, all its layers together.

    Parameters
    ----------
    name : str
    layers : int [layers]
    dtype : str
        Compute dtype whose peak bounds it.
    decode_fixed_ns : float [ns]
    decode_ns : PerToken [ns/token], [ns/token], [ns/request]
    mixed_fixed_ns, mixed_scale : float [ns], factor
        Beside prefill chunks, decode costs ``mixed_fixed + mixed_scale * decode_ns``.
    prefill_fixed_ns : float [ns]
    compute_ns, memory_ns : PerChunk
        Prefill time by either limit alone.
    starved : float [tiles]
        Compute time grows by ``1 + starved / tiles``: few query tiles leave SMs idle.
    norm : float
        Exponent that joins the two.
    decode_flops, decode_bytes : PerToken
    prefill_flops, prefill_bytes : PerChunk
        Of one layer, for explaining.
    """

    name: str
    layers: int
    dtype: str
    decode_fixed_ns: float
    decode_ns: PerToken
    mixed_fixed_ns: float
    mixed_scale: float
    prefill_fixed_ns: float
    compute_ns: PerChunk
    memory_ns: PerChunk
    starved: float
    norm: float
    decode_flops: PerToken
    decode_bytes: PerToken
    prefill_flops: PerChunk
    prefill_bytes: PerChunk

    def limits_ns(self, sums: ChunkSums) -> tuple[float, float]:
        """Return the time that prefill would take by compute and by memory alone [ns]."""
        compute = self.compute_ns.of(sums) * (1.0 + self.starved / sums.tiles)
        return compute, self.memory_ns.of(sums)

    def prefill_ns(self, sums: ChunkSums) -> float:
        """Return the price of a step's prefill attention, all layers of this kind [ns]."""
        compute, memory = self.limits_ns(sums)
        joined = (compute**self.norm + memory**self.norm) ** (1.0 / self.norm)
        return self.prefill_fixed_ns + float(joined)


@dataclass(frozen=True, slots=True)
class _Work:
    """FLOPs and bytes of one layer of a mixer on one rank."""

    name: str
    dtype: str
    decode_flops: PerToken
    priced_flops: PerToken
    decode_bytes: PerToken
    prefill_flops: PerChunk
    prefill_bytes: PerChunk


def scaled_mixer(mixer: MixerPrice, scales: OperatorScales, gpu: GpuCard) -> MixerPrice:
    """Multiply a mixer's times by the factors of decode and of prefill attention.

    Notes
    -----
    Each slope of decode, and each limit of prefill, stays at or above FLOP/peak and
    bytes/bandwidth, whatever the factor.
    """
    peak, bandwidth = gpu.peak_flops_per_s[mixer.dtype], gpu.memory_bytes_per_s
    each = mixer.layers * NS_PER_S
    floors = [
        each * max(flops / peak, moved / bandwidth)
        for flops, moved in zip(mixer.decode_flops, mixer.decode_bytes, strict=True)
    ]
    decode, prefill = scales.attention_decode, scales.attention_prefill
    slopes = [
        slope if decode == 1.0 else max(decode * slope, floor)
        for slope, floor in zip(mixer.decode_ns, floors, strict=True)
    ]
    return replace(
        mixer,
        decode_fixed_ns=decode * mixer.decode_fixed_ns,
        decode_ns=PerToken(*slopes),
        mixed_fixed_ns=decode * mixer.mixed_fixed_ns,
        prefill_fixed_ns=prefill * mixer.prefill_fixed_ns,
        compute_ns=_slowed(mixer.compute_ns, mixer.prefill_flops.times(each / peak), prefill),
        memory_ns=_slowed(mixer.memory_ns, mixer.prefill_bytes.times(each / bandwidth), prefill),
    )


def _slowed(priced: PerChunk, floor: PerChunk, factor: float) -> PerChunk:
    if factor == 1.0:
        return priced
    return PerChunk(*(max(factor * a, b) for a, b in zip(priced, floor, strict=True)))


def _price(
    work: _Work,
    layers: int,
    gpu: GpuCard,
    decode: SmoothRoofline,
    prefill: SmoothRoofline,
    wave_s: float = 0.0,
    kappa: float | None = None,
    starved: float = 0.0,
) -> MixerPrice:
    """Turn work into time; `kappa` is None where prefill and decode are separate launches."""
    scale = layers * NS_PER_S
    peak, bandwidth = gpu.peak_flops_per_s[work.dtype], gpu.memory_bytes_per_s
    slopes = [
        scale * _joined(flops, moved, decode, peak, bandwidth)
        for flops, moved in zip(work.priced_flops, work.decode_bytes, strict=True)
    ]
    slopes[2] += scale * wave_s
    return MixerPrice(
        name=work.name,
        layers=layers,
        dtype=work.dtype,
        decode_fixed_ns=scale * decode.t0_s,
        decode_ns=PerToken(*slopes),
        mixed_fixed_ns=scale * decode.t0_s if kappa is None else 0.0,
        mixed_scale=1.0 if kappa is None else kappa,
        prefill_fixed_ns=scale * prefill.t0_s,
        compute_ns=work.prefill_flops.times(scale / (prefill.compute_frac * peak)),
        memory_ns=work.prefill_bytes.times(scale / (prefill.memory_frac * bandwidth)),
        starved=starved,
        norm=prefill.norm,
        decode_flops=work.decode_flops,
        decode_bytes=work.decode_bytes,
        prefill_flops=work.prefill_flops,
        prefill_bytes=work.prefill_bytes,
    )


def _joined(
    flops: float, moved: float, terms: SmoothRoofline, peak: float, bandwidth: float
) -> float:
    compute = flops / (terms.compute_frac * peak)
    memory = moved / (terms.memory_frac * bandwidth)
    return float((compute**terms.norm + memory**terms.norm) ** (1.0 / terms.norm))


def price_mixer(layer: LayerSpec, gpu: GpuCard, tp: int, kv_dtype: str) -> list[MixerPrice]:
    """Reduce a layer's mixer to its closed forms; a layer without one gives none.

    Parameters
    ----------
    layer : LayerSpec
    gpu : GpuCard
    tp : int [GPUs]
    kv_dtype : str
        A key of `KV_BYTES`.
    """
    mixer = layer.mixer
    if isinstance(mixer, SoftmaxAttention):
        return [_softmax(mixer, layer.count, gpu, tp, KV_BYTES[kv_dtype])]
    if isinstance(mixer, LatentAttention):
        latent = _latent(mixer, layer.count, gpu, tp, KV_BYTES[kv_dtype])
        if mixer.indexer is None:
            return [latent]
        return [latent, _indexer(mixer.indexer, layer.count, gpu)]
    if isinstance(mixer, RecurrentMixer):
        return [_recurrent(mixer, layer.count, gpu, tp)]
    return []


def _softmax(
    mixer: SoftmaxAttention, layers: int, gpu: GpuCard, tp: int, kv_bytes: float
) -> MixerPrice:
    kernels = gpu.kernels
    decode = kernels.decode_attention["bf16" if kv_bytes > 1 else "fp8"]
    heads, kv_heads = mixer.heads // tp, mixer.kv_heads_per_rank(tp)
    group = -(-heads // kv_heads)
    rows = -(-group // _MMA_ROWS) * _MMA_ROWS * kv_heads
    flops, padded = 4.0 * heads * mixer.head_dim, 4.0 * rows * mixer.head_dim
    cache = 2.0 * kv_heads * mixer.head_dim * kv_bytes
    own = 2.0 * ACTIVATION_BYTES * heads * mixer.head_dim
    if mixer.window_tokens:
        work = _Work(
            "attention (window)",
            "bf16",
            PerToken(windowed=flops),
            PerToken(windowed=padded),
            PerToken(windowed=cache),
            PerChunk(clipped_pairs=flops),
            PerChunk(new=own, clipped_context=cache),
        )
    else:
        work = _Work(
            "attention",
            "bf16",
            PerToken(padded=flops),
            PerToken(padded=padded),
            PerToken(padded=cache),
            PerChunk(pairs=flops),
            PerChunk(new=own, context=cache),
        )
    fused = kernels.mixed_launches == 1
    return _price(
        work,
        layers,
        gpu,
        decode.roofline,
        kernels.prefill_attention.roofline,
        wave_s=decode.wave_s * kv_heads / gpu.sm_count,
        kappa=1.0 + kernels.mixed_slope_per_group * (group - 1) if fused else None,
        starved=_starved(gpu, heads),
    )


def _starved(gpu: GpuCard, heads: int) -> float:
    return gpu.kernels.prefill_attention.half_tiles_per_sm * gpu.sm_count / heads


def _latent(
    mixer: LatentAttention, layers: int, gpu: GpuCard, tp: int, kv_bytes: float
) -> MixerPrice:
    """Price MLA: absorbed in decode; in prefill expanded, absorbed too when sparse.

    Notes
    -----
    The absorbed products with the up-projection cost as much per token as the plain one, so the
    token-wise GEMM `kv_b` covers both; only the context's own expansion is added here.
    """
    heads = mixer.heads // tp
    absorbed = 2.0 * (2.0 * mixer.kv_rank + mixer.rope_dim)
    rows = -(-heads // _MMA_ROWS) * _MMA_ROWS
    cache = (mixer.kv_rank + mixer.rope_dim) * kv_bytes
    wide = heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
    if mixer.indexer:
        own = ACTIVATION_BYTES * heads * (2.0 * mixer.kv_rank + mixer.rope_dim)
        work = _Work(
            "attention (sparse latent)",
            "bf16",
            PerToken(windowed=absorbed * heads),
            PerToken(windowed=absorbed * rows),
            PerToken(windowed=cache),
            PerChunk(clipped_pairs=absorbed * heads),
            PerChunk(new=own, clipped_context=cache),
        )
    else:
        expand = 2.0 * mixer.kv_rank * heads * (mixer.nope_dim + mixer.value_dim)
        work = _Work(
            "attention (latent)",
            "bf16",
            PerToken(padded=absorbed * heads),
            PerToken(padded=absorbed * rows),
            PerToken(padded=cache),
            PerChunk(pairs=2.0 * wide, past=expand),
            PerChunk(new=ACTIVATION_BYTES * wide, context=cache + ACTIVATION_BYTES * wide),
        )
    kernels = gpu.kernels
    return _price(
        work,
        layers,
        gpu,
        kernels.latent_decode,
        kernels.prefill_attention.roofline,
        starved=_starved(gpu, heads),
    )


def _indexer(indexer: SparseIndexer, layers: int, gpu: GpuCard) -> MixerPrice:
    """Price the indexer of sparse attention: it scores the whole context, on every rank."""
    dtype = gpu.compute_dtype("fp8")
    flops = 2.0 * indexer.heads * indexer.head_dim
    key = indexer.head_dim + 4.0
    work = _Work(
        "indexer",
        dtype,
        PerToken(padded=flops),
        PerToken(padded=flops),
        PerToken(padded=key + _SCORE_BYTES),
        PerChunk(pairs=flops),
        PerChunk(new=float(indexer.heads * indexer.head_dim), context=key, pairs=_SCORE_BYTES),
    )
    terms = gpu.kernels.gemm[dtype].roofline
    return _price(work, layers, gpu, terms, terms)


def _recurrent(mixer: RecurrentMixer, layers: int, gpu: GpuCard, tp: int) -> MixerPrice:
    """Price a linear-recurrent mixer: decode reads and writes each sequence's state.

    Notes
    -----
    Decode ``6 B h d s`` FLOP and the state twice; prefill ``2 T h [Q (s + d) / 2 + 2 d s]`` FLOP
    with chunks of Q tokens, the state twice per chunk.
    """
    heads, state = mixer.heads // tp, mixer.state_bytes(tp)
    cells = float(heads * mixer.head_dim * mixer.state_dim)
    scan = (
        2.0
        * heads
        * (
            _SCAN_TOKENS * (mixer.state_dim + mixer.head_dim) / 2.0
            + 2.0 * mixer.head_dim * mixer.state_dim
        )
    )
    moved = 2.0 * ACTIVATION_BYTES * mixer.conv_channels(tp) + 2.0 * state / _SCAN_TOKENS
    work = _Work(
        "recurrence",
        "bf16",
        PerToken(request=6.0 * cells),
        PerToken(request=6.0 * cells),
        PerToken(request=2.0 * state),
        PerChunk(new=scan),
        PerChunk(new=moved),
    )
    terms = gpu.kernels.recurrent
    return _price(work, layers, gpu, terms, terms)
