"""A fixed sample of cases, each with a ceiling that its error must not pass again."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from llmsim.core.errors import Fault, InputError
from llmsim.core.files import csv_lines, write_whole
from llmsim.fidelity.cases import Case
from llmsim.fidelity.scores import HEADLINE, Score
from llmsim.fidelity.validation import in_headline

CASES: Final = 120
"""Cases in the sample."""

SPARE_FRAC: Final = 0.005
"""Added to an observed error before it is rounded up to a whole percent."""

MOST_TOKENS: Final = 1_000_000
"""Cases that put out more than this are left out [tokens]: they take longest to simulate."""

Ceilings = Mapping[tuple[str, str], float]
"""Largest absolute error allowed, by case id and metric of `HEADLINE`."""


def draw_sample(cases: Iterable[Case], most: int = CASES) -> list[Case]:
    """Return grade A cases of the headline, in turn from every (source, GPU, model, engine).

    Parameters
    ----------
    cases : iterable of Case
    most : int

    Notes
    -----
    Within a group the order is that of a hash of the case's id, so the sample depends neither on
    the order of the file nor on any error.
    """
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    side: tuple[str, ...]
    for case in cases:
        if case.quality == "A" and in_headline(case) and _tokens(case) <= MOST_TOKENS:
            side = (case.text("source"), case.text("gpu"), case.model_key, case.text("engine"))
            groups[side].append(case)
    for members in groups.values():
        members[:] = by_hash(members)
    chosen: list[Case] = []
    rank = 0
    while len(chosen) < most and any(len(members) > rank for members in groups.values()):
        for side in sorted(groups):
            if len(groups[side]) > rank and len(chosen) < most:
                chosen.append(groups[side][rank])
        rank += 1
    return chosen


def by_hash(cases: Iterable[Case]) -> list[Case]:
    """Return cases in the order of a hash of their id, which knows nothing of any error."""
    return sorted(cases, key=lambda case: hashlib.blake2b(case.case_id.encode()).digest())


def _tokens(case: Case) -> float:
    each = case.number("osl") or 0.0
    return each * (case.number("num_requests") or 10.0 * (case.number("concurrency") or 0.0))


def ceilings_of(cases: Sequence[Case], scores: Mapping[tuple[str, str], Score]) -> Ceilings:
    """Return the observed errors, rounded up a little.

    Parameters
    ----------
    cases : sequence of Case
    scores : mapping
        As `headline_scores` gives them.
    """
    return {
        (case.case_id, metric): math.ceil(
            100.0 * (abs(scores[case.case_id, metric].error_frac) + SPARE_FRAC)
        )
        / 100.0
        for case in cases
        for metric in HEADLINE
        if (case.case_id, metric) in scores
    }


def write_ceilings(ceilings: Ceilings, path: Path) -> None:
    """Write ceilings with a note of how they were made.

    Parameters
    ----------
    ceilings : mapping
    path : Path
    """
    note = (
        "# Made by `llmsim validate DIR --ceilings FILE`: the absolute error observed then, "
        f"plus {SPARE_FRAC:.1%}, rounded up to a whole percent.\n"
        "# A change that makes llmsim worse on any of these cases fails "
        "tests/fidelity/test_ceilings.py.\n"
    )
    rows = [(*key, f"{value:.2f}") for key, value in ceilings.items()]
    write_whole(path, [note, *csv_lines([("case_id", "metric", "ceiling_frac"), *rows])])


def read_ceilings(path: Path) -> Ceilings:
    """Read what `write_ceilings` wrote.

    Raises
    ------
    InputError
        With every line that holds no number.
    """
    found: dict[tuple[str, str], float] = {}
    faults = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line, text in enumerate(lines, 1):
        if text.startswith(("#", "case_id,")) or not text:
            continue
        try:
            case_id, metric, value = text.split(",")
            found[case_id, metric] = float(value)
        except ValueError:
            faults.append(Fault(f"{path}:{line}", "", f"expected id, metric and number: {text!r}"))
    if faults:
        raise InputError(str(path), faults)
    return found
