"""What came out of a card's runs, as data: a row per arm and seed, verdicts are made from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, InputError
from llmsim.gallery.reading import Exhibit, Setting

RESULTS: Final = "results.json"

COUNTERS: Final = {
    "preemptions": "preemptions",
    "recomputed_tokens": "tokens computed again",
    "prefix_hit_frac": "prefix hits",
    "slo_attained_frac": "SLO attained",
}
"""Metrics printed beside every comparison, with their headings: a baseline that thrashes is no
baseline."""


@dataclass(frozen=True, slots=True)
class Row:
    """One arm under one seed.

    Parameters
    ----------
    seed : int
    arm : str
    load : float or None
        In the unit of the scenario's load; None where the base's own load was taken.
    value : float
        The compared metric; NaN where the run has none.
    counters : mapping of str to float
        The metrics of `COUNTERS`.
    digest : str
        Of the run that gave the value; empty without one.
    verdict : str
        Whether that run kept up.
    """

    seed: int
    arm: str
    load: float | None
    value: float
    counters: Mapping[str, float]
    digest: str
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values; NaN is null."""
        return {
            "seed": self.seed,
            "arm": self.arm,
            "load": self.load,
            "value": _plain(self.value),
            **{name: _plain(value) for name, value in self.counters.items()},
            "digest": self.digest,
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Return what `as_json` made plain values of."""
        counters = {name: _number(data.get(name)) for name in COUNTERS}
        return cls(
            data["seed"],
            data["arm"],
            data["load"],
            _number(data["value"]),
            counters,
            data["digest"],
            data["verdict"],
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """The results of one setting.

    Parameters
    ----------
    inputs : str
        Hash of what was simulated; see `Exhibit.inputs_hash`.
    picks : mapping of str to str
        The alternative that each arm with alternatives was measured with.
    rows : tuple of Row
    """

    inputs: str
    picks: Mapping[str, str]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a card.

    Parameters
    ----------
    system : str
    llmsim : str
        Version that ran.
    code : str
        Hash of the code and cards that ran.
    settings : mapping of str to Settled
    """

    system: str
    llmsim: str
    code: str
    settings: Mapping[str, Settled]

    def stale(self, exhibit: Exhibit) -> list[str]:
        """Return the settings whose results are of other inputs, or of a setting that is gone."""
        asked = {setting.name: setting for setting in exhibit.settings()}
        return [
            name
            for name, found in self.settings.items()
            if name not in asked or found.inputs != exhibit.inputs_hash(asked[name])
        ]

    def missing(self, exhibit: Exhibit) -> list[str]:
        """Return the settings that have not been run."""
        return [each.name for each in exhibit.settings() if each.name not in self.settings]

    def under(self, other: Results) -> Results:
        """Return these results with the settings of newer ones put on top."""
        return replace(other, settings={**self.settings, **other.settings})

    def of(self, settings: list[Setting]) -> Results:
        """Return only what belongs to some settings, in their order."""
        kept = {
            each.name: self.settings[each.name] for each in settings if each.name in self.settings
        }
        return replace(self, settings=kept)


def load_results(path: Path, system: str) -> Results | None:
    """Read results; None where there are none yet.

    Parameters
    ----------
    path : Path
        The file ``results.json``, or the folder of a card.
    system : str

    Raises
    ------
    InputError
        If the file holds something else.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        settings = {
            name: Settled(
                each["inputs"], each["picks"], tuple(Row.from_json(row) for row in each["rows"])
            )
            for name, each in data["settings"].items()
        }
        return Results(system, data["llmsim"], data["code"], settings)
    except (ValueError, KeyError, TypeError) as error:
        fault = Fault(file.name, "", f"holds no results of a gallery run ({error!r}).")
        raise InputError(str(file), [fault]) from None


def dump_results(results: Results) -> str:
    """Return results as the text of ``results.json``, a line per row."""
    head = {"gallery": 1, "llmsim": results.llmsim, "code": results.code}
    lines = [f"{json.dumps(head)[:-1]},", '"settings": {']
    last = len(results.settings) - 1
    for number, (name, settled) in enumerate(results.settings.items()):
        told = {"inputs": settled.inputs, "picks": dict(settled.picks)}
        lines.append(f' {json.dumps(name)}: {json.dumps(told)[:-1]}, "rows": [')
        lines.append(",\n".join(f"  {json.dumps(row.as_json())}" for row in settled.rows))
        lines.append(" ]}" + ("," if number < last else ""))
    return "\n".join([*lines, "}}"]) + "\n"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
