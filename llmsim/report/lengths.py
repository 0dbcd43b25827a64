"""Who kept the objectives by prompt and output length: a table whose cells are shares."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.results.classes import kept
from llmsim.results.columns import OUTCOMES
from llmsim.results.result import Result

MOST_BINS: Final = 6
"""Bins along each length."""

FEW: Final = 20
"""Requests below which a share says little: 19 of 20 and 20 of 20 are 5% apart."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthTable:
    """Finished requests by length.

    Parameters
    ----------
    prompt_edges, output_edges : tuple of int [tokens]
        Bin i holds lengths from edge i up to, but without, edge i + 1.
    requests : ndarray of int64 (outputs, prompts)
    values : ndarray of float64 (outputs, prompts)
        Share that kept every objective or, where none is set, median E2E [s]; NaN without request.
    is_share : bool
    unfinished : int
        Requests after the warm-up that did not finish, and so have no output length.
    """

    prompt_edges: tuple[int, ...]
    output_edges: tuple[int, ...]
    requests: Ints
    values: Floats
    is_share: bool
    unfinished: int


def by_length(result: Result) -> LengthTable | None:
    """Return who kept the objectives by length; None where no request finished."""
    table = result.table
    finished = table.codes("outcome", OUTCOMES) == OUTCOMES.index("finished")
    late = table.numbers("arrival_s") >= result.warmup_s
    chosen = finished & late
    if not chosen.any():
        return None
    prompt, output = (table.numbers(f"{each}_tokens")[chosen] for each in ("prompt", "output"))
    met = kept(table, finished, result.slo).get("slo")
    edges = _edges(prompt), _edges(output)
    column = np.searchsorted(edges[0], prompt, side="right") - 1
    line = np.searchsorted(edges[1], output, side="right") - 1
    shape = len(edges[1]) - 1, len(edges[0]) - 1
    cell = line * shape[1] + column
    requests = np.bincount(cell, minlength=shape[0] * shape[1])
    if met is not None:
        good = np.bincount(cell, weights=met[chosen], minlength=len(requests))
        with np.errstate(invalid="ignore"):
            values = good / requests
    else:
        values = _medians(cell, table.numbers("e2e_s")[chosen], len(requests))
    return LengthTable(
        edges[0],
        edges[1],
        requests.reshape(shape),
        values.reshape(shape),
        met is not None,
        int((late & ~finished).sum()),
    )


def _medians(cell: Ints, values: Floats, cells: int) -> Floats:
    found = np.full(cells, math.nan)
    order = np.argsort(cell, kind="stable")
    bounds = np.searchsorted(cell[order], np.arange(cells + 1))
    for at in np.flatnonzero(np.diff(bounds)).tolist():
        found[at] = np.median(values[order[bounds[at] : bounds[at + 1]]])
    return found


def _edges(lengths: Ints) -> tuple[int, ...]:
    """Return powers of two around the lengths, at most `MOST_BINS` bins.

    The last ends behind the longest. The first begins at 0, but lengths that are all the same have
    a bin of their own; those in between double (or
    quadruple, or more) and cover what lies between the 2nd and the 98th percentile.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == longest:
        return shortest, shortest + 1
    low, high = np.percentile(lengths, (2, 98))
    first, last = math.ceil(math.log2(max(low, 1.0))), math.floor(math.log2(max(high, 1.0)))
    step = max(1, -(-(last - first) // (MOST_BINS - 2)))
    inner = [2**power for power in range(max(first, 1), last + 1, step)]
    inner = [edge for edge in inner if shortest < edge <= longest]
    return (0, *inner, longest + 1)
