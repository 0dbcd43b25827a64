"""Which rows a device gets: the grids, cut to what it can hold and finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from llmsim.specs.layers import SoftmaxAttention
from llmsim.specs.model import ModelSpec
from llmsim_kernels.profiler.spec import DeviceFacts, RowSpec

ITEM_BYTES: Mapping[str, float] = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + 2.0 / 128,
}
"""Bytes of one value with its scales; int4 has an fp16 scale per group of 128."""

QUICK_BLOCKS = (0, 1, 2, 3, 5, 12)
ALL_BLOCKS = (0, 1, 3, 2, 5, 12, 13, 4, 6, 8, 9, 7, 10, 11, 14, 15)
"""In the order in which they run: what every model needs, the checks, then the rest, so that a
run that is cut short is still a profile."""

_WHOLE_STEPS = 4
"""Whole steps may take this many times longer than a row of the grid."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device was seen to reach in block 0.

    Parameters
    ----------
    flops_per_s, bytes_per_s : float
    """

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure on which device.

    Parameters
    ----------
    facts : DeviceFacts
    quick : bool
        Fewer points of each grid.
    rates : Rates
        Used only to leave out rows that would take too long.
    model : ModelSpec or None
        Adds rows of exactly its shapes.
    seed : int
        Of the holdout shapes.
    """

    facts: DeviceFacts
    quick: bool
    rates: Rates
    model: ModelSpec | None = None
    seed: int = 3

    @property
    def dtype(self) -> str:
        """Type of activations and KV in the usual rows."""
        return self.facts.dtype

    @property
    def graph(self) -> bool:
        """Whether the usual rows are replayed from a graph."""
        return self.facts.graphs

    @property
    def on_gpu(self) -> bool:
        """Whether GPU kernels can be timed (a synthetic device plays a GPU)."""
        return self.facts.kind != "cpu"

    @property
    def shrink(self) -> int:
        """Divides widths and heads: a CPU gets the same grid at a quarter of the size."""
        return 1 if self.on_gpu else 4

    def model_heads(self) -> list[tuple[int, int, int]]:
        """Return (query heads, KV heads, width) of the model's softmax attention, each once."""
        mixers = [] if self.model is None else [layer.mixer for layer in self.model.layers]
        found = [
            (mixer.heads, mixer.kv_heads, mixer.head_dim)
            for mixer in mixers
            if isinstance(mixer, SoftmaxAttention)
        ]
        return list(dict.fromkeys(found))

    @property
    def row_limit_s(self) -> float:
        """Longest call worth a row [s]: a row takes about ten of them."""
        return 0.5 if self.on_gpu else 0.025

    def estimate_s(self, spec: RowSpec) -> float:
        """Return roughly how long one call takes [s]."""
        return spec.flops / self.rates.flops_per_s + spec.moved_bytes / self.rates.bytes_per_s

    def keeps(self, spec: RowSpec) -> bool:
        """Whether one call of a row is short enough for this device."""
        limit_s = self.row_limit_s * (_WHOLE_STEPS if spec.block == 13 else 1)
        return self.estimate_s(spec) <= limit_s


@dataclass(frozen=True, slots=True)
class Block:
    """One part of the grid, runnable by itself.

    Parameters
    ----------
    number : int
    name : str
    rows : callable
        All rows of the grid, whatever the device.
    """

    number: int
    name: str
    rows: Callable[[Plan], Iterable[RowSpec]]


@dataclass
class Chosen:
    """The rows of some blocks that this device gets, and what was left out."""

    rows: list[RowSpec] = field(default_factory=list)
    too_long: int = 0


def choose(blocks: Iterable[Block], plan: Plan) -> Chosen:
    """Return the rows worth measuring, each key once, in order.

    Parameters
    ----------
    blocks : iterable of Block
    plan : Plan
    """
    from llmsim.specs.profile_rows import row_key

    chosen, seen = Chosen(), set()
    for block in blocks:
        for spec in block.rows(plan):
            key = row_key(spec.key)
            if key in seen:
                continue
            seen.add(key)
            if plan.keeps(spec):
                chosen.rows.append(spec)
            else:
                chosen.too_long += 1
    return chosen


def thinned(values: Iterable[int], plan: Plan) -> Iterator[int]:
    """Return all values, or every other one from the first in a quick run."""
    for index, value in enumerate(values):
        if not plan.quick or index % 2 == 0:
            yield value
