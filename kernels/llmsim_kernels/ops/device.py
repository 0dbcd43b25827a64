"""What a launch must know: capability, multiprocessors, and how products are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

FP8_CAPABILITY = 89
"""Conversions from and to e4m3 are instructions from Ada on (PTX ISA, `cvt`: sm_89)."""

LOG2_E = 1.4426950408889634
"""Attention is in powers of two: scores are multiplied by this."""

_ASSUMED: ContextVar[int | None] = ContextVar("capability", default=None)

_MULTIPROCESSORS = {80: 108, 89: 142, 90: 132, 100: 148}
"""Of A100, L40S, H100 and B200 (datasheets): used when compiling without a device."""


@contextmanager
def assumed(capability: int) -> Iterator[None]:
    """Let launches configure themselves for a device that is not there.

    Parameters
    ----------
    capability : int
        Compute capability times ten, such as 90.
    """
    token = _ASSUMED.set(capability)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def capability_of(device: Any) -> int:
    """Return the compute capability times ten; 0 for a CPU."""
    told = _ASSUMED.get()
    if told is not None:
        return told
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return int(major * 10 + minor)


def multiprocessors_of(device: Any) -> int:
    """Return the multiprocessors of a device; 1 for a CPU."""
    told = _ASSUMED.get()
    if told is not None:
        return _MULTIPROCESSORS.get(told, 132)
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def has_fp8(device: Any) -> bool:
    """Whether kernels convert e4m3 by instruction; elsewhere they move its bits."""
    return capability_of(device) >= FP8_CAPABILITY


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below `least`."""
    return 1 << max(0, least - 1).bit_length()


def precision_of(x: Any) -> str:
    """Return how products of this type multiply: fp32 in full, whatever the tensor cores like."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
