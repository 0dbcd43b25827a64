"""Numbers of eight bits and fewer inside kernels: e4m3 by its bits, and rounding."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def e4m3_to_half(byte, NATIVE: tl.constexpr):
    """Return fp16 numbers of e4m3 bytes; exact, subnormals included.

    Without the instruction, sign, exponent and mantissa move to where fp16 has them; the
    biases, 7 and 15, differ by a factor of 2^8. The two NaN patterns are not kept.
    """
    if NATIVE:
        half = byte.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        wide = byte.to(tl.uint16)
        moved = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
        half = moved.to(tl.float16, bitcast=True) * 256.0
    return half


@triton.jit
def to_e4m3(x, NATIVE: tl.constexpr):
    """Return e4m3 bytes of fp32 numbers within +-448, rounded to nearest even.

    Without the instruction: scaled by 2^-120, fp32 has the exponent field of e4m3 (biases 127
    and 7), subnormals included, and 20 more bits of mantissa, which are rounded off.
    """
    if NATIVE:
        byte = x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        pattern = (x * 7.52316384526264e-37).to(tl.uint32, bitcast=True)
        size = pattern & 0x7FFFFFFF
        rounded = (size + 0x7FFFF + ((size >> 20) & 1)) >> 20
        byte = (rounded | ((pattern >> 24) & 0x80)).to(tl.uint8)
    return byte


@triton.jit
def nearest(x):
    """Return the nearest whole number, halves rounded up, as fp32."""
    return tl.floor(x + 0.5)


@triton.jit
def base_of(kind: tl.constexpr):
    """Return what `small_number` adds to a whole number of this type."""
    base: tl.constexpr = 128.0 if kind == tl.bfloat16 else 1024.0 if kind == tl.float16 else 0.0
    return base


@triton.jit
def small_number(whole, kind: tl.constexpr):
    """Return ``base_of(kind) + whole`` for whole numbers that its mantissa holds.

    They are put into the mantissa of the base, which is one instruction where a conversion is
    several: 0x4300 is 128 in bf16, which has room for 7 bits; 0x6400 is 1024 in fp16, for 10.
    """
    if kind == tl.bfloat16:
        number = (whole.to(tl.int16) | 0x4300).to(kind, bitcast=True)
    elif kind == tl.float16:
        number = (whole.to(tl.int16) | 0x6400).to(kind, bitcast=True)
    else:
        number = whole.to(kind)
    return number
