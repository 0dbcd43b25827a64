"""The grid: one module per block, numbered as in the documentation."""

from __future__ import annotations

from collections.abc import Mapping

from llmsim_kernels.profiler.blocks import (
    ceilings,
    decode,
    elementwise,
    gemm,
    holdout,
    mixed,
    moe,
    prefill,
)
from llmsim_kernels.profiler.plan import Block

BLOCKS: Mapping[int, Block] = {
    block.number: block
    for block in (
        Block(0, "environment and ceilings", ceilings.rows),
        Block(1, "GEMM", gemm.rows),
        Block(2, "prefill attention", prefill.rows),
        Block(3, "decode attention", decode.rows),
        Block(4, "mixed attention", mixed.rows),
        Block(5, "elementwise", elementwise.rows),
        Block(6, "experts", moe.rows),
        Block(12, "holdout", holdout.rows),
    )
}
