"""Our Triton kernels as calls: operands, rotation, and the check that each must pass first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmsim_kernels.profiler.spec import Call, RowFault
from llmsim_kernels.profiler.torchbench import TorchBench

if TYPE_CHECKING:
    from llmsim_kernels.profiler.blocks.decode import DecodeShape
    from llmsim_kernels.profiler.blocks.mixed import VarlenShape

_NOT_YET = "this kernel does not exist yet"


def paged_decode(bench: TorchBench, shape: DecodeShape) -> Call:
    """Return calls of the paged decode kernel, each on KV of its own."""
    raise RowFault("unsupported", _NOT_YET)


def varlen_attention(bench: TorchBench, shape: VarlenShape) -> Call:
    """Return calls of the kernel that serves prompts and decodes in one launch."""
    raise RowFault("unsupported", _NOT_YET)


def weight_only_gemm(
    bench: TorchBench, m: int, n: int, k: int, bits: int, group: int, dtype: str
) -> Call:
    """Return calls of the GEMM with low-bit weights."""
    raise RowFault("unsupported", _NOT_YET)


def fused_moe(
    bench: TorchBench, ids: Any, experts: int, hidden: int, inter: int, dtype: str
) -> Call:
    """Return calls of the fused expert layer."""
    raise RowFault("unsupported", _NOT_YET)


def fused_norm(bench: TorchBench, tokens: int, width: int, dtype: str) -> Call:
    """Return calls of residual addition and norm in one kernel."""
    raise RowFault("unsupported", _NOT_YET)
