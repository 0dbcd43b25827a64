"""Which measured kernel table prices a case: that of its GPU and engine, of the nearest version."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import CardError, Fault, InputError
from llmsim.fidelity.cases import Case
from llmsim.specs import load_gpu
from llmsim.specs.profile_rows import read_rows

MEASURED: Final = "measured"
"""Kind of ``cost`` that needs a profile."""

_MEASURED_ALONE: Final = (
    *("profile", "profiles", "strict", "libs", "kernel_id", "kernels", "mixed"),
)
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
    kernels : mapping of str to frozenset of str
        Names of the kernels that it has rows of, by operator.
    """

    folder: Path
    gpu: str
    engine: str
    version: tuple[int, ...]
    kernels: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def has(self, op: str, kernel: str = "*") -> bool:
        """Whether it has rows of an operator by a kernel that a glob matches."""
        return any(fnmatchcase(name, kernel) for name in self.kernels.get(op, ()))


def read_profiles(folder: Path) -> tuple[KnownProfile, ...]:
    """Return the profiles in ``<folder>/<device>/<engine>-<version>``.

    Raises
    ------
    InputError
        If there are none.
    """
    found = []
    for meta in sorted(folder.glob("*/*/meta.json")):
        engine, _, version = meta.parent.name.partition("-")
        device, kernels = meta.parts[-3], _kernels(meta)
        found.append(KnownProfile(meta.parent.resolve(), device, engine, numbers(version), kernels))
    if not found:
        message = "holds no <device>/<engine>-<version>/meta.json."
        hint = "`llmsim profile import` makes them of public tables."
        raise InputError("--profiles", [Fault(str(folder), "", message, hint)])
    return tuple(found)


def _kernels(meta: Path) -> dict[str, frozenset[str]]:
    """Return the kernels of a profile by operator: from its fits, or from its rows without any.

    An import that was stopped leaves profiles without fits.
    """
    found: dict[str, set[str]] = {}
    fitted = json.loads(meta.read_text(encoding="utf-8")).get("fit", {})
    if fitted:
        for key in fitted:
            words = [*key.split(" "), "", ""]  # operator, formats, kernel, libraries
            found.setdefault(words[0], set()).add(words[2])
    else:
        rows = read_rows(meta.parent)
        for op, kernel in set(zip(rows["op"].tolist(), rows["kernel_id"].tolist(), strict=True)):
            found.setdefault(op, set()).add(kernel)
    return {op: frozenset(names) for op, names in found.items()}


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, up to the first part that is none."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("rc")[0])[:3])


def profile_for(
    case: Case, known: Iterable[KnownProfile], op: str = "gemm", kernel: str = "*"
) -> KnownProfile | None:
    """Return the profile of a case's GPU and engine whose version is nearest, or None.

    Parameters
    ----------
    case : Case
    known : iterable of KnownProfile
    op : str
        What it must have rows of; a profile without products prices no model.
    kernel : str
        Glob of the kernels that the rows may be of.

    Notes
    -----
    Versions are ordered by their numbers; of two equally near the later one is taken.
    """
    try:
        card = load_gpu(case.text("gpu")).name
    except CardError:
        return None
    fitting = [
        one
        for one in known
        if (one.gpu, one.engine) == (card, case.text("engine")) and one.has(op, kernel)
    ]
    if not fitting:
        return None
    wanted = _place(numbers(case.text("engine_version")))
    return min(fitting, key=lambda one: (abs(_place(one.version) - wanted), -_place(one.version)))


def _place(version: Sequence[int]) -> float:
    major, minor, patch = (*version, 0, 0, 0)[:3]
    return 1e6 * major + 1e3 * minor + min(patch, 999)


def priced_by(
    cost: Mapping[str, Any],
    case: Case,
    known: Sequence[KnownProfile],
    expert_rows: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Return the ``cost`` component of a case: with its profiles, or the roofline without one.

    Parameters
    ----------
    cost : mapping
        As asked for all cases; left alone unless it is `MEASURED` and names no profile itself.
    case : Case
    known : sequence of KnownProfile
    expert_rows : sequence of str
        Globs of the kernels that multiplied the case's experts, the best first; empty where any
        may have. Where no profile has rows of one, the roofline prices experts.
    """
    if cost.get("kind") != MEASURED or "profile" in cost:
        return cost
    chosen = profile_for(case, known)
    if chosen is None:
        rest = {name: value for name, value in cost.items() if name not in _MEASURED_ALONE}
        return {**rest, "kind": "roofline"}
    found = {**cost, "profile": str(chosen.folder)}
    for kernel in expert_rows:
        found["kernels"] = {**cost.get("kernels", {}), "moe": kernel}
        experts = profile_for(case, known, "moe", kernel)
        if experts is not None:
            if experts != chosen:
                found["profiles"] = {**cost.get("profiles", {}), "moe": str(experts.folder)}
            break
    return found
