"""The configurations that are worth a program and a simulation: those nearest to the cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llmsim.planner.demand import in_words
from llmsim.planner.problem import Column

OF_EACH_CARD: Final = 2
"""Configurations of every GPU card that stay in any case: it is compared alone, too."""


def shortlist(columns: Sequence[Column], most: int) -> tuple[tuple[Column, ...], dict[str, str]]:
    """Return the most promising columns, and of the others why not.

    A column is as promising as it is cheap per request of that bucket in which it compares best
    with the cheapest of all. That is a choice, not a proof: a column that is left out might fill a
    gap that no other one fills.

    Parameters
    ----------
    columns : sequence of Column
    most : int
        How many.

    Returns
    -------
    kept : tuple of Column
        In the order given.
    far : dict of str to str
        Reasons by column.
    """
    if len(columns) <= most:
        return tuple(columns), {}
    cheapest: dict[str, tuple[float, str]] = {}
    for column in columns:
        for bucket, rate in column.throughput_rps.items():
            if rate > 0:
                cost = column.usd_per_hour / rate
                cheapest[bucket] = min(
                    cheapest.get(bucket, (cost, column.name)), (cost, column.name)
                )

    def nearest_of(column: Column) -> tuple[float, str, str]:
        return min(
            (column.usd_per_hour / rate / cheapest[bucket][0], bucket, cheapest[bucket][1])
            for bucket, rate in column.throughput_rps.items()
            if rate > 0
        )

    near = {column.name: nearest_of(column) for column in columns}
    order = sorted(columns, key=lambda column: near[column.name][0])
    kept: set[str] = set()
    of_card: dict[str, int] = {}
    for column in order:
        if of_card.get(column.gpu, 0) < OF_EACH_CARD:
            of_card[column.gpu] = of_card.get(column.gpu, 0) + 1
            kept.add(column.name)
    for column in order:
        if len(kept) < most:
            kept.add(column.name)
    far = {
        name: f"{ratio:.2f} times the cost per request of {best} for "
        f"{in_words(bucket)}, where it is nearest; "
        f"the {len(kept)} nearest are considered"
        for name, (ratio, bucket, best) in near.items()
        if name not in kept
    }
    return tuple(column for column in columns if column.name in kept), far
