"""Sweep files: a scenario, what to go over, and what to look for, as YAML.

::

    scenario: quickstart
    over:
      engine.max_num_seqs: [64, 128, 256]
      traffic.arrivals.rate_rps: 1..8:sobol
    samples: 64
    seeds: 3
    maximise: goodput_rps
    subject_to: ttft_p99_s<=0.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, InputError, ScenarioError, nearest
from llmsim.core.paths import list_data
from llmsim.scenario import Scenario, find_scenario
from llmsim.scenario.document import Document, brief, read_document, shown

FOLDER: Final = "scenarios/sweeps"
"""Where shipped sweep files lie."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a sweep was asked to do, before anything is checked against the scenario.

    Parameters
    ----------
    scenario : Scenario
    over : mapping of str to object
        Values by dotted path, as `axes.parse_axes` takes them.
    places : mapping of str to str
        Where each path was written.
    samples : int or None
    seeds : tuple of int
        Empty for the scenario's own.
    maximise, minimise, subject_to : tuple of str
    count_overloaded : bool
    """

    scenario: Scenario
    over: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    samples: int | None = None
    seeds: tuple[int, ...] = ()
    maximise: tuple[str, ...] = ()
    minimise: tuple[str, ...] = ()
    subject_to: tuple[str, ...] = ()
    count_overloaded: bool = False


def read_asked(source: str | Path, overrides: Mapping[str, object] | None = None) -> Asked:
    """Read a sweep file, or take a scenario alone.

    Parameters
    ----------
    source : str or Path
        A file, or the name of a shipped sweep or scenario. A file with the key ``over`` or
        ``scenario`` is a sweep file.
    overrides : mapping of str to object, optional
        Of the scenario, by dotted path.

    Raises
    ------
    InputError
        With everything that is wrong with the file or its scenario.
    OSError
        If the machine cannot read it.
    """
    shipped = list_data(FOLDER, ".yaml")
    path = shipped.get(source) if isinstance(source, str) else None
    path = path or find_scenario(source)
    document = read_document(path)
    if not {"over", "scenario"} & set(document.data):
        return Asked(Scenario.load(source, overrides))
    return _asked(document, path, overrides or {})


def seeds_of(told: int | Sequence[int]) -> tuple[int, ...]:
    """Return seeds: those given, or so many from 1 on.

    Raises
    ------
    InputError
        If there is none, one stands twice, or one is negative.
    """
    seeds = tuple(range(1, told + 1)) if isinstance(told, int) else tuple(told)
    wrong = ""
    if isinstance(told, int) and told < 1:
        wrong = f"{told}, must be at least 1."
    elif not seeds or min(seeds) < 0:
        wrong = f"{shown(list(seeds))}, must be numbers from 0 on."
    elif len(set(seeds)) < len(seeds):
        wrong = f"{shown(list(seeds))} has one twice."
    if wrong:
        raise InputError("sweep", [Fault("", "seeds", wrong)])
    return seeds


def _asked(document: Document, path: Path, overrides: Mapping[str, object]) -> Asked:
    data, faults = document.data, []
    known = ["set", *(each.name for each in fields(Asked) if each.name != "places")]

    def place(*keys: str) -> str:
        return document.places.get(keys, path.name)

    def wrong(key: str, message: str, hint: str = "") -> None:
        faults.append(Fault(place(key), key, message, hint))

    for key in data:
        if key not in known:
            wrong(key, "unknown key.", nearest(key, known))
    for key in ("over", "set"):
        if not isinstance(data.get(key, {}), dict):
            wrong(key, f"must be a mapping of paths to values (got {shown(data[key])})")
    if not isinstance(data.get("over"), dict) and "over" not in data:
        faults.append(Fault(path.name, "over", "is missing"))
    words = {key: _words(data.get(key)) for key in ("maximise", "minimise", "subject_to")}
    for key, found in words.items():
        if found is None:
            wrong(key, f"must be text, or a list of texts (got {shown(data[key])})")
    samples, counted = data.get("samples"), data.get("count_overloaded", False)
    if samples is not None and (type(samples) is not int or samples < 1):
        wrong("samples", f"must be a whole number from 1 on (got {shown(samples)})")
    if not isinstance(counted, bool):
        wrong("count_overloaded", f"must be true or false (got {shown(counted)})")
    seeds: tuple[int, ...] = ()
    try:
        seeds = _seeds(data.get("seeds"))
    except InputError as error:
        wrong("seeds", error.faults[0].message)
    if "scenario" not in data:
        faults.append(Fault(path.name, "scenario", "is missing"))
    if faults:
        raise InputError(brief(path), sorted(faults, key=_line))
    scenario = _scenario(data["scenario"], path, place("scenario"), data.get("set", {}), overrides)
    return Asked(
        scenario,
        data["over"],
        {key: place("over", key) for key in data["over"]},
        samples,
        seeds,
        words["maximise"] or (),
        words["minimise"] or (),
        words["subject_to"] or (),
        counted,
    )


def _line(fault: Fault) -> int:
    _, _, number = fault.where.rpartition(":")
    return int(number) if number.isdigit() else 0


def _words(told: Any) -> tuple[str, ...] | None:
    """Return one text or a list of them; None where it is neither."""
    words = [] if told is None else told if isinstance(told, list) else [told]
    return tuple(words) if all(isinstance(each, str) for each in words) else None


def _seeds(told: Any) -> tuple[int, ...]:
    if told is None:
        return ()
    numbers = told if isinstance(told, list) else [told]
    if not all(type(each) is int for each in numbers):
        raise InputError(
            "sweep", [Fault("", "seeds", f"must be a number or a list of them (got {shown(told)})")]
        )
    return seeds_of(told)


def _scenario(
    told: Any,
    path: Path,
    place: str,
    changes: Mapping[str, object],
    overrides: Mapping[str, object],
) -> Scenario:
    """Return the scenario that a sweep file names, or holds."""
    if isinstance(told, dict):
        base = Scenario.parse(told, path.parent)
        return base.override({**changes, **overrides}) if changes or overrides else base
    if not isinstance(told, str) or not told:
        message = f"must be a name, a file or a scenario (got {shown(told)})"
        raise InputError(brief(path), [Fault(place, "scenario", message)])
    beside = path.parent / told
    try:
        return Scenario.load(beside if beside.is_file() else told, {**changes, **overrides})
    except ScenarioError as error:
        if error.faults[0].where:
            raise
        raise InputError(
            brief(path), [Fault(place, "scenario", f.message, f.hint) for f in error.faults]
        ) from None
