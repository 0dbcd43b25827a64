"""Traffic split anew over a fleet that is given: so that its busiest pool is as idle as can be.

The cheapest fleet's own split is one of many; it may leave what was bought unused. This linear
program spreads the load instead (scipy's HiGHS).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmsim.planner.problem import Bucket, Column, served

EVEN = 1e-3
"""Weight of the sum of all pools' loads beside that of the busiest: of equal peaks the lowest
total wins."""


@dataclass(frozen=True, slots=True)
class Split:
    """Who serves what.

    Parameters
    ----------
    share : mapping of (str, str) to float
        By (range, column): part of the range's requests.
        Of who decodes, as of who computed the prompt: what is handed over counts twice.
    utilisation : mapping of str to float
        By column: load over what the pool carries; above 1 it is overloaded.
    ports : mapping of str to float
        By column whose KV comes or goes: bytes over what its ports may carry.
    """

    share: Mapping[tuple[str, str], float]
    utilisation: Mapping[str, float]
    ports: Mapping[str, float] = field(default_factory=dict)

    @property
    def peak(self) -> float:
        """Utilisation of the busiest pool or port; infinite where some range has no pool."""
        busy = (*self.utilisation.values(), *self.ports.values())
        return max(busy, default=float("inf"))


def split(
    buckets: Sequence[Bucket],
    columns: Mapping[str, Column],
    carried: Mapping[str, float],
    ports_bytes_per_s: Mapping[str, float] | None = None,
) -> Split | None:
    """Return the most even split, or None where some bucket can be served by no pool.

    Parameters
    ----------
    buckets : sequence of Bucket
    columns : mapping of str to Column
    carried : mapping of str to float [replicas]
        Load that each pool of the fleet carries; pools of no replica are left out.
    ports_bytes_per_s : mapping of str to float, optional [bytes/s]
        What the ports of a pool may carry of KV that is handed over; absent: everything.
    """
    from scipy.optimize import linprog

    names = [name for name, most in carried.items() if most > 0]
    pairs = [(b, name) for b in buckets for name in names if columns[name].serves(b.name)]
    if any(not served({columns[n].role for b, n in pairs if b == each}) for each in buckets):
        return None
    limits = {
        name: most
        for name, most in (ports_bytes_per_s or {}).items()
        if name in names and columns[name].role != "mixed" and most < math.inf
    }
    # variables: a share per pair, then the peak
    above = np.zeros((len(names) + len(limits), len(pairs) + 1))
    whole = np.zeros((2 * len(buckets), len(pairs) + 1))
    wanted = np.repeat((1.0, 0.0), len(buckets))
    for number, (bucket, name) in enumerate(pairs):
        column, row = columns[name], list(buckets).index(bucket)
        load = bucket.rate_rps * column.load_per_rps(bucket.name)
        above[names.index(name), number] = load / carried[name]
        if name in limits:
            handed = bucket.rate_rps * column.handed_bytes.get(bucket.name, 0.0)
            above[len(names) + list(limits).index(name), number] = handed / limits[name]
        if column.role != "decode":
            whole[row, number] = 1.0
        if column.role != "mixed":  # what prompts are computed of alone is decoded by others
            whole[len(buckets) + row, number] = 1.0 if column.role == "prefill" else -1.0
    used = above[:, :-1]
    above[:, -1] = -1.0
    cost = np.append(EVEN * used[: len(names)].sum(axis=0) / len(names), 1.0)
    solved = linprog(cost, above, np.zeros(len(above)), whole, wanted)
    shares = solved.x[:-1]
    share = {
        (bucket.name, name): float(part)
        for (bucket, name), part in zip(pairs, shares, strict=True)
        if part > 1e-9
    }
    busy = [float(each) for each in used @ shares]
    return Split(
        share,
        dict(zip(names, busy, strict=False)),
        dict(zip(limits, busy[len(names) :], strict=True)),
    )
