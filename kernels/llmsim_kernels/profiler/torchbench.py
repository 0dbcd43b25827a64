"""Operands for calls: random, rotated through more memory than the cache holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmsim_kernels.profiler.spec import COLD_SETS, Call, RowFault

MOST_COPIES = 512
"""Sets of operands that one call rotates through at most. A set below 1/512 of the rotation stays
partly in cache; a call that small is all launch."""

_RANDOM_VALUES = 1 << 22
"""Distinct random values in a pool; a power of two, repeated: no kernel can tell, and drawing
gigabytes of normal numbers would take longer than the rows."""

_STD = 0.1
"""Of the random operands: small enough that fp8 and int4 paths do not saturate. Never zeros: one
H200 ran an 8192^3 product 15% faster on zeros than on random data, as it drew less power."""


class TorchBench:
    """Random operands on one device.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda:0``.
    cache_bytes : int [bytes]
        Last-level cache, which rotation must exceed.
    """

    def __init__(self, device: str, cache_bytes: int) -> None:
        import torch

        self.torch = torch
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.rotation_bytes = int(COLD_SETS * cache_bytes)
        self.dtypes: Mapping[str, Any] = {
            "fp32": torch.float32,
            "fp16": torch.float16,
            "bf16": torch.bfloat16,
            "fp8": torch.float8_e4m3fn,
            "int8": torch.int8,
        }
        self.gates: dict[str, float] = {}
        self._pools: dict[Any, Any] = {}
        self._generator = torch.Generator(device=self.device).manual_seed(20261125)

    def copies(self, size_bytes: float) -> int:
        """Return how many sets of this size make a cold rotation."""
        return max(1, min(MOST_COPIES, -(-self.rotation_bytes // max(1, int(size_bytes)))))

    def rotated(self, shape: tuple[int, ...], dtype: str, copies: int) -> list[Any]:
        """Return random tensors that follow one another in memory.

        Parameters
        ----------
        shape : tuple of int
        dtype : str
            A word of `llmsim.specs.profile_rows.DTYPES` that torch has.
        copies : int
        """
        count = 1
        for size in shape:
            count *= size
        step = -(-count // 256) * 256  # keeps every tensor aligned for the widest loads
        pool = self._pool(self.dtypes[dtype], step * copies)
        return [pool[i * step : i * step + count].view(shape) for i in range(copies)]

    def warm(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return one random tensor of its own, which stays in cache if it fits there."""
        return self.rotated(shape, dtype, 1)[0].clone()

    def integers(self, shape: tuple[int, ...], high: int, dtype: Any = None) -> Any:
        """Return random integers from 0 to `high` - 1, int64 unless told otherwise."""
        torch = self.torch
        return torch.randint(
            0,
            high,
            shape,
            generator=self._generator,
            device=self.device,
            dtype=dtype or torch.int64,
        )

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return a tensor for results."""
        return self.torch.empty(shape, dtype=self.dtypes[dtype], device=self.device)

    def forget(self) -> None:
        """Give all pools back."""
        self._pools.clear()
        if self.on_gpu:
            self.torch.cuda.empty_cache()

    def _pool(self, dtype: Any, count: int) -> Any:
        pool = self._pools.get(dtype)
        if pool is not None and pool.numel() >= count:
            return pool
        self._pools.pop(dtype, None)
        pool = None
        torch = self.torch
        at_least = self.rotation_bytes // dtype.itemsize
        count = max(count, at_least)
        values = torch.randn(_RANDOM_VALUES, generator=self._generator, device=self.device) * _STD
        if dtype == torch.int8:
            values = (values * 300.0).clamp(-127, 127)
        drawn = values.to(dtype)
        pool = torch.empty(count, dtype=dtype, device=self.device)
        whole = count // _RANDOM_VALUES
        if whole:
            # float8 has no copy kernels of its own everywhere: move its bytes
            source, target = drawn, pool[: whole * _RANDOM_VALUES]
            if dtype.itemsize == 1:
                source, target = source.view(torch.uint8), target.view(torch.uint8)
            target.view(whole, _RANDOM_VALUES).copy_(source.expand(whole, _RANDOM_VALUES))
        rest = count - whole * _RANDOM_VALUES
        if rest:
            source, target = drawn[:rest], pool[whole * _RANDOM_VALUES :]
            if dtype.itemsize == 1:
                source, target = source.view(torch.uint8), target.view(torch.uint8)
            target.copy_(source)
        self._pools[dtype] = pool
        return pool

    def pass_gate(self, call: Call) -> None:
        """Check a kernel against its reference, once per kernel; a wrong one is never timed.

        Raises
        ------
        RowFault
            If the kernel is wrong.
        """
        if not call.gate or call.check is None:
            return
        if call.gate not in self.gates:
            self.gates[call.gate] = call.check()
        found = self.gates[call.gate]
        if not found <= call.limit:
            message = f"{call.gate} is off its reference by {found:.2e} (limit {call.limit:g})"
            raise RowFault("error", message)


def in_turn(make: Callable[[Any], Any], operands: list[Any]) -> list[Callable[[], Any]]:
    """Return one call per operand."""
    return [partial(make, operand) for operand in operands]
