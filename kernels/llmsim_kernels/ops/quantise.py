"""Quantise and dequantise rows: one scale per token or per group of numbers; int8 and e4m3."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.bits import e4m3_to_half, nearest, to_e4m3
from llmsim_kernels.ops.device import has_fp8, power_of_two

KERNEL_ID = "triton.quantise.v1"
DEQUANTISE_ID = "triton.dequantise.v1"

LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Largest number of a type (OCP OFP8 for e4m3)."""

_ELEMENTS = 4096
"""Numbers of one program, where rows are shorter than that."""


@triton.jit
def quantised(x, largest, KIND: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """Return bytes and scales of the rows of a tile of fp32 numbers; zeros have scale 1."""
    size = tl.max(tl.abs(x), 1)
    scale = tl.where(size > 0, size / largest, 1.0)
    scaled = tl.minimum(tl.maximum(x / scale[:, None], -largest), largest)
    if KIND == "fp8":
        byte = to_e4m3(scaled, NATIVE_FP8)
    else:
        byte = nearest(scaled).to(tl.int8).to(tl.uint8, bitcast=True)
    return byte, scale


@triton.jit(do_not_specialize=["rows"])
def _quantise(
    x_ptr,
    out_ptr,
    scale_ptr,
    rows,
    largest,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    row_ok = row < rows
    ok = row_ok[:, None] & (column < WIDTH)[None, :]
    place = row[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + place, mask=ok, other=0.0).to(tl.float32)
    byte, scale = quantised(x, largest, KIND, NATIVE_FP8)
    tl.store(out_ptr + place, byte, mask=ok)
    tl.store(scale_ptr + row, scale, mask=row_ok)


@triton.jit(do_not_specialize=["rows"])
def _dequantise(
    x_ptr,
    scale_ptr,
    out_ptr,
    rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    row_ok = row < rows
    ok = row_ok[:, None] & (column < WIDTH)[None, :]
    place = row[:, None] * WIDTH + column[None, :]
    byte = tl.load(x_ptr + place, mask=ok, other=0)
    if KIND == "fp8":
        x = e4m3_to_half(byte, NATIVE_FP8).to(tl.float32)
    else:
        x = byte.to(tl.int8, bitcast=True).to(tl.float32)
    scale = tl.load(scale_ptr + row, mask=row_ok, other=0.0)
    tl.store(out_ptr + place, x * scale[:, None], mask=ok)


def quantise(x: Any, kind: str, group: int = 0) -> tuple[Any, Any]:
    """Return quantised numbers and their scales.

    Parameters
    ----------
    x : Tensor (tokens, width)
    kind : str
        int8 or fp8 (e4m3).
    group : int
        Numbers that share a scale, a divisor of `width`; 0 for one scale per token.

    Returns
    -------
    tuple of Tensor
        (tokens, width) of int8 or float8_e4m3fn; fp32 scales (tokens, width / group).
    """
    tokens, width = x.shape
    group = group or width
    rows = tokens * (width // group)
    out = torch.empty((tokens, width), dtype=torch.uint8, device=x.device)
    scales = torch.empty((tokens, width // group), dtype=torch.float32, device=x.device)
    padded = power_of_two(group)
    each = max(1, _ELEMENTS // padded)
    _quantise[(-(-rows // each),)](
        x,
        out,
        scales,
        rows,
        LARGEST[kind],
        WIDTH=group,
        PADDED=padded,
        ROWS=each,
        KIND=kind,
        NATIVE_FP8=has_fp8(x.device),
        num_warps=warps_for(padded),
    )
    return out.view(torch.int8 if kind == "int8" else torch.float8_e4m3fn), scales


def dequantise(x: Any, scales: Any, dtype: Any) -> Any:
    """Return the numbers that quantised ones stand for.

    Parameters
    ----------
    x : Tensor (tokens, width), int8 or float8_e4m3fn
    scales : Tensor (tokens, groups of a row), fp32
    dtype : torch.dtype
        Of the result.
    """
    tokens, width = x.shape
    group = width // scales.shape[1]
    rows = tokens * scales.shape[1]
    out = torch.empty((tokens, width), dtype=dtype, device=x.device)
    padded = power_of_two(group)
    each = max(1, _ELEMENTS // padded)
    _dequantise[(-(-rows // each),)](
        x.view(torch.uint8),
        scales,
        out,
        rows,
        WIDTH=group,
        PADDED=padded,
        ROWS=each,
        KIND="int8" if x.dtype == torch.int8 else "fp8",
        NATIVE_FP8=has_fp8(x.device),
        num_warps=warps_for(padded),
    )
    return out


def warps_for(width: int) -> int:
    """Return the warps for rows of a width: 32 numbers a thread at most."""
    return min(16, max(4, width // 1024))
