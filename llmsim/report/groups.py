"""What a run says of its parts for a page: pools, models, tenants, priorities, SLO classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmsim.results.parts import part
from llmsim.results.result import Result
from llmsim.results.wording import duration, number, share

MOST_TENANTS: Final = 20
"""Clients shown: those with the most requests; `Result.by_client` has all."""

Values = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """A table with a line for each part of a run.

    Parameters
    ----------
    head : str
        What the parts are.
    lines : tuple of (str, tuple of str)
        Name and cells.
    left_out : int
        Parts that are not shown.
    """

    head: str
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    left_out: int = 0


HEADS: Final = (
    "requests",
    "prompt tokens",
    "output tokens",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
    "TPOT p99",
    "kept all",
)
"""Heads of the cells."""


def groups(result: Result) -> list[Group]:
    """Return a table for each way in which a run has more than one part."""
    found = []
    parts: list[tuple[str, Mapping[str, Values]]] = [
        ("pool", result.by_pool),
        ("model", result.by_model),
        ("priority", {str(each): values for each, values in result.by_priority.items()}),
        ("SLO class", {name or "(none)": told for name, told in result.by_slo_class.items()}),
    ]
    for head, each in parts:
        lines = tuple((name, _cells(told)) for name, told in each.items() if told["requests"])
        if len(lines) > 1:
            found.append(Group(head, lines))
    tenants = _tenants(result)
    return [*found, tenants] if tenants else found


def _tenants(result: Result) -> Group | None:
    """Return the clients with the most requests; None where there are fewer than two."""
    names = result.table.categories("client")
    codes = result.table.codes("client", names)
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    known = [code for code in np.argsort(-counts, kind="stable").tolist() if names[code]]
    known = [code for code in known if counts[code]]
    if len(known) < 2:
        return None
    lines = []
    for code in known[:MOST_TENANTS]:
        told = part(result.table, result.facts, result.slo, result.warmup_s, codes == code)
        lines.append((names[code], _cells(told)))
    return Group("tenant", tuple(lines), max(0, len(known) - MOST_TENANTS))


def _cells(told: Values) -> tuple[str, ...]:
    times = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s")
    attained = told["slo_attained_frac"]
    return (
        *(number(told[name]) for name in ("requests", "prompt_tokens", "output_tokens")),
        *(duration(told[name]) for name in times),
        "" if math.isnan(attained) else share(attained),
    )
