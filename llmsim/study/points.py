"""Simulated points: what is kept of a run when a study makes hundreds of them.

A point is found again by the content of its scenario, its trace and the code that simulated it, so
that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import OutputError
from llmsim.core.paths import cache_folder, data_roots
from llmsim.scenario import Scenario
from llmsim.serving.build import fingerprint
from llmsim.study.single import simulate_whole

_ROOMS: Final = (
    "core",
    "specs",
    "workload",
    "costmodel",
    "kvcache",
    "results",
    "policies",
    "systems",
    "scenario",
    "serving",
)
"""Rooms whose code a run depends on."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is kept of one run.

    Parameters
    ----------
    values : mapping of str to float
        Every metric of the summary by name; NaN where the run has nothing to measure it by.
    digest : str
        Over all decisions of the run.
    verdict : str
        ``stable``, ``overloaded`` or ``too short to tell``.
    """

    values: Mapping[str, float]
    digest: str
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values; NaN is null."""
        values = {key: v if math.isfinite(v) else None for key, v in self.values.items()}
        return {"values": values, "digest": self.digest, "verdict": self.verdict}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """Return what `as_json` made plain values of."""
        values = {key: math.nan if v is None else float(v) for key, v in data["values"].items()}
        return cls(values, data["digest"], data["verdict"])


@dataclass(frozen=True, slots=True)
class PointStore:
    """Points on disk, a file each, found again by content.

    Parameters
    ----------
    folder : Path or None
        None keeps nothing.
    """

    folder: Path | None

    @classmethod
    def default(cls, study: str) -> PointStore:
        """Return the store of a study, for this version of code and cards."""
        return cls(cache_folder() / f"{study}-{code_hash()}")

    def point(self, scenario: Scenario) -> Point:
        """Return the point of a scenario, kept or simulated now.

        Raises
        ------
        InputError
            If a card or the trace is wrong.
        ModelDoesNotFitError
            If the model does not fit its GPUs.
        """
        place = self.place(scenario)
        found = self.read(place)
        if found is None:
            found = simulate_point(scenario)
            self.write(place, found)
        return found

    def kept(self, scenario: Scenario) -> Point | None:
        """Return the point of a scenario if it was simulated before."""
        return self.read(self.place(scenario))

    def keep(self, scenario: Scenario, point: Point) -> None:
        """Keep the point of a scenario; see `write`."""
        self.write(self.place(scenario), point)

    def place(self, scenario: Scenario) -> Path | None:
        """Return the file that the point of a scenario has or will have; None if nothing is kept.

        Notes
        -----
        Made from the resolved scenario, the content of its trace, which is read for it, and the
        code of policies that do not come with llmsim. What cannot be read is not kept.
        """
        if self.folder is None:
            return None
        parts = fingerprint(scenario)
        if not all(parts.values()):
            return None
        text = "|".join(f"{name}={parts[name]}" for name in sorted(parts))
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"

    def read(self, place: Path | None) -> Point | None:
        """Return the point at a place, if it was simulated before."""
        if place is None or not place.is_file():
            return None
        return Point.from_json(json.loads(place.read_text(encoding="utf-8")))

    def write(self, place: Path | None, point: Point) -> None:
        """Keep a point at its place; None keeps nothing.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        if place is None:
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # written beside and moved, since several processes keep points in one folder
            beside = place.with_suffix(f".{os.getpid()}.tmp")
            beside.write_text(json.dumps(point.as_json()), encoding="utf-8")
            beside.replace(place)
        except OSError as error:
            raise OutputError(f"cannot keep a point in {place.parent}: {error.strerror}") from error


def simulate_point(scenario: Scenario) -> Point:
    """Simulate a scenario and keep its metrics, its digest and whether it kept up."""
    result = simulate_whole(scenario)
    summary = result.evaluate()
    return Point(summary.values(), result.digest, summary.verdict.value)


@lru_cache(maxsize=4)
def code_hash(*more: Path) -> str:
    """Return a hash of the code that simulates and of the cards that it reads.

    Parameters
    ----------
    more : Path
        Further files that a result depends on.
    """
    digest = hashlib.blake2b(version("llmsim").encode(), digest_size=8)
    package = Path(__file__).parents[1]
    files = [*more, *(path for room in _ROOMS for path in (package / room).rglob("*.py"))]
    for root in data_roots():
        files += [path for path in (root / "profiles").rglob("*") if path.is_file()]
    for path in sorted(files):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
