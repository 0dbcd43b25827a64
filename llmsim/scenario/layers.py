"""A scenario under construction: values with the place each came from, in layers.

Layers go on top of each other: the ``extends`` chain, then the file, then overrides. One rule
holds for all of them: a mapping is merged key by key, a mapping with a ``kind`` replaces the
component below whole, and ``null`` takes back what a lower layer said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from llmsim.core.errors import Fault, nearest
from llmsim.core.paths import find_data
from llmsim.scenario.component import SEAMS, Component
from llmsim.scenario.document import Document, Keys, shown
from llmsim.specs.cards import is_path

SET: Final = "--set"
"""Place of a value that came from an override."""


@dataclass(slots=True)
class Layers:
    """What the layers so far add up to.

    Parameters
    ----------
    data : dict
        Plain values; changed in place by the methods.
    places : dict
        Where each key was written: ``file:line`` or ``--set``.
    """

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, str] = field(default_factory=dict)

    def put(self, document: Document) -> None:
        """Put a file on top."""
        self._merge(self.data, document.data, document.places, ())

    def override(self, dotted: str, value: Any) -> Fault | None:
        """Put one override on top.

        Parameters
        ----------
        dotted : str
            Such as ``fleet.pools.main.replicas``.
        value : object
            A YAML value.

        Returns
        -------
        Fault or None
            What is wrong with the path, in which case nothing changed.
        """
        keys = tuple(dotted.split("."))
        if not all(keys):
            return Fault(SET, dotted, "is no dotted path.", "Write it like fleet.pools.main.tp.")
        pools = self._at(("fleet", "pools"))
        inside = keys[:2] == ("fleet", "pools") and len(keys) > 3
        if inside and isinstance(pools, dict) and keys[2] not in pools:
            return Fault(SET, dotted, f"unknown pool '{keys[2]}'.", nearest(keys[2], pools))
        nested = value
        for key in reversed(keys):
            nested = {key: nested}
        written = {keys[:depth]: SET for depth in range(1, len(keys) + 1)}
        self._merge(self.data, nested, written, ())
        return None

    def place(self, keys: Keys) -> str:
        """Return where a key, or the nearest one above it, was written; may be empty.

        A key of a pool's engine that the pool leaves out was written in the scenario's engine.
        """
        if keys[:2] == ("fleet", "pools") and keys[3:4] == ("engine",) and keys not in self.places:
            inherited = keys[3:]
            if inherited in self.places:
                return self.places[inherited]
        for depth in range(len(keys), 0, -1):
            if keys[:depth] in self.places:
                return self.places[keys[:depth]]
        return ""

    def _at(self, keys: Keys) -> Any:
        found: Any = self.data
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def _merge(
        self, below: dict[str, Any], top: Mapping[str, Any], places: Mapping[Keys, str], at: Keys
    ) -> None:
        below_each: dict[Keys, dict[Keys, str]] = {}
        for inner, place in places.items():
            below_each.setdefault(inner[: len(at) + 1], {})[inner] = place
        for key, value in top.items():
            keys = (*at, key)
            if value is None and key in below:
                del below[key]
                self._forget(keys)
                continue
            ground = below.get(key)
            if isinstance(ground, str) and key in SEAMS:
                ground = below[key] = {"kind": ground}
            if isinstance(value, dict) and isinstance(ground, dict) and "kind" not in value:
                self._merge(ground, value, below_each.get(keys, {}), keys)
                continue
            if key in below:
                self._forget(keys)
            below[key] = value
            self.places.update(below_each.get(keys, {}))

    def _forget(self, keys: Keys) -> None:
        for inner in [each for each in self.places if each[: len(keys)] == keys]:
            del self.places[inner]


def ordered(overrides: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return overrides so that a whole comes before its parts, and a kind before its parameters."""
    return sorted(
        overrides.items(),
        key=lambda item: (item[0].count("."), not item[0].endswith(".kind")),
    )


def plain(value: Any, keys: Keys, faults: list[Fault]) -> Any:
    """Return a Python value as YAML would give it: text, numbers, lists and mappings.

    Parameters
    ----------
    value : object
        What a caller handed in: also paths, NumPy numbers and components.
    keys : tuple of str
        Where it goes, for faults.
    faults : list of Fault
        Gets a fault for everything that YAML cannot say.
    """
    if isinstance(value, Component):
        return value.plain()
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        faults += [Fault(SET, ".".join(keys), f"a key must be text (got {key!r})") for key in odd]
        return {
            key: plain(each, (*keys, key), faults)
            for key, each in value.items()
            if isinstance(key, str)
        }
    if isinstance(value, list | tuple):
        return [plain(each, (*keys, str(index)), faults) for index, each in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    faults.append(Fault(SET, ".".join(keys), f"is no YAML value (got {shown(value)})"))
    return None


def anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Make the file names in a layer absolute, while it is known whose folder they start from.

    Parameters
    ----------
    data : dict
        Changed in place: ``model`` and ``gpu`` where they are paths, ``path``, ``profile`` and
        ``tokenizer`` of components.
    folder : Path
        Folder of the file, or the current one for overrides.
    """
    traffic, fleet = data.get("traffic"), data.get("fleet")
    pools = fleet.get("pools") if isinstance(fleet, dict) else None
    cards = [(data, "model")]
    cards += [(pool, "gpu") for pool in _mappings(pools)]
    for holder, key in cards:
        name = holder.get(key)
        if isinstance(name, str) and is_path(name):
            holder[key] = str(_absolute(folder, name))
    parts = [*_mappings(traffic), *(part for pool in _mappings(pools) for part in _mappings(pool))]
    for part in parts:
        name = part.get("path")
        if isinstance(name, str) and name:
            part["path"] = str(_trace(folder, name))
        _place_profiles(folder, part)
        name = part.get("tokenizer")
        if isinstance(name, str) and name:
            part["tokenizer"] = str(_absolute(folder, name))


def _place_profiles(folder: Path, part: dict[str, Any]) -> None:
    """Make paths of a component's profiles absolute, in place."""
    others = part.get("profiles")
    for holder in (part, others if isinstance(others, dict) else {}):
        for key, name in holder.items():
            if (holder is others or key == "profile") and isinstance(name, str) and is_path(name):
                holder[key] = str(_absolute(folder, name))


def _mappings(value: Any) -> list[dict[str, Any]]:
    return (
        [each for each in value.values() if isinstance(each, dict)]
        if isinstance(value, dict)
        else []
    )


def _absolute(folder: Path, name: str) -> Path:
    return Path(folder, Path(name).expanduser()).resolve()


def _trace(folder: Path, name: str) -> Path:
    """Return the file meant: beside the scenario, else shipped; the former if there is neither."""
    own = _absolute(folder, name)
    shipped = None if own.exists() or "/" in name else find_data("traces", name)
    return own if shipped is None else shipped.resolve()
