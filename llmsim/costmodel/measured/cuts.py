"""How kernels of our own cut their work: what a mean function can know of their rows.

A launch of few programs takes as long as the loop of one of them, whatever it reads and computes.
How long that loop is follows from the kernel's rule of cutting, which is its source; what one step
of it takes is fitted (`MeanTerms.loop_s`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from llmsim.costmodel.measured.families import FAMILIES, Device, Family, Shapes, Types
from llmsim.costmodel.measured.lines import LEAST_PART_TOKENS, MOST_PARTS
from llmsim.costmodel.measured.means import Floats, Work

WAVES: Final = 2
"""Waves of programs by which decode attention fills the GPU."""

_STEP_S: Final = 1.5e-6
"""Prior of one step of a loop [s]: a trip to memory and back for a tile; assumed."""

_SHORTEST_PART, _SHORTEST_MOST, _LONGEST_PART = 128.0, 256.0, 1024.0
"""Of contexts in short parts [tokens]."""

_MOST_ROWS: Final = 64
_GROUP: Final = 128.0
"""Weights that share a scale: one step along k of the products with few bits."""


def decode_programs(heads_q: Floats, heads_kv: Floats) -> Floats:
    """Return the programs of one request and part; see ``llmsim_kernels.ops.splits.tiles_for``."""
    return np.asarray(heads_kv * np.ceil(heads_q / heads_kv / _MOST_ROWS))


def in_parts(s: Shapes, types: Types, device: Device) -> Work:
    """Return the work of ``triton.paged_decode.v1``: contexts in parts, parts in tiles.

    Notes
    -----
    The join of the parts, a launch of its own, counts as one step more.
    """
    window = s.get("window", np.zeros_like(s["batch"]))
    seen = np.where(window > 0, np.minimum(s["kv_len"], window), s["kv_len"])
    programs = s["batch"] * decode_programs(s["heads_q"], s["heads_kv"])
    wanted = np.minimum(MOST_PARTS, np.ceil(WAVES * device.sm_count / programs))
    tile = np.where(s["head_dim"] >= 256, 32.0, 64.0)
    if types.kv != "bf16":  # numbers that are turned in registers: wider tiles, two parts at least
        narrow = s["head_dim"] <= 128
        wanted = np.where(narrow, np.maximum(wanted, 2.0), wanted)
        tile = np.where(narrow, 128.0, tile)
    parts = np.maximum(1.0, np.minimum(wanted, np.floor(s["kv_len"] / LEAST_PART_TOKENS)))
    steps = np.ceil(np.maximum(seen, 1.0) / parts / tile) + (parts > 1)
    return replace(FAMILIES["attention_decode"].work(s, types, device), serial=steps)


def in_short_parts(s: Shapes, types: Types, device: Device) -> Work:
    """Return the work of ``triton.paged_decode.v2``: parts are short whatever the batch.

    Notes
    -----
    The rule is that of ``llmsim_kernels.ops.splits.tiles_for``. The join counts as one step.
    """
    window = s.get("window", np.zeros_like(s["batch"]))
    seen = np.where(window > 0, np.minimum(s["kv_len"], window), s["kv_len"])
    seen = np.maximum(seen, 1.0)
    programs = s["batch"] * decode_programs(s["heads_q"], s["heads_kv"])
    waves = np.minimum(MOST_PARTS, np.ceil(WAVES * device.sm_count / programs))
    narrow = np.full(len(waves), types.kv != "bf16") & (s["head_dim"] <= 128)
    tile = np.where(narrow, 128.0, np.where(s["head_dim"] >= 256, 32.0, 64.0))
    # numbers of 8 bits want two parts at least, those of 4 bits long ones
    wanted = np.where(narrow & (types.kv != "int4"), np.maximum(waves, 2.0), waves)
    longest = np.where(narrow & (types.kv == "int4"), 4.0, 1.0) * _LONGEST_PART
    most = np.maximum(_SHORTEST_MOST, np.floor(longest / waves))
    most = np.maximum(most, np.ceil(s["kv_len"] / MOST_PARTS))
    parts = np.minimum(wanted, np.ceil(seen / _SHORTEST_PART))
    parts = np.maximum(parts, np.ceil(seen / most))
    steps = np.ceil(np.ceil(seen / parts) / tile) + (parts > 1)
    return replace(FAMILIES["attention_decode"].work(s, types, device), serial=steps)


def in_steps(s: Shapes, types: Types, device: Device) -> Work:
    """Return the work of ``triton.wna16_gemm.v1``: tiles of m and n, k in parts, waves of them.

    Notes
    -----
    The cut is that of an H100. A step is 128 of k for a tile of 64 x 128; programs beyond one for
    each multiprocessor wait for the next wave.
    """
    m, n, k = s["m"], s["n"], s["k"]
    few, many = m <= 16, m > 256
    tile_m = np.clip(2.0 ** np.ceil(np.log2(np.maximum(m, 1.0))), 16.0, 64.0)
    tile_m = np.where(many, 128.0, tile_m)
    tile_n = np.where(few, 64.0, 128.0)
    programs = np.ceil(m / tile_m) * np.ceil(n / tile_n)
    wanted = np.round(np.where(few, 6.0, 2.0) * device.sm_count / programs)
    most = np.minimum(16.0, np.floor(k / (4.0 * _GROUP)))
    parts = np.where(many, 1.0, np.maximum(1.0, np.minimum(wanted, most)))
    waves = np.ceil(programs * parts / device.sm_count)
    steps = waves * np.ceil(k / parts / _GROUP) * tile_m * tile_n / (64.0 * 128.0)
    return replace(FAMILIES["gemm"].work(s, types, device), serial=steps)


def in_wide_steps(s: Shapes, types: Types, device: Device) -> Work:
    """Return the work of ``triton.wna16_gemm.v2``: 4-bit weights in tiles of up to 256 rows.

    Notes
    -----
    Other widths are cut as by v1; units are those of `in_steps`. A part of k is a number of steps
    of 64, or of 128 where tiles have 32 rows.
    """
    if types.w != "int4":
        return in_steps(s, types, device)
    m, n, k = s["m"], s["n"], s["k"]
    tile_m = np.clip(2.0 ** np.ceil(np.log2(np.maximum(m, 1.0))), 16.0, 256.0)
    tile_n = 128.0
    tile_k = np.where(tile_m == 32, _GROUP, _GROUP / 2)
    programs = np.ceil(m / tile_m) * np.ceil(n / tile_n)
    filling = np.where(m <= 16, 3.5, np.where(m <= 128, 2.0, 1.0))
    wanted = np.round(filling * device.sm_count / programs)
    most = np.minimum(16.0, np.floor(k / (4.0 * _GROUP)))
    parts = np.where(m > 256, 1.0, np.maximum(1.0, np.minimum(wanted, most)))
    waves = np.ceil(programs * parts / device.sm_count)
    loop = np.ceil(k / tile_k / parts) * tile_k / _GROUP
    steps = waves * loop * tile_m * tile_n / (64.0 * 128.0)
    return replace(FAMILIES["gemm"].work(s, types, device), serial=steps)


_CUT: Final[Mapping[tuple[str, str], Callable[[Shapes, Types, Device], Work]]] = {
    ("attention_decode", "triton.paged_decode.v1"): in_parts,
    ("attention_decode", "triton.paged_decode.v2"): in_short_parts,
    ("gemm", "triton.wna16_gemm.v1"): in_steps,
    ("gemm", "triton.wna16_gemm.v2"): in_wide_steps,
}


def family_of(family: Family, kernel_id: str) -> Family:
    """Return how the rows of one kernel are understood: the family, and its cut where it is known.

    Parameters
    ----------
    family : Family
    kernel_id : str
    """
    work = _CUT.get((family.op, kernel_id))
    if work is None or family.work is work:
        return family
    start = replace(family.start, loop_s=_STEP_S)
    return replace(family, work=work, free=(*family.free, "loop_s"), start=start)
