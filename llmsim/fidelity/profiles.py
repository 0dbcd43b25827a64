"""Which measured kernel table prices a case: that of its GPU and engine, of the nearest version."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import CardError, Fault, InputError
from llmsim.fidelity.cases import Case
from llmsim.specs import load_gpu

MEASURED: Final = "measured"
"""Kind of ``cost`` that needs a profile."""

_MEASURED_ALONE: Final = ("profile", "strict", "libs", "kernel_id", "mixed")
"""Its parameters that no other kind has."""


@dataclass(frozen=True, slots=True)
class KnownProfile:
    """A profile folder.

    Parameters
    ----------
    folder : Path
    gpu : str
        Card.
    engine : str
    version : tuple of int
        Of the engine.
    """

    folder: Path
    gpu: str
    engine: str
    version: tuple[int, ...]


def read_profiles(folder: Path) -> tuple[KnownProfile, ...]:
    """Return the profiles in ``<folder>/<device>/<engine>-<version>``.

    Raises
    ------
    InputError
        If there are none.
    """
    found = []
    for meta in sorted(folder.glob("*/*/meta.json")):
        if not _has_layers(meta):
            continue
        engine, _, version = meta.parent.name.partition("-")
        found.append(KnownProfile(meta.parent.resolve(), meta.parts[-3], engine, numbers(version)))
    if not found:
        message = "holds no <device>/<engine>-<version>/meta.json."
        hint = "`llmsim profile import` makes them of public tables."
        raise InputError("--profiles", [Fault(str(folder), "", message, hint)])
    return tuple(found)


def _has_layers(meta: Path) -> bool:
    """Whether a fitted profile holds GEMMs; one of collectives or MLA alone prices no model."""
    fitted = json.loads(meta.read_text(encoding="utf-8")).get("fit", {})
    return not fitted or any(kernel.startswith("gemm ") for kernel in fitted)


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, up to the first part that is none."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("rc")[0])[:3])


def profile_for(case: Case, known: Iterable[KnownProfile]) -> KnownProfile | None:
    """Return the profile of a case's GPU and engine whose version is nearest, or None.

    Notes
    -----
    Versions are ordered by their numbers; of two equally near the later one is taken.
    """
    try:
        card = load_gpu(case.text("gpu")).name
    except CardError:
        return None
    fitting = [one for one in known if (one.gpu, one.engine) == (card, case.text("engine"))]
    if not fitting:
        return None
    wanted = _place(numbers(case.text("engine_version")))
    return min(fitting, key=lambda one: (abs(_place(one.version) - wanted), -_place(one.version)))


def _place(version: Sequence[int]) -> float:
    major, minor, patch = (*version, 0, 0, 0)[:3]
    return 1e6 * major + 1e3 * minor + min(patch, 999)


def priced_by(
    cost: Mapping[str, Any], case: Case, known: Sequence[KnownProfile]
) -> Mapping[str, Any]:
    """Return the ``cost`` component of a case: with its profile, or the roofline without one.

    Parameters
    ----------
    cost : mapping
        As asked for all cases; left alone unless it is `MEASURED` and names no profile itself.
    case : Case
    known : sequence of KnownProfile
    """
    if cost.get("kind") != MEASURED or "profile" in cost:
        return cost
    chosen = profile_for(case, known)
    if chosen is not None:
        return {**cost, "profile": str(chosen.folder)}
    rest = {name: value for name, value in cost.items() if name not in _MEASURED_ALONE}
    return {**rest, "kind": "roofline"}
