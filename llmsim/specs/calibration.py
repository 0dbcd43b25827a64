"""Calibration cards: factors on the prices of one engine on one GPU, fitted to measured runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmsim.core.errors import nearest
from llmsim.core.paths import list_data
from llmsim.specs.cards import CardRow, Sheet, find_card

FOLDER: Final = "profiles/calibrations"

TERMS: Final = (
    "gemm_scale",
    "attention_prefill_scale",
    "attention_decode_scale",
    "moe_scale",
    "communication_scale",
    "host_scale",
)
"""What a calibration may change: times of operator families, and the host terms of the engine."""


@dataclass(frozen=True, slots=True)
class CalibrationCard:
    """Factors of one engine on one GPU.

    Parameters
    ----------
    name : str
        ``<engine>_<gpu>``.
    engine, gpu : str
        Engine as measurements call it; name of a GPU card.
    terms : mapping of str to float
        Factors by `TERMS`; those that are absent are 1.
    without : mapping of str to mapping
        By model, or layout of one, that the fit has seen: the factors of a fit that has not seen
        it. Empty factors where nothing else is left to fit on.
    source : str
        What it was fitted to, and its errors.
    sources : tuple of CardRow
    """

    name: str
    engine: str
    gpu: str
    terms: Mapping[str, float]
    without: Mapping[str, Mapping[str, float]]
    source: str
    sources: tuple[CardRow, ...]

    def terms_for(self, *groups: str) -> Mapping[str, float]:
        """Return the factors of a fit that has not seen a case.

        Parameters
        ----------
        *groups : str
            Names that it goes by: its layout, its model, as measurements call them.
        """
        left_out = (self.without[group] for group in groups if group in self.without)
        return next(left_out, self.terms)

    @property
    def helps(self) -> bool:
        """Whether groups that a fit had not seen were no worse for it, by the card's own errors.

        True as well where a single group was measured, which nothing else could predict.
        """
        stated = {row.field: row.value for row in self.sources}
        before, after = (stated.get(f"errors.never_seen.{key}") for key in ("before", "after"))
        return before is None or after is None or float(after) <= float(before)

    def rows(self) -> list[CardRow]:
        """Return (field, value, unit, source) of every number."""
        return list(self.sources)


def calibration_names() -> tuple[str, ...]:
    """Return the names of all calibration cards, sorted."""
    return tuple(sorted(list_data(FOLDER, ".yaml")))


def load_calibration(name: str) -> CalibrationCard:
    """Read the calibration card of a name.

    Parameters
    ----------
    name : str
        Such as ``vllm_h100-sxm``.

    Raises
    ------
    CardError
        With every fault of the card, or the nearest name when there is none of this name.
    """
    return read_calibration(find_card(FOLDER, name))


def read_calibration(path: Path) -> CalibrationCard:
    """Read a calibration card from a file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CardError
        With every fault of the card.
    """
    sheet = Sheet(path)
    engine, gpu, source = (sheet.text(key) for key in ("engine", "gpu", "source"))
    sheet.facts("fitted_on", source)
    sheet.facts("errors", source)
    terms = _factors(sheet, "terms", sheet.facts("terms", source))
    if not terms:
        sheet.fault("terms", "missing.")
    without = {
        group: _factors(sheet, f"without.{group}", factors)
        for group, factors in _left_out(sheet).items()
    }
    name = sheet.text("name", path.stem)
    rows = sheet.finish() + tuple(
        CardRow(f"without.{group}.{term}", value, "", source)
        for group, factors in without.items()
        for term, value in factors.items()
    )
    return CalibrationCard(name, engine, gpu, terms, without, source, rows)


def _left_out(sheet: Sheet) -> dict[str, Mapping[str, float]]:
    """Return the factors of each fold; names of groups have dots, so they stand in a list."""
    found: dict[str, Mapping[str, float]] = {}
    for entry in sheet.entries("without"):
        group, factors = entry.get("model", entry.get("layout")), entry.get("terms")
        if isinstance(group, str) and isinstance(factors, dict):
            found[group] = factors
        else:
            message = f"an entry needs a model or a layout, and terms (got {entry!r})."
            sheet.fault("without", message)
    return found


def _factors(sheet: Sheet, path: str, found: Mapping[str, object]) -> dict[str, float]:
    factors = {}
    for name, value in found.items():
        if name not in TERMS:
            sheet.fault(path, f"unknown term '{name}'.", nearest(name, TERMS))
        elif not isinstance(value, int | float) or not value > 0:
            sheet.fault(path, f"{name} must be a number above 0 (got {value!r}).")
        else:
            factors[name] = float(value)
    return factors
