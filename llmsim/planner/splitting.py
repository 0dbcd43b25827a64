"""Traffic split anew over a fleet that is given: so that its busiest pool is as idle as can be.

The cheapest fleet's own split is one of many; it may leave what was bought unused. This linear
program spreads the load instead (scipy's HiGHS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmsim.planner.problem import Bucket, Column

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
    utilisation : mapping of str to float
        By column: load over what the pool carries; above 1 it is overloaded.
    """

    share: Mapping[tuple[str, str], float]
    utilisation: Mapping[str, float]

    @property
    def peak(self) -> float:
        """Utilisation of the busiest pool; infinite where some range has no pool."""
        return max(self.utilisation.values(), default=float("inf"))


def split(
    buckets: Sequence[Bucket], columns: Mapping[str, Column], carried: Mapping[str, float]
) -> Split | None:
    """Return the most even split, or None where some bucket can be served by no pool.

    Parameters
    ----------
    buckets : sequence of Bucket
    columns : mapping of str to Column
    carried : mapping of str to float [replicas]
        Load that each pool of the fleet carries; pools of no replica are left out.
    """
    from scipy.optimize import linprog

    names = [name for name, most in carried.items() if most > 0]
    pairs = [
        (bucket, name)
        for bucket in buckets
        for name in names
        if columns[name].throughput_rps.get(bucket.name, 0.0) > 0
    ]
    if {bucket.name for bucket, _ in pairs} != {bucket.name for bucket in buckets}:
        return None
    load = np.array([b.rate_rps * columns[name].load_per_rps(b.name) for b, name in pairs])
    # variables: a share per pair, then the peak
    above = np.zeros((len(names), len(pairs) + 1))
    for number, (_, name) in enumerate(pairs):
        above[names.index(name), number] = load[number] / carried[name]
    above[:, -1] = -1.0
    whole = np.zeros((len(buckets), len(pairs) + 1))
    for number, (bucket, _) in enumerate(pairs):
        whole[list(buckets).index(bucket), number] = 1.0
    cost = np.append(EVEN * above[:, :-1].sum(axis=0) / len(names), 1.0)
    solved = linprog(cost, above, np.zeros(len(names)), whole, np.ones(len(buckets)))
    shares = solved.x[:-1]
    share = {
        (bucket.name, name): float(part)
        for (bucket, name), part in zip(pairs, shares, strict=True)
        if part > 1e-9
    }
    used = above[:, :-1] @ shares
    return Split(share, {name: float(used[number]) for number, name in enumerate(names)})
