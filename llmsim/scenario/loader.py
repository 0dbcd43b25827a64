"""From a file, a shipped name or a mapping to a checked scenario, or to all of its faults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from llmsim.core.errors import Fault, ScenarioError, closest, nearest
from llmsim.core.paths import find_data, list_data
from llmsim.scenario.checks import layouts, named_things, traffic_laws
from llmsim.scenario.document import Document, brief, parse_value, read_document
from llmsim.scenario.faults import faults_of
from llmsim.scenario.layers import SET, Layers, anchor_paths, ordered, plain

if TYPE_CHECKING:
    from llmsim.scenario.model import Scenario

OWN_KEYS: Final = ("name", "description")
"""Keys that a child does not take over from its parent."""


def load_scenario(source: str | Path, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Read a scenario file, what it extends, and overrides.

    Parameters
    ----------
    source : str or Path
        A path, or the bare name of a shipped scenario such as ``quickstart``.
    overrides : mapping of str to object, optional
        Values by dotted path, such as ``{"fleet.pools.main.replicas": 4}``. File names in them
        start from the current directory.

    Raises
    ------
    ScenarioError
        With every fault of the file, its parents and the overrides.
    OSError
        If the machine cannot read a file.
    """
    path = find_scenario(source)
    layers = Layers()
    for document in _chain(path):
        assert document.source is not None
        if document.source != path:
            for key in OWN_KEYS:
                document.data.pop(key, None)
        anchor_paths(document.data, document.source.parent)
        layers.put(document)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "scenario"
    layers.data.setdefault("name", stem)
    return _finish(layers, overrides or {}, str(source), path.name, path.parent)


def places_in(
    source: str | Path, overrides: Mapping[str, object] | None = None
) -> Callable[[str], str]:
    """Return who says where a key of a scenario was written, for faults that are found later.

    Parameters
    ----------
    source : str or Path
        As for `load_scenario`, which has read it without a fault.
    overrides : mapping of str to object, optional

    Returns
    -------
    callable
        From a dotted path to ``file:line``, or ``--set``, of the key or the nearest one above it.
    """
    layers = Layers()
    for document in _chain(find_scenario(source)):
        layers.put(document)
    for dotted, value in ordered(overrides or {}):
        layers.override(dotted, value)
    return lambda path: layers.place(tuple(path.split(".")))


def build_scenario(
    data: Mapping[str, Any],
    overrides: Mapping[str, object] | None = None,
    folder: Path | None = None,
) -> Scenario:
    """Check a scenario that is given as a mapping.

    Parameters
    ----------
    data : mapping
        What a file would say; without ``extends``.
    overrides : mapping of str to object, optional
    folder : Path, optional
        Where relative file names start from; the current directory when absent.

    Raises
    ------
    ScenarioError
        With every fault.
    """
    faults: list[Fault] = []
    made = plain(data, (), faults)
    if faults:
        raise ScenarioError("scenario", [Fault("", f.path, f.message, f.hint) for f in faults])
    anchor_paths(made, folder or Path.cwd())
    return _finish(Layers(made), overrides or {}, "scenario", "", folder)


OF_RUN: Final = "scenario.yaml"
"""What a run keeps its scenario in: a folder with it stands for it."""


def find_scenario(source: str | Path) -> Path:
    """Return the file behind a path, the folder of a run or a shipped name.

    Raises
    ------
    ScenarioError
        If there is none; the message gives the nearest name.
    """
    text = str(source)
    shipped = list_data("scenarios", ".yaml")
    if isinstance(source, str) and not _is_path(text):
        if text in shipped:
            return shipped[text]
        if not _is_run(Path(text)):
            near = closest(text, [each.name for each in Path().glob("*.y*ml")])
            hint = f"Did you mean '{near}'?" if near else nearest(text, shipped)
            fault = Fault("", "", f"no shipped scenario is called '{text}'.", hint)
            raise ScenarioError(text, [fault])
    path = Path(source).expanduser()
    if path.is_file():
        return path.resolve()
    if _is_run(path):
        return (path / OF_RUN).resolve()
    what = "this is a folder, not a file." if path.is_dir() else "no such file."
    if path.stem in shipped:
        hint = f"A shipped scenario has this name: write '{path.stem}'."
    else:
        beside = {each.name for each in path.parent.glob("*.y*ml")} if path.parent.is_dir() else ()
        hint = nearest(path.name, beside)
    raise ScenarioError(text, [Fault("", "", what, hint)])


def _is_run(path: Path) -> bool:
    try:
        return (path / OF_RUN).is_file()
    except (OSError, ValueError):  # longer than any name, or with a zero byte in it
        return False


def parse_assignments(assignments: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Return overrides from the texts of ``--set``.

    Parameters
    ----------
    assignments : sequence of str
        Each ``dotted.path=value``, the value in YAML.

    Raises
    ------
    ScenarioError
        With every text that is not of this form, or that sets a path twice.
    """
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for text in assignments:
        path, sign, value = text.partition("=")
        path = path.strip()
        if not sign or not path:
            faults.append(Fault(SET, "", f"'{text}' has no value.", "Write it like seed=3."))
        elif path in found:
            faults.append(Fault(SET, path, "is set twice"))
        else:
            try:
                found[path] = parse_value(value)
            except ScenarioError as error:
                faults += [Fault(SET, path, fault.message, fault.hint) for fault in error.faults]
    if faults:
        raise ScenarioError("--set", faults)
    return found


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith((".yaml", ".yml"))


def _chain(path: Path) -> list[Document]:
    """Return a file and its parents, the farthest parent first."""
    chain: list[Document] = []
    while True:
        document = read_document(path)
        chain.insert(0, document)
        if "extends" not in document.data:
            return chain
        named = document.data.pop("extends")
        where = document.places[("extends",)]
        path = _parent(named, path, where)
        met = [each.source for each in chain]
        if path in met:
            way = [each.name for each in reversed(met) if each is not None] + [path.name]
            fault = Fault(where, "extends", f"goes in a circle: {' -> '.join(way)}")
            raise ScenarioError(brief(document.source or path), [fault])


def _parent(named: Any, child: Path, where: str) -> Path:
    if not isinstance(named, str) or not named:
        fault = Fault(where, "extends", f"should be a file or a shipped name (got {named!r})")
        raise ScenarioError(brief(child), [fault])
    if not _is_path(named):
        shipped = list_data("scenarios", ".yaml")
        if named in shipped:
            return shipped[named].resolve()
        message, hint = f"no shipped scenario is called '{named}'.", nearest(named, shipped)
        raise ScenarioError(brief(child), [Fault(where, "extends", message, hint)])
    path = (child.parent / named).resolve()
    if path.is_file():
        return path
    fallback = find_data("scenarios", named)
    if fallback is not None and fallback.is_file():
        return fallback.resolve()
    beside = [each.name for each in child.parent.glob("*.y*ml") if each != child]
    fault = Fault(where, "extends", f"no such file: '{path}'.", nearest(Path(named).name, beside))
    raise ScenarioError(brief(child), [fault])


def _finish(
    layers: Layers, overrides: Mapping[str, object], title: str, source: str, folder: Path | None
) -> Scenario:
    """Put the overrides on top, check everything, and return the scenario."""
    from llmsim.scenario.model import Scenario

    faults: list[Fault] = []
    for dotted, value in ordered(overrides):
        given = plain(value, (dotted,), faults)
        wrapped = _anchored(dotted, given)
        fault = layers.override(dotted, wrapped)
        if fault is not None:
            faults.append(fault)
    found = named_things(layers.data)
    scenario = None
    try:
        scenario = Scenario.model_validate_json(json.dumps(layers.data))
        found += traffic_laws(scenario)
        found += layouts(scenario) if not found else []
    except ValidationError as error:
        faults += faults_of(error.errors(include_url=False), layers, source, Scenario)
    for keys, message, hint in found:
        faults.append(Fault(layers.place(keys) or source, ".".join(keys), message, hint))
    if faults or scenario is None:
        raise ScenarioError(title, _sorted(faults))
    return scenario.located(folder)


def _anchored(dotted: str, value: Any) -> Any:
    """Return an override's value with its file names absolute, from the current directory."""
    keys = dotted.split(".")
    nested = value
    for key in reversed(keys):
        nested = {key: nested}
    anchor_paths(nested, Path.cwd())
    for key in keys:
        nested = nested[key]
    return nested


def _sorted(faults: list[Fault]) -> list[Fault]:
    """Order faults as the file is read: by line, those without one last."""

    def line(fault: Fault) -> tuple[str, int]:
        name, _, number = fault.where.rpartition(":")
        return (name, int(number)) if number.isdigit() else (fault.where, 10**9)

    return sorted(faults, key=line)
