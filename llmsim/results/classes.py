"""Who kept which limit, each request judged by its own SLO class, and what that says per class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from llmsim.results.intervals import Interval
from llmsim.results.slo import Slo
from llmsim.results.store import RequestTable
from llmsim.results.verdict import Claim, SloClaim, Verdict, claim

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

LIMITED: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_max_s", "e2e": "e2e_s"}
"""Column that each limit is on, by the limit's name without unit."""

_WORST_FIRST: Final[tuple[Claim, ...]] = ("not claimed", "missed", "undecided", "met", "not set")


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """What a run says of the requests of one SLO class.

    Parameters
    ----------
    name : str
        Empty for the requests that have none.
    slo : Slo
        What they were promised.
    values : mapping of str to float
        As of a client: latencies, attainment, tokens; and ``goodput_rps``.
    attained : Interval
        Share of those that arrived after the warm-up which finished and met every limit.
    claim : SloClaim
    """

    name: str
    slo: Slo
    values: Mapping[str, float]
    attained: Interval
    claim: SloClaim


def promised(slo: Slo) -> list[tuple[str, Slo]]:
    """Return every class with what it is promised; first, without a name, those that have none."""
    own = Slo(
        slo.ttft_s,
        slo.tpot_s,
        slo.itl_s,
        slo.e2e_s,
        attained_frac=slo.attained_frac,
        ttft_per_prompt_token_s=slo.ttft_per_prompt_token_s,
    )
    return [("", own), *((each.name, each.slo) for each in slo.classes)]


def of_class(table: RequestTable, name: str) -> Bools:
    """Return whose SLO class it is (n,); the empty name is that of requests without one."""
    if not table.has_classes:
        return np.full(len(table), name == "")
    mine: Bools = table.codes("slo_class", (name,)) == 0
    return mine


def kept(table: RequestTable, finished: Bools, slo: Slo) -> dict[str, Bools]:
    """Return who finished within each limit that anybody has, and under ``slo`` within all.

    Parameters
    ----------
    table : RequestTable
    finished : ndarray of bool (n,)
    slo : Slo

    Returns
    -------
    dict of str to ndarray of bool (n,)
        Who has no limit of a kind keeps it by finishing. Empty where nobody is promised anything.
    """
    groups = [(of_class(table, name), each) for name, each in promised(slo)]
    if slo.classes:  # a limit that nobody has is none
        groups = [(mine, each) for mine, each in groups if mine.any()]
    found: dict[str, Bools] = {}
    for key, column in LIMITED.items():
        if all(f"{key}_s" not in each.limits() for _, each in groups):
            continue
        most = np.full(len(table), np.inf)
        for mine, each in groups:
            limit = each.limits().get(f"{key}_s")
            if limit is not None:
                most[mine] = limit
                if key == "ttft" and each.ttft_per_prompt_token_s:
                    prompt = table.numbers("prompt_tokens")[mine]
                    most[mine] += each.ttft_per_prompt_token_s * prompt
        # one token has no TPOT (NaN) and cannot break a limit on it
        found[key] = finished & ~(table.numbers(column) > most * (1 + 1e-12))
    if found:
        found["slo"] = np.logical_and.reduce(list(found.values()))
    return found


def class_claim(slo: Slo, attained: Interval, verdict: Verdict, name: str) -> SloClaim:
    """Say what a run shows about the promise to one class; see `verdict.claim`."""
    made = claim(slo, attained, verdict)
    return SloClaim(made.value, f"{name or 'others'}: {made.reason}")


def joint_claim(classes: Sequence[ClassSummary]) -> SloClaim:
    """Return the claim about the whole SLO: that about the class which does worst."""
    asked = [each.claim for each in classes if each.slo.is_set]
    if not asked:
        return SloClaim("not set", "no class is promised anything.")
    worst = min(asked, key=lambda each: _WORST_FIRST.index(each.value))
    return SloClaim(worst.value, " ".join(each.reason for each in asked))


def least_ratio(classes: Sequence[ClassSummary]) -> float:
    """Return the least of the classes' attained shares over what was promised; NaN for nothing."""
    ratios = [
        each.attained.value / each.slo.attained_frac
        for each in classes
        if each.slo.is_set and not math.isnan(each.attained.value)
    ]
    return min(ratios, default=math.nan)
