"""The grid: one module per block, numbered as in the documentation."""

from __future__ import annotations

from collections.abc import Mapping

from llmsim_kernels.profiler.blocks import (
    ceilings,
    collectives,
    copies,
    decode,
    elementwise,
    energy,
    gemm,
    holdout,
    mixed,
    moe,
    prefill,
    probes,
    recurrent,
    sampling,
    whole,
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
        Block(7, "recurrent", recurrent.rows),
        Block(8, "sampling", sampling.rows),
        Block(9, "copies", copies.rows),
        Block(10, "collectives", collectives.rows),
        Block(11, "energy", energy.rows),
        Block(12, "holdout", holdout.rows),
        Block(13, "whole model", whole.rows),
        Block(14, "low-bit GEMM", gemm.low_bit_rows),
        Block(15, "probes", probes.rows),
    )
}
