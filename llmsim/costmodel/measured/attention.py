"""Attention priced from a profile, reduced to grids that a step reads in a few operations.

Decode is looked up once on a grid of batch sizes and contexts, prefill on one of chunks, chunk
lengths and history. What is kept is the residual; the mean function is evaluated exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmsim.core.units import NS_PER_S
from llmsim.costmodel.attention import ChunkSums, MixerPrice
from llmsim.costmodel.measured.families import (
    FAMILIES,
    TILE,
    WEIGHT_BYTES,
    Device,
    Types,
)
from llmsim.costmodel.measured.lines import Tail
from llmsim.costmodel.measured.means import Floats, MeanTerms, mean_s
from llmsim.costmodel.measured.mixed import Kappa, measured_kappa
from llmsim.costmodel.measured.profile import Profile, filled
from llmsim.costmodel.measured.tables import Context, Latencies
from llmsim.costmodel.measured.tail import measured_tail
from llmsim.costmodel.operators import ACTIVATION_BYTES
from llmsim.specs import LatentAttention, LayerSpec, SoftmaxAttention

POINTS_PER_OCTAVE = 4
MIXED_SLOPE, MIXED_SLOPE_CAP = 0.25, 0.5
STREAMS_NORM = 4.0
"""Prefill and decode on two streams blend like the longer one; exponent assumed."""


@dataclass(frozen=True)
class DecodeGrid:
    """Decode attention of one mixer kind over batches and contexts.

    Parameters
    ----------
    batches, contexts : ndarray (b,), (c,) [requests], [tokens]
        Contexts are multiples of the tile.
    seconds : ndarray (b, c) [s]
        Of one layer, rising with context.
    t0_s : float [s]
        Floor of the launch.
    layers : int
    sigma : float
        Log standard deviation, by time.
    """

    batches: Floats
    contexts: Floats
    seconds: Floats
    t0_s: float
    layers: int
    sigma: float = 0.0

    def at(self, batch: int, contexts: Floats) -> Floats:
        """Return the time of all layers at a batch size [ns], log-log between grid points.

        Parameters
        ----------
        batch : int [requests]
        contexts : ndarray (n,) [tokens]
        """
        place = np.interp(math.log2(batch), np.log2(self.batches), np.arange(len(self.batches)))
        low = min(int(place), len(self.batches) - 2) if len(self.batches) > 1 else 0
        share = place - low
        logs = np.log(self.seconds)
        row = logs[low] if len(logs) == 1 else (1 - share) * logs[low] + share * logs[low + 1]
        beyond = np.maximum(np.log2(contexts / self.contexts[-1]), 0.0)
        slope = (row[-1] - row[-2]) / np.log2(self.contexts[-1] / self.contexts[-2])
        inside = np.interp(np.log2(contexts), np.log2(self.contexts), row)
        ceiling = max(batch / self.batches[-1], 1.0)
        seconds = np.exp(inside + slope * beyond) * ceiling
        return np.asarray(self.layers * NS_PER_S * seconds)


@dataclass(frozen=True)
class PrefillGrid:
    """Prefill attention of one mixer kind: a smooth roofline times a looked-up factor.

    Parameters
    ----------
    weights : tuple of float
        Compute and memory limits as weights of the sums of a step's chunks, see `at`.
    idle, unit_ns, fixed_ns, norm : float
    factor : list of list of list of float
        By log2 of chunks, of twice the octaves of chunk length, and of octaves of history.
    windowed : bool
        Whether pairs and context are those clipped at the window.
    sigma : float
        Log standard deviation, by time.
    """

    weights: tuple[float, float, float]
    idle: float
    unit_ns: float
    fixed_ns: float
    norm: float
    factor: list[list[list[float]]]
    windowed: bool
    sigma: float = 0.0

    def at(self, sums: ChunkSums, chunks: int) -> float:
        """Return the time of a step's prefill attention, all layers of this kind [ns]."""
        new, past, pairs, clipped_past, clipped_pairs, tiles = sums
        per_pair, per_new, per_context = self.weights
        if self.windowed:
            pairs, past = clipped_pairs, clipped_past
        compute = per_pair * pairs * (1.0 + self.idle / tiles)
        memory = per_new * new + per_context * (past + new)
        joined = float((compute**self.norm + memory**self.norm) ** (1.0 / self.norm))
        mean: float = self.fixed_ns + self.unit_ns * tiles + joined
        return mean * self._factor(math.log2(chunks), new / chunks, past / new)

    def _factor(self, first: float, length: float, history: float) -> float:
        """Interpolate the factor; beyond the grid it holds."""
        table = self.factor
        i, x = _place(first, len(table))
        j, y = _place(2.0 * math.log2(length), len(table[0]))
        k, z = _place(math.log2(1.0 + history), len(table[0][0]))
        near = _between(table[i], j, y, k, z)
        return near + x * (_between(table[i + 1], j, y, k, z) - near) if x else near


def _between(plane: list[list[float]], j: int, y: float, k: int, z: float) -> float:
    row = plane[j]
    low = row[k] + z * (row[k + 1] - row[k]) if z else row[k]
    if not y:
        return low
    row = plane[j + 1]
    high = row[k] + z * (row[k + 1] - row[k]) if z else row[k]
    return low + y * (high - low)


def _place(position: float, count: int) -> tuple[int, float]:
    if position <= 0.0:
        return 0, 0.0
    if position >= count - 1:
        return count - 1, 0.0
    index = int(position)
    return index, position - index


@dataclass(frozen=True)
class MeasuredMixer:
    """One mixer kind: what the profile says of it, and the roofline for the rest.

    Parameters
    ----------
    price : MixerPrice
    decode : DecodeGrid or None
    prefill : PrefillGrid or None
    kappa : Kappa or None
        What decode costs in one launch with prefill, from rows of mixed batches.
    tail : Tail or None
        What the longest context of a batch adds, from rows of uneven batches.
    """

    price: MixerPrice
    decode: DecodeGrid | None
    prefill: PrefillGrid | None
    kappa: Kappa | None = None
    tail: Tail | None = None


def measure_mixer(
    layer: LayerSpec,
    price: MixerPrice,
    profile: Profile,
    context: Context,
    tp: int,
    kv_dtype: str,
    most: tuple[int, int, int],
) -> MeasuredMixer:
    """Look a mixer up in a profile.

    Parameters
    ----------
    layer : LayerSpec
    price : MixerPrice
        Its roofline.
    profile : Profile
    context : Context
    tp : int [GPUs]
    kv_dtype : str
    most : tuple of int
        Requests in a step, tokens of context of one, tokens of prefill in a step.
    """
    kv = "fp8" if kv_dtype.startswith("fp8") else "int4" if kv_dtype == "int4" else "bf16"
    context = replace(context, types=Types(kv=kv))
    mixer = layer.mixer
    if price.name == "indexer":
        return MeasuredMixer(price, None, None)
    if isinstance(mixer, SoftmaxAttention):
        shape = {
            "heads_q": float(mixer.heads // tp),
            "heads_kv": float(mixer.kv_heads_per_rank(tp)),
            "head_dim": float(mixer.head_dim),
            "window": float(mixer.window_tokens),
        }
        decode = _decode_grid("attention_decode", shape, layer.count, profile, context, most)
        prefill = _prefill_grid("attention_prefill", shape, layer.count, profile, context, most)
        kappa = measured_kappa(profile, shape, context) if decode and prefill else None
        tail = measured_tail(profile, shape, context, layer.count) if decode else None
        return MeasuredMixer(price, decode, prefill, kappa, tail)
    if isinstance(mixer, LatentAttention) and _is_deepseek(mixer):
        shape = {"heads_q": float(mixer.heads // tp)}
        decode = _decode_grid("mla_decode", shape, layer.count, profile, context, most)
        prefill = _prefill_grid("mla_prefill", shape, layer.count, profile, context, most)
        return MeasuredMixer(price, decode, prefill)
    return MeasuredMixer(price, None, None)


def windowed_decode(
    mixers: Sequence[MeasuredMixer], batch: int, tile: int, window: int, scale: float
) -> tuple[float, float]:
    """Return windowed decode attention as a straight line: fixed part and slope [ns].

    Drawn through a context of one tile and one that fills the window.

    Parameters
    ----------
    mixers : sequence of MeasuredMixer
    batch : int [requests]
    tile, window : int [tokens]
    scale : float
        Factor on what was measured.
    """
    edge = -(-window // tile) * tile
    fixed = slope = 0.0
    for mixer in mixers:
        if not mixer.price.decode_ns.windowed:
            continue
        price = mixer.price
        if mixer.decode is None:
            fixed += price.decode_fixed_ns + price.decode_ns.request * batch
            slope += price.decode_ns.windowed
            continue
        first = float(tile)
        ends = np.array([first, max(edge, 2 * first)])
        low, high = scale * mixer.decode.at(batch, ends)
        steep = max(0.0, (high - low) / (batch * (ends[1] - ends[0])))
        fixed += low - steep * batch * first
        slope += steep
    return fixed, slope


def _is_deepseek(mixer: LatentAttention) -> bool:
    """Say whether a latent mixer has the widths that public tables were measured with."""
    return mixer.indexer is None and (mixer.kv_rank, mixer.rope_dim) == (512, 64)


def _octaves(low: float, high: float, per_octave: float) -> Floats:
    count = max(2, math.ceil(math.log2(max(high / low, 1.01)) * per_octave) + 1)
    return np.asarray(low * 2.0 ** (np.arange(count) / per_octave))


def _decode_grid(
    op: str,
    shape: dict[str, float],
    layers: int,
    profile: Profile,
    context: Context,
    most: tuple[int, int, int],
) -> DecodeGrid | None:
    if not profile.covers(op, context):
        return None
    requests, longest, _ = most
    batches = np.unique(np.round(_octaves(1.0, float(requests), 2.0)))
    contexts = np.unique(np.ceil(_octaves(TILE, max(longest, 2 * TILE), POINTS_PER_OCTAVE) / TILE))
    contexts *= TILE
    batch, length = (part.ravel() for part in np.meshgrid(batches, contexts, indexing="ij"))
    asked = {"batch": batch, "kv_len": length, **{n: np.array([v]) for n, v in shape.items()}}
    answer = profile.latencies(op, asked, context)
    seconds = answer.seconds.reshape(len(batches), len(contexts))
    rising = np.maximum.accumulate(seconds, axis=1)
    return DecodeGrid(
        batches, contexts, rising, _floor_s(profile, op, context), layers, _sigma(answer)
    )


def _sigma(answer: Latencies) -> float:
    return float(np.average(answer.sigma, weights=answer.seconds))


def _floor_s(profile: Profile, op: str, context: Context) -> float:
    return profile.terms(op, context).t0_s


def _prefill_grid(
    op: str,
    shape: dict[str, float],
    layers: int,
    profile: Profile,
    context: Context,
    most: tuple[int, int, int],
) -> PrefillGrid | None:
    if not profile.covers(op, context):
        return None
    terms, types = profile.terms(op, context), context.types
    chunks = 2.0 ** np.arange(max(2, math.ceil(math.log2(max(most[0], 2))) + 1))
    lengths = 2.0 ** (np.arange(2 * math.ceil(math.log2(max(most[2], 2))) + 1) / 2.0)
    history = 2.0 ** np.arange(math.ceil(math.log2(1.0 + most[1])) + 1) - 1.0
    grid = np.meshgrid(chunks, lengths, history, indexing="ij")
    batch, length, ratio = (part.ravel() for part in grid)
    asked = {
        "batch": batch,
        "q_len": length,
        "kv_len": ratio * length,
        **{name: np.array([value]) for name, value in shape.items()},
    }
    whole = filled(FAMILIES[op], asked)
    useful = (batch * length <= 4 * most[2]) & (length * (1 + ratio) <= 4 * most[1])
    factor = np.ones(len(batch))
    kept = {name: column[useful] for name, column in whole.items()}
    mean = mean_s(FAMILIES[op].work(kept, types, profile.device), terms)
    answer = profile.latencies(op, kept, context)
    factor[useful] = answer.seconds / mean
    cube = _spread(factor, useful, grid[0].shape)
    made = _weights(_widths(shape), terms, types, profile.device, layers, cube)
    return replace(made, sigma=_sigma(answer))


def _spread(factor: Floats, useful: Floats, shape: tuple[int, ...]) -> list[list[list[float]]]:
    """Give cells that no step reaches the factor of their neighbour with less history."""
    cube, known = factor.reshape(shape), useful.reshape(shape)
    for axis in (2, 1, 0):
        moved, seen = np.moveaxis(cube, axis, 0), np.moveaxis(known, axis, 0)
        for index in range(1, len(moved)):
            moved[index] = np.where(seen[index], moved[index], moved[index - 1])
            seen[index] |= seen[index - 1]
    cells: list[list[list[float]]] = cube.tolist()
    return cells


@dataclass(frozen=True)
class _Widths:
    """What one token's attention takes: FLOPs per pair, bytes of its own and in the cache."""

    heads: float
    pair_flops: float
    own_bytes: float
    cache_words: float
    windowed: bool


def _widths(shape: dict[str, float]) -> _Widths:
    """Return the widths of a mixer, as the work functions of `families` have them."""
    heads = shape["heads_q"]
    if "heads_kv" not in shape:  # MLA expanded: 192 channels of query and key, 128 of value
        words = ACTIVATION_BYTES * 320.0 * heads
        return _Widths(heads, 2.0 * 320.0 * heads, words, words / WEIGHT_BYTES["bf16"], False)
    width = shape["head_dim"]
    return _Widths(
        heads,
        4.0 * heads * width,
        2.0 * ACTIVATION_BYTES * heads * width,
        2.0 * shape["heads_kv"] * width,
        shape["window"] > 0,
    )


def _weights(
    widths: _Widths,
    terms: MeanTerms,
    types: Types,
    device: Device,
    layers: int,
    factor: list[list[list[float]]],
) -> PrefillGrid:
    """Turn the family's mean function into weights of the sums of chunks."""
    heads = widths.heads
    scale = layers * NS_PER_S
    peak = terms.compute_frac * device.peak(types.a, types.a)
    bandwidth = terms.memory_frac * device.memory_bytes_per_s
    cache = widths.cache_words * WEIGHT_BYTES[types.kv]
    return PrefillGrid(
        weights=(
            scale * widths.pair_flops / peak,
            scale * widths.own_bytes / bandwidth,
            scale * cache / bandwidth,
        ),
        idle=terms.idle * device.sm_count / heads,
        unit_ns=scale * terms.unit_s * heads / device.sm_count,
        fixed_ns=scale * terms.t0_s,
        norm=terms.norm,
        factor=factor,
        windowed=widths.windowed,
    )
