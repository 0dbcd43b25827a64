"""RMS norm with the residual added before it and, if wanted, quantisation after it: one pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llmsim_kernels.ops.device import has_fp8, power_of_two
from llmsim_kernels.ops.quantise import LARGEST, quantised, warps_for

KERNEL_ID = "triton.rmsnorm.v1"


@triton.jit
def _norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    sum_ptr,
    out_ptr,
    scale_ptr,
    epsilon,
    largest,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    KIND: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    ok = column < WIDTH
    x = tl.load(x_ptr + row * WIDTH + column, mask=ok, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + row * WIDTH + column, mask=ok, other=0.0).to(tl.float32)
        tl.store(sum_ptr + row * WIDTH + column, x, mask=ok)
    weight = tl.load(weight_ptr + column, mask=ok, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + epsilon) * weight
    if KIND == "same":
        tl.store(out_ptr + row * WIDTH + column, y, mask=ok)
    else:
        byte, scale = quantised(y[None, :], largest, KIND, NATIVE_FP8)
        tl.store(out_ptr + row * WIDTH + column[None, :], byte, mask=ok[None, :])
        tl.store(scale_ptr + row + tl.arange(0, 1), scale)


def rmsnorm(
    x: Any, weight: Any, residual: Any = None, *, kind: str = "same", epsilon: float = 1e-5
) -> tuple[Any, Any, Any]:
    """Normalise rows.

    Parameters
    ----------
    x : Tensor (tokens, width)
    weight : Tensor (width,)
    residual : Tensor (tokens, width) or None
        Added first.
    kind : str
        ``same`` for a result of x's type; ``int8`` or ``fp8`` to quantise it per token.
    epsilon : float
        Added to the mean square.

    Returns
    -------
    tuple
        The normalised rows; their scales (tokens,), or None; x plus residual, or x itself.
    """
    tokens, width = x.shape
    padded = power_of_two(width)
    total = x if residual is None else torch.empty_like(x)
    out, scales = torch.empty_like(x), None
    if kind != "same":
        out = torch.empty((tokens, width), dtype=torch.uint8, device=x.device)
        scales = torch.empty((tokens,), dtype=torch.float32, device=x.device)
    _norm[(tokens,)](
        x,
        x if residual is None else residual,
        weight,
        total,
        out,
        x if scales is None else scales,
        epsilon,
        LARGEST.get(kind, 1.0),
        WIDTH=width,
        PADDED=padded,
        RESIDUAL=residual is not None,
        KIND=kind,
        NATIVE_FP8=has_fp8(x.device),
        num_warps=warps_for(padded),
    )
    if kind == "int8":
        out = out.view(torch.int8)
    elif kind == "fp8":
        out = out.view(torch.float8_e4m3fn)
    return out, scales, total
