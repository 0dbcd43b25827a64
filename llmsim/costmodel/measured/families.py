"""Operator families: the work of a row, the coordinates it is interpolated in, what is free.

References
----------
FLOPs and bytes as in `llmsim.costmodel.operators` and `llmsim.costmodel.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from llmsim.core.errors import CardError, Fault
from llmsim.costmodel.measured.means import SERIAL_STEP, UNIVERSAL, Floats, MeanTerms, Work
from llmsim.costmodel.operators import ACTIVATION_BYTES
from llmsim.specs import GpuCard, load_gpu
from llmsim.specs.profile_meta import ProfileMeta

TILE = 128.0
"""Decode kernels read KV in tiles of this many tokens; prefill takes as many query rows."""

WEIGHT_BYTES: Mapping[str, float] = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / 128**2,
    "int8": 1.0,
    "int4": 0.5 + 2.0 / 128,
    "nvfp4": 0.5 + 1.0 / 16,
    "mxfp4": 0.5 + 1.0 / 32,
    **{f"w{bits}": bits / 8 + 2.0 / 128 for bits in (2, 3, 5, 6, 7)},
}
"""Bytes of one weight with its scales: fp32 per 128 x 128 block, fp16 per group of 128, one byte
per 16 (NVFP4) or 32 (OCP MX)."""

_COMPUTE: Mapping[str, str] = {
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
}


@dataclass(frozen=True, slots=True)
class Device:
    """What the mean functions need of a device.

    Parameters
    ----------
    name : str
    peak_flops_per_s : mapping of str to float [FLOP/s]
    memory_bytes_per_s : float [bytes/s]
    cache_bytes : float [bytes]
    sm_count : int
    """

    name: str
    peak_flops_per_s: Mapping[str, float]
    memory_bytes_per_s: float
    cache_bytes: float
    sm_count: int

    @classmethod
    def of_card(cls, card: GpuCard) -> Device:
        """Return the device of a GPU card."""
        return cls(
            card.name,
            card.peak_flops_per_s,
            card.memory_bytes_per_s,
            card.cache_bytes,
            card.sm_count,
        )

    def peak(self, dtype_a: str, dtype_w: str) -> float:
        """Return the peak that a product of these types can use [FLOP/s].

        Notes
        -----
        The wider of the two decides; a type that the chip lacks runs in 16 bits.
        """
        wide = dtype_a if WEIGHT_BYTES[dtype_a] > WEIGHT_BYTES[dtype_w] else dtype_w
        word = _COMPUTE.get(wide, "bf16")
        return self.peak_flops_per_s.get(word, self.peak_flops_per_s["bf16"])


@dataclass(frozen=True, slots=True)
class Types:
    """Number formats of a family; empty where one does not apply."""

    a: str = "bf16"
    w: str = "bf16"
    kv: str = "bf16"


Shapes = Mapping[str, Floats]
"""Columns of `profile_rows` as floats, absent axes left out or filled."""


@dataclass(frozen=True, slots=True)
class Family:
    """How the rows of one operator are understood.

    Parameters
    ----------
    op : str
    work : callable
        (shapes, types, device) to `Work`.
    axes : tuple of str
        Coordinates of the residual, of `coordinates`.
    shape : tuple of str
        Columns that say whether a row is of the same shape.
    along : tuple of str
        Coordinates that remain within one shape, the interpolated ones.
    free : tuple of str
        Parameters of the mean function that are fitted.
    start : MeanTerms
        Prior of the fit.
    rising : str
        Coordinate along which time must not fall; empty for none.
    fastest : bool
        The engine takes the fastest kernel it has at each size: collectives.
    """

    op: str
    work: Callable[[Shapes, Types, Device], Work]
    axes: tuple[str, ...]
    shape: tuple[str, ...]
    along: tuple[str, ...]
    free: tuple[str, ...]
    start: MeanTerms
    rising: str = ""
    fastest: bool = False


def quantised_bytes(dtype_a: str) -> float:
    """Return what quantising one activation reads and writes; 0 where there is nothing to do."""
    return 0.0 if dtype_a == "bf16" else ACTIVATION_BYTES + WEIGHT_BYTES[dtype_a]


def _gemm(s: Shapes, types: Types, device: Device) -> Work:
    m, n, k = s["m"], s["n"], s["k"]
    weights = WEIGHT_BYTES[types.w] * n * k
    moved = weights + ACTIVATION_BYTES * m * (n + k)
    zero = np.zeros_like(m)
    return Work(
        2.0 * m * n * k / device.peak(types.a, types.w),
        moved / device.memory_bytes_per_s,
        zero,
        device.sm_count / (np.maximum(m / TILE, 1.0) * n / TILE),
        quantised_bytes(types.a) * m * k,
        moved / device.cache_bytes,
        k / SERIAL_STEP,
    )


def _decode(s: Shapes, types: Types, device: Device) -> Work:
    batch, heads, kv_heads, width = s["batch"], s["heads_q"], s["heads_kv"], s["head_dim"]
    window = s.get("window", np.zeros_like(batch))
    context = np.where(window > 0, np.minimum(s["kv_len"], window), s["kv_len"])
    padded = np.ceil(np.maximum(context, 1.0) / TILE) * TILE
    rows = np.ceil(heads / kv_heads / 16.0) * 16.0 * kv_heads
    cache = 2.0 * kv_heads * width * WEIGHT_BYTES[types.kv] * batch * padded
    own = 2.0 * ACTIVATION_BYTES * batch * heads * width
    zero = np.zeros_like(batch)
    return Work(
        4.0 * rows * width * batch * padded / device.peak("bf16", "bf16"),
        (cache + own) / device.memory_bytes_per_s,
        batch * kv_heads / device.sm_count,
        zero,
        zero,
        cache / device.cache_bytes,
        zero,
    )


def pairs(new: Floats, past: Floats, window: Floats) -> Floats:
    """Return the query-key pairs of a causal chunk, each query's keys clipped to the window."""
    whole = new * (past + 0.5 * (new + 1.0))
    rising = np.minimum(new, np.maximum(0.0, window - past))
    clipped = rising * (past + 0.5 * (rising + 1.0)) + (new - rising) * window
    return np.where(window > 0, clipped, whole)


def _prefill(s: Shapes, types: Types, device: Device) -> Work:
    batch, new, past = s["batch"], s["q_len"], s["kv_len"]
    heads, kv_heads, width = s["heads_q"], s["heads_kv"], s["head_dim"]
    window = s.get("window", np.zeros_like(batch))
    context = np.where(window > 0, np.minimum(past, window), past) + new
    cache = 2.0 * kv_heads * width * WEIGHT_BYTES[types.kv] * context
    own = 2.0 * ACTIVATION_BYTES * heads * width * new
    zero = np.zeros_like(batch)
    return Work(
        4.0 * heads * width * batch * pairs(new, past, window) / device.peak(types.a, types.a),
        batch * (cache + own) / device.memory_bytes_per_s,
        batch * heads * np.ceil(new / TILE) / device.sm_count,
        device.sm_count / (batch * heads * np.ceil(new / TILE)),
        zero,
        batch * (cache + own) / device.cache_bytes,
        zero,
    )


def _moe(s: Shapes, types: Types, device: Device) -> Work:
    """Experts drawn at random for each token."""
    return _moe_hitting(1.0 - (1.0 - s["topk"] / s["experts"]) ** s["tokens"], s, types, device)


def dealt_moe(s: Shapes, types: Types, device: Device) -> Work:
    """Experts dealt in turn, none twice before each had a token.

    Notes
    -----
    So aiconfigurator draws its *balanced* load (``collector/helper.py``, ``balanced_logits``):
    32 tokens of 4 experts reach all 128, where random ones would reach 82.
    """
    return _moe_hitting(np.minimum(1.0, s["topk"] * s["tokens"] / s["experts"]), s, types, device)


def dealt_without_skew(s: Shapes, types: Types, device: Device) -> Work:
    """Experts dealt in turn where the rows have no skew of load, drawn at random elsewhere."""
    drawn, dealt = _moe(s, types, device), dealt_moe(s, types, device)
    even = s["skew"] == 0
    return Work(
        *(
            np.where(even, getattr(dealt, part.name), getattr(drawn, part.name))
            for part in fields(Work)
        )
    )


def _moe_hitting(share: Floats, s: Shapes, types: Types, device: Device) -> Work:
    """Return the work where this share of all experts is hit."""
    tokens, hidden, inter = s["tokens"], s["hidden"], s["inter"]
    hit = share * s["experts_local"]
    rows = s["topk"] * tokens * s["experts_local"] / s["experts"]
    weights = 3.0 * hidden * inter * WEIGHT_BYTES[types.w] * hit
    moved = weights + ACTIVATION_BYTES * rows * (2.0 * hidden + 3.0 * inter)
    return Work(
        6.0 * hidden * inter * rows / device.peak(types.a, types.w),
        moved / device.memory_bytes_per_s,
        hit,
        hit / rows,
        4.0 * rows * hidden * ACTIVATION_BYTES,
        moved / device.cache_bytes,
        np.zeros_like(rows),
    )


def _mla_decode(s: Shapes, types: Types, device: Device) -> Work:
    """MLA with rank 512 and 64 rotary channels, as DeepSeek V2 and V3 have."""
    batch, heads, context = s["batch"], s["heads_q"], s["kv_len"]
    padded = np.ceil(np.maximum(context, 1.0) / TILE) * TILE
    rows = np.ceil(heads / 16.0) * 16.0
    cache = 576.0 * WEIGHT_BYTES[types.kv] * batch * padded
    own = ACTIVATION_BYTES * batch * heads * (576.0 + 512.0)
    zero = np.zeros_like(batch)
    return Work(
        2.0 * 1088.0 * rows * batch * padded / device.peak("bf16", "bf16"),
        (cache + own) / device.memory_bytes_per_s,
        batch / device.sm_count,
        zero,
        zero,
        cache / device.cache_bytes,
        zero,
    )


def _mla_prefill(s: Shapes, types: Types, device: Device) -> Work:
    """MLA expanded: 192 channels of query and key, 128 of value."""
    batch, heads, new, past = s["batch"], s["heads_q"], s["q_len"], s["kv_len"]
    zero = np.zeros_like(batch)
    moved = batch * heads * ACTIVATION_BYTES * (320.0 * (past + new) + 320.0 * new)
    return Work(
        2.0 * 320.0 * heads * batch * pairs(new, past, zero) / device.peak("bf16", "bf16"),
        moved / device.memory_bytes_per_s,
        zero,
        device.sm_count / (batch * heads * np.ceil(new / TILE)),
        zero,
        moved / device.cache_bytes,
        zero,
    )


def _moving(*axes: str, words: float) -> Callable[[Shapes, Types, Device], Work]:
    """Return the work of an operator that moves `words` 16-bit values per product of its axes."""

    def work(s: Shapes, types: Types, device: Device) -> Work:
        moved = words * ACTIVATION_BYTES * np.prod([s[axis] for axis in axes], axis=0)
        zero = np.zeros_like(moved)
        seconds = moved / device.memory_bytes_per_s
        return Work(zero, seconds, zero, zero, zero, moved / device.cache_bytes, zero)

    return work


def _rope(s: Shapes, types: Types, device: Device) -> Work:
    moved = (
        2.0 * ACTIVATION_BYTES * s["tokens"] * s["head_dim"] * (s["heads_q"] + 2.0 * s["heads_kv"])
    )
    zero = np.zeros_like(moved)
    seconds = moved / device.memory_bytes_per_s
    return Work(zero, seconds, zero, zero, zero, moved / device.cache_bytes, zero)


def _message(s: Shapes, types: Types, device: Device) -> Work:
    """Bytes of a collective, at memory bandwidth: the fit's `memory_frac` is the link's share."""
    size = s["message_bytes"]
    zero = np.zeros_like(size)
    return Work(zero, size / device.memory_bytes_per_s, zero, zero, zero, zero, zero)


_ROOF = ("t0_s", "compute_frac", "memory_frac", "norm")
_MOVING = MeanTerms(2.5e-6, 0.75, 0.80, 1.5, cache_ratio=2.0)
_MOVING_FREE = ("t0_s", "memory_frac", "cache_ratio")
_ATTENTION_SHAPE = ("heads_q", "heads_kv", "head_dim", "window")


def _elementwise(op: str, work: Callable[[Shapes, Types, Device], Work], width: str) -> Family:
    return Family(
        op, work, ("tokens", width), (width,), ("tokens",), _MOVING_FREE, _MOVING, "tokens"
    )


def _collective(op: str) -> Family:
    start = MeanTerms(1e-5, 0.75, 0.1, 1.0)
    along = ("message_bytes",)
    group = {"memcpy": (), "p2p": ("gpus",)}.get(op, ("gpus", "nodes"))
    free = ("t0_s", "memory_frac")
    return Family(op, _message, along, group, along, free, start, along[0], bool(group))


FAMILIES: Mapping[str, Family] = {
    family.op: family
    for family in (
        Family("gemm", _gemm, ("m", "n", "k"), ("n", "k"), ("m",), _ROOF, UNIVERSAL),
        Family(
            "attention_decode",
            _decode,
            ("batch", "context", "heads_kv", "sharing", "head_dim"),
            _ATTENTION_SHAPE,
            ("batch", "context"),
            (*_ROOF, "unit_s", "cache_ratio"),
            MeanTerms(1.0e-5, 0.6, 0.85, 2.0, unit_s=1.0e-6, cache_ratio=1.1),
            "context",
        ),
        Family(
            "attention_prefill",
            _prefill,
            ("lanes", "batch", "q_len", "behind", "sharing", "head_dim"),
            _ATTENTION_SHAPE,
            ("batch", "q_len", "behind"),
            (*_ROOF, "unit_s", "idle"),
            MeanTerms(1.0e-5, 0.6, 0.80, 2.0, unit_s=1.0e-6, idle=0.5),
            "behind",
        ),
        Family(
            "mla_decode",
            _mla_decode,
            ("batch", "context", "heads_q"),
            ("heads_q",),
            ("batch", "context"),
            (*_ROOF, "unit_s"),
            MeanTerms(1.5e-5, 0.6, 0.80, 2.0, unit_s=1.0e-6),
            "context",
        ),
        Family(
            "mla_prefill",
            _mla_prefill,
            ("batch", "q_len", "behind", "heads_q"),
            ("heads_q",),
            ("batch", "q_len", "behind"),
            (*_ROOF, "idle"),
            MeanTerms(1.5e-5, 0.5, 0.80, 2.0, idle=0.5),
            "behind",
        ),
        Family(
            "moe",
            _moe,
            ("tokens", "hidden", "inter", "topk", "experts_local"),
            ("hidden", "inter", "topk", "experts", "experts_local", "skew"),
            ("tokens",),
            (*_ROOF, "unit_s", "idle", "gather_s_per_byte"),
            MeanTerms(4.0e-5, 0.5, 0.85, 2.0, 1e-7, 30.0, 3e-13),
        ),
        _elementwise("norm", _moving("tokens", "hidden", words=4.0), "hidden"),
        _elementwise("residual_add", _moving("tokens", "hidden", words=3.0), "hidden"),
        _elementwise("act_quant", _moving("tokens", "hidden", words=1.5), "hidden"),
        _elementwise("gather", _moving("tokens", "hidden", words=2.0), "hidden"),
        _elementwise("activation", _moving("tokens", "inter", words=3.0), "inter"),
        _elementwise("rope", _rope, "heads_q"),
        _elementwise("kv_write", _moving("tokens", "heads_kv", "head_dim", words=4.0), "heads_kv"),
        Family(
            "sampler",
            _moving("logit_rows", "vocab", words=8.0),
            ("logit_rows", "vocab"),
            ("vocab",),
            ("logit_rows",),
            ("t0_s", "memory_frac"),
            MeanTerms(1.2e-5, 0.75, 0.5, 1.0),
            "logit_rows",
        ),
        *(
            _collective(op)
            for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p", "memcpy")
        ),
    )
}
"""Families by operator; rows of other operators are kept, and priced by none."""


def coordinate(name: str, s: Shapes) -> Floats:
    """Return one residual coordinate of each row, in octaves.

    Notes
    -----
    Padded axes are padded first: within a KV tile nothing changes, so nothing is interpolated.
    """
    if name == "context":
        window = s.get("window", np.zeros_like(s["kv_len"]))
        context = np.where(window > 0, np.minimum(s["kv_len"], window), s["kv_len"])
        return np.asarray(np.log2(np.ceil(np.maximum(context, 1.0) / TILE)))
    if name == "behind":
        return np.asarray(np.log2(1.0 + s["kv_len"] / s["q_len"]))
    if name == "lanes":  # with batch, this spans the heads: parallel work comes first
        return np.asarray(np.log2(s["batch"] * s["heads_q"]))
    if name == "sharing":
        return np.asarray(np.log2(s["heads_q"] / s["heads_kv"]))
    return np.asarray(np.log2(np.maximum(s[name], 1.0)))


def device_of(meta: ProfileMeta, card: GpuCard | None = None) -> Device:
    """Return the device of a profile: its GPU card, or what its ceilings showed.

    Parameters
    ----------
    meta : ProfileMeta
    card : GpuCard or None
        Given by the pool; otherwise the card that meta names.

    Raises
    ------
    CardError
        If meta names no card and has no ceilings.
    """
    name = meta.device.get("gpu_card")
    if card is not None or name:
        return Device.of_card(card or load_gpu(str(name)))
    peaks = meta.ceilings.get("flops_per_s", {})
    copy = meta.ceilings.get("copy_bytes_per_s", [])
    if not peaks or not copy:
        message = "neither device.gpu_card nor ceilings say how fast this device is."
        raise CardError("meta.json", [Fault("", "device.gpu_card", message)])
    best = {dtype: max(np.atleast_1d(values)) for dtype, values in peaks.items()}
    best.setdefault("bf16", max(best.values()))
    return Device(
        str(meta.device["name"]),
        {dtype: float(value) for dtype, value in best.items()},
        float(max(np.atleast_1d(copy))),
        float(meta.device.get("l2_bytes", 32e6)),
        int(meta.device.get("sms", 1)),
    )
