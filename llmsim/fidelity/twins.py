"""Sources that measured the same configuration, against each other.

Where two of them differ by a factor, no simulation of their common record can be right on both:
that difference is the floor of the error on one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from llmsim.fidelity.assumptions import assume
from llmsim.fidelity.cases import Case, Key

STATS: Final[Mapping[str, tuple[Key, ...]]] = {
    "tpot": (("tpot", "p50"), ("tpot", "mean")),
    "ttft": (("ttft", "p50"), ("ttft", "mean")),
}
"""What is compared: the median where both have it, as single outliers move means."""

LEAST: Final = 5
"""Fewest common configurations of a pair that is told."""

ALIKE: Final = (0.8, 1.25)
"""Ratios within are no contradiction: repeats across engine versions differ by 26% at p90."""


@dataclass(frozen=True, slots=True)
class Twins:
    """Two sources over the configurations that both measured.

    Parameters
    ----------
    first, second : str
        Sources; the first is the slower one in TPOT.
    configurations : int
    ratios : mapping of str to (median, lowest, highest)
        First over second, by metric of `STATS`.
    """

    first: str
    second: str
    configurations: int
    ratios: Mapping[str, tuple[float, float, float]]

    @property
    def contradict(self) -> bool:
        """Whether their medians differ by more than versions of an engine do."""
        low, high = ALIKE
        return any(not low <= median <= high for median, _, _ in self.ratios.values())


def find_twins(cases: Iterable[Case]) -> list[Twins]:
    """Return every pair of sources with `LEAST` common configurations or more.

    Parameters
    ----------
    cases : iterable of Case
        Only closed loops on one aggregated replica are compared.

    Notes
    -----
    A configuration is checkpoint, GPU, engine, tensor-parallel GPUs, nominal input length and
    concurrency. Engine versions, output lengths and the experts' layout may differ.
    """
    found: dict[tuple[object, ...], dict[str, list[Case]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        slots = case.whole("concurrency")
        if slots is None or case.text("disagg") or (case.whole("dp") or 1) > 1:
            continue
        if case.text("arrival").startswith("closed"):
            found[_configuration(case, slots)][case.text("source")].append(case)
    ratios: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for by_source in found.values():
        for pair in combinations(sorted(by_source), 2):
            for metric, keys in STATS.items():
                ratio = _ratio(by_source[pair[0]], by_source[pair[1]], keys)
                if ratio is not None:
                    ratios[pair][metric].append(ratio)
    return [
        _twins(pair, by_metric)
        for pair, by_metric in sorted(ratios.items())
        if min(map(len, by_metric.values())) >= LEAST
    ]


def _configuration(case: Case, slots: int) -> tuple[object, ...]:
    known = assume(case)
    prompt = known.client.get("nominal_tokens", case.whole("isl"))
    weights = (known.model or case.model_key, known.quantisation)
    return (*weights, case.text("gpu"), case.text("engine"), case.whole("tp"), prompt, slots)


def _ratio(first: Sequence[Case], second: Sequence[Case], keys: Sequence[Key]) -> float | None:
    for key in keys:
        one, two = (
            [case.measured[key] for case in side if case.measured.get(key)]
            for side in (first, second)
        )
        if one and two:
            return float(np.median(one) / np.median(two))
    # One tells medians and the other means only: the nearest that there is of each.
    one, two = (
        [case.measured[key] for case in side for key in keys if case.measured.get(key)]
        for side in (first, second)
    )
    return float(np.median(one) / np.median(two)) if one and two else None


def _twins(pair: tuple[str, str], ratios: Mapping[str, Sequence[float]]) -> Twins:
    turned = float(np.median(ratios.get("tpot", [1.0]))) < 1.0
    first, second = reversed(pair) if turned else pair
    told = {}
    for metric, values in ratios.items():
        sides = 1.0 / np.asarray(values) if turned else np.asarray(values)
        told[metric] = (float(np.median(sides)), float(sides.min()), float(sides.max()))
    return Twins(first, second, max(map(len, ratios.values())), told)
