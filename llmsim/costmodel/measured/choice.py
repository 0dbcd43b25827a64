"""Which of several measured kernels answers for a shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.measured.families import WEIGHT_BYTES, Shapes, Types
from llmsim.costmodel.measured.tables import Context, KernelTable, Latencies

_VERSION: Final = re.compile(r"(.+)\.v(\d+)")

ALIKE_OCTAVES: Final = 1.0
"""Rows of experts say something of a model whose own width and number of experts are up to twice or
half theirs."""

FOUR_BITS: Final = frozenset({"nvfp4", "mxfp4", "int4"})
"""Formats of activations that rows of wider ones say nothing of: they are quantised in blocks as
the product goes along. TensorRT-LLM's fp8 rows on B200, scaled to NVFP4, are 13% short in TPOT of
Llama-3.1-70B, 72 runs."""


def offered(tables: list[KernelTable], op: str, context: Context) -> tuple[list[KernelTable], str]:
    """Return the tables that a query may use, and the kernel that it asks for; empty for any.

    Parameters
    ----------
    tables : list of KernelTable
        Of the operator.
    op : str
    context : Context

    Notes
    -----
    Where no kernel is asked for, a later version of one stands for the earlier ones: a profile that
    was continued has rows of both. A kernel with a ``*`` admits those that it matches, in the
    formats asked for, and no other.
    """
    kernel_id = context.kernel_of(op)
    if "*" in kernel_id:
        typed = [table for table in tables if table.types == context.types]
        return [table for table in typed if fnmatchcase(table.kernel_id, kernel_id)], ""
    if kernel_id:
        return tables, kernel_id
    newest: dict[tuple[Types, str, str], int] = {}
    for table in tables:
        known = _known(table)
        newest[known] = max(newest.get(known, 0), _version(table))
    return [table for table in tables if _version(table) == newest[_known(table)]], ""


def _known(table: KernelTable) -> tuple[Types, str, str]:
    found = _VERSION.fullmatch(table.kernel_id)
    return table.types, table.libs, found[1] if found else table.kernel_id


def _version(table: KernelTable) -> int:
    found = _VERSION.fullmatch(table.kernel_id)
    return int(found[2]) if found else 0


def in_reach(tables: list[KernelTable], shape: Mapping[str, float]) -> bool:
    """Say whether rows tell what experts of a shape cost.

    Parameters
    ----------
    tables : list of KernelTable
    shape : mapping of str to float
        ``hidden``, ``experts`` and ``inter``.

    Notes
    -----
    Rows must be of a model that is alike, and of experts as wide as these, or of wider and of
    narrower ones: where all have one width, what an expert costs and what its bytes cost cannot be
    told apart, and any other width is a guess.
    """
    for table in tables:
        columns = table.columns
        apart = [np.abs(np.log2(columns[side] / shape[side])) for side in ("hidden", "experts")]
        widths = columns["inter"][np.max(apart, axis=0) <= ALIKE_OCTAVES]
        if len(widths) and widths.min() <= shape["inter"] <= widths.max():
            return True
    return False


def words_of(types: Types) -> str:
    """Return number formats as messages name them."""
    return "/".join(dict.fromkeys((types.a, types.w, types.kv)))


def scales_to(given: Types, asked: Types) -> bool:
    """Say whether rows of one set of formats tell, scaled, of another; see `FOUR_BITS`."""
    return given.a == asked.a or not {given.a, asked.a} & FOUR_BITS


def unlike(given: Types, asked: Types) -> float:
    """Return how far apart two sets of formats are, in octaves of their bytes."""
    pairs = ((given.w, asked.w), (given.a, asked.a), (given.kv, asked.kv))
    return sum(abs(math.log2(WEIGHT_BYTES[a] / WEIGHT_BYTES[b])) for a, b in pairs)


def fastest_kernel(tables: list[KernelTable], shapes: Shapes) -> Latencies:
    """Price each shape by the fastest of the kernels that were measured for its kind of group.

    Engines choose a collective's algorithm by size, so the one that is beyond its measured sizes
    does not compete where another is inside.
    """
    answers = [table.price(shapes) for table in tables]
    ranked = np.stack([answer.seconds * np.exp2(answer.outside) for answer in answers])
    unlike = np.stack([_other_group(table, shapes) for table in tables])
    chosen = np.where(unlike, ranked * 1e6, ranked).argmin(axis=0)
    rows = np.arange(len(chosen))
    names = ("seconds", "sigma", "source", "outside")
    stacked = {name: np.stack([getattr(answer, name) for answer in answers]) for name in names}
    return Latencies(*(stacked[name][chosen, rows] for name in names))


def _other_group(table: KernelTable, shapes: Shapes) -> NDArray[np.bool_]:
    """Say for each shape whether the table lacks collectives of that many GPUs and nodes."""
    have = set(zip(table.columns["gpus"].tolist(), _nodes(table.columns), strict=True))
    asked = zip(shapes["gpus"].tolist(), _nodes(shapes), strict=True)
    return np.array([pair not in have for pair in asked])


def _nodes(columns: Shapes) -> list[float]:
    nodes: list[float] = columns.get("nodes", np.ones_like(columns["gpus"])).tolist()
    return nodes


def nearest_kernel(tables: list[KernelTable], shapes: Shapes) -> Latencies:
    """Price each shape by the kernel that was measured nearest to it: the engine's own choice."""
    chosen = np.stack([table.distance(shapes) for table in tables]).argmin(axis=0)
    parts: dict[str, NDArray[np.float64]] = {}
    for index, table in enumerate(tables):
        rows = np.flatnonzero(chosen == index)
        if not len(rows):
            continue
        answer = table.price({name: column[rows] for name, column in shapes.items()})
        for name in ("seconds", "sigma", "source", "outside"):
            values = getattr(answer, name)
            parts.setdefault(name, np.zeros(len(chosen), values.dtype))[rows] = values
    source = parts["source"].astype(np.int64)
    return Latencies(parts["seconds"], parts["sigma"], source, parts["outside"])
