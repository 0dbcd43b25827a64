"""Block 12: shapes between the grid points, never fitted, so that a profile states its error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from llmsim.specs.profile_rows import row_key
from llmsim_kernels.profiler.blocks import decode, elementwise, gemm, moe, prefill
from llmsim_kernels.profiler.blocks.prefill import heads_for
from llmsim_kernels.profiler.plan import Plan
from llmsim_kernels.profiler.spec import RowSpec

_HEADS = ((32, 8), (16, 8), (32, 4))
_GRIDS = (gemm.rows, prefill.rows, decode.rows, elementwise.rows, moe.rows)


def rows(plan: Plan) -> Iterator[RowSpec]:
    """Return random shapes of each block, log-uniform within its grid, the same in every run."""
    draw = random.Random(plan.seed)
    taken = {row_key(spec.key) for grid in _GRIDS for spec in grid(plan)}
    for count, make in _shapes(plan, draw):
        made = 0
        while made < count:
            spec = make()
            if row_key(spec.key) not in taken:
                taken.add(row_key(spec.key))
                made += 1
                yield spec


def _shapes(plan: Plan, draw: random.Random) -> Iterator[tuple[int, Callable[[], RowSpec]]]:
    """Return how many shapes of each kind, and what draws one."""
    few = 1 if plan.quick else 2

    def product(dtype_w: str) -> RowSpec:
        m, least, most = _log(draw, 1, 8192), 1024 // plan.shrink, 16384 // plan.shrink
        n, k = _log(draw, least, most, 128), _log(draw, least, most, 128)
        return gemm.gemm(plan, m, n, k, dtype_w, block=12, holdout=True)

    def decoding() -> RowSpec:
        context = _log(draw, 128, 32768)
        batch = _log(draw, 1, min(256, (1 << 21) // context))
        heads = draw.choice(heads_for(plan, _HEADS))
        return decode.decode(plan, (context,) * batch, *heads, block=12, holdout=True)

    def prompt(behind: bool) -> RowSpec:
        new, past = _log(draw, 128, 8192), _log(draw, 512, 32768) if behind else 0
        heads = draw.choice(heads_for(plan, _HEADS))
        return prefill.prefill(plan, 1, new, past, *heads, block=12, holdout=True)

    def small(op: str) -> RowSpec:
        tokens = _log(draw, 2, 4096)
        width = _log(draw, 4096 // plan.shrink, 8192 // plan.shrink, 512)
        return elementwise.elementwise(plan, op, tokens, width, block=12, holdout=True)

    def experts() -> RowSpec:
        tokens = _log(draw, 1, 8192)
        return moe.moe(plan, 64, 6, 2048, 1408, tokens, block=12, holdout=True)

    for dtype_w in gemm.weight_types(plan):
        yield 8 * few, partial(product, dtype_w)
    yield 6 * few, decoding
    yield 2 * few, partial(prompt, False)
    yield 2 * few, partial(prompt, True)
    for op in elementwise.OPS[: 3 if plan.quick else 7]:
        yield 1, partial(small, op)
    if not plan.quick:
        yield 4, experts


def _log(draw: random.Random, low: int, high: int, step: int = 1) -> int:
    """Return a log-uniform whole multiple of `step`."""
    value: float = low * (high / low) ** draw.random()
    return max(step, round(value / step) * step)
