"""Cards: small YAML files in which every number stands with its unit and its source.

A leaf of a card is ``{value: ..., unit: ..., source: ...}``; a block of leaves may state ``source``
once for all. `Sheet` reads one file, hands out numbers by dotted path, and collects everything that
is wrong, so that one `CardError` lists it all with file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmsim.core.errors import CardError, Fault, closest, nearest
from llmsim.core.paths import list_data

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster


class CardRow(NamedTuple):
    """One fact of a card, as `llmsim show` prints it."""

    field: str
    value: float | str
    unit: str
    source: str


def find_card(folder: str, name: str) -> Path:
    """Return the shipped card of a name or alias.

    Parameters
    ----------
    folder : str
        Such as ``profiles/gpus``.
    name : str
        Such as ``h100-sxm``, or an alias such as ``H100-80G-SXM``; case does not matter.

    Raises
    ------
    CardError
        If there is no such card; the message gives the nearest name.
    """
    cards = list_data(folder, ".yaml")
    if name in cards:
        return cards[name]
    known = {**_aliases(cards), **{card.lower(): card for card in cards}}
    if name.lower() in known:
        return cards[known[name.lower()]]
    kind = folder.rsplit("/", 1)[-1].removesuffix("s")
    meant = closest(name.lower(), known)
    hint = nearest(name if meant is None else known[meant], cards)
    raise CardError(f"{kind} '{name}'", [Fault("", name, f"no {kind} card of this name.", hint)])


def _aliases(cards: Mapping[str, Path]) -> dict[str, str]:
    """Return the card of each alias, in lower case.

    Only the lines of the ``aliases`` key are parsed: reading all cards whole would take seconds.
    """
    found: dict[str, str] = {}
    for card, path in cards.items():
        block: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("aliases:") or (block and line.startswith((" ", "-"))):
                block.append(line)
            elif block:
                break
        if not block:
            continue
        try:
            named = yaml.load("\n".join(block), Loader=_LOADER)["aliases"]
        except yaml.YAMLError:
            continue  # reading the card itself says what is wrong with it
        found.update({str(alias).lower(): card for alias in named or ()})
    return found


def is_path(name: str) -> bool:
    """Say whether a card is named by path: it starts with ./ ../ or / or ends in a file suffix."""
    return name.startswith(("./", "../", "/")) or name.endswith((".json", ".yaml", ".yml"))


def resolve_path(name: str, near: Path | None) -> Path:
    """Return the file that a path names, relative to the folder `near` or the current one.

    Raises
    ------
    CardError
        If there is no such file.
    """
    path = (near or Path()) / name
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise CardError(name, [Fault(str(path), "", "no such file.")])
    return path


class _Parsed(NamedTuple):
    """A card file as it stands: of every dotted path its line, its leaf, and what stands twice."""

    lines: dict[str, int]
    leaves: dict[str, Mapping[str, Any]]
    twice: list[tuple[str, int]]


@lru_cache(maxsize=256)
def _parsed(path: Path, text: str) -> _Parsed:
    """Parse a file, once for its content: searches read the same cards hundreds of times.

    Raises
    ------
    CardError
        If it is not a YAML mapping.
    """
    try:
        tree = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise CardError(path.name, [Fault(str(path), "", f"not YAML: {error}")]) from None
    if not isinstance(tree, yaml.MappingNode):
        raise CardError(path.name, [Fault(str(path), "", "a card is a mapping.")])
    found = _Parsed({}, {}, [])
    _walk(tree, "", found)
    return found


def _walk(node: yaml.MappingNode, prefix: str, found: _Parsed) -> None:
    for key_node, value_node in node.value:
        path = f"{prefix}{key_node.value}"
        if path in found.lines:
            found.twice.append((path, found.lines[path]))
        found.lines[path] = key_node.start_mark.line + 1
        if isinstance(value_node, yaml.MappingNode):
            keys = {child.value for child, _ in value_node.value}
            if "value" in keys:
                found.leaves[path] = _plain(value_node)
            else:
                _walk(value_node, f"{path}.", found)
        else:
            found.leaves[path] = {"value": _plain(value_node)}


def _plain(node: yaml.Node) -> Any:
    return yaml.constructor.SafeConstructor().construct_document(node)


class Sheet:
    """One card file under reading.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CardError
        If the file is not a YAML mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self.rows: list[CardRow] = []
        self._used: set[str] = set()
        found = _parsed(path, path.read_text(encoding="utf-8"))
        self._lines, self._leaves = found.lines, found.leaves
        for each, line in found.twice:
            self.faults.append(Fault(f"{path}:{line}", each, "stands twice."))

    def fault(self, path: str, message: str, hint: str = "") -> None:
        """Note that something at a dotted path is wrong."""
        line = self._lines.get(path)
        where = f"{self.path}:{line}" if line else str(self.path)
        self.faults.append(Fault(where, path, message, hint))

    def has(self, path: str) -> bool:
        """Say whether the card has a leaf at this dotted path."""
        return path in self._leaves

    def under(self, prefix: str) -> tuple[str, ...]:
        """Return the next words below a dotted prefix, in file order."""
        head = f"{prefix}."
        words = [path[len(head) :].split(".")[0] for path in self._leaves if path.startswith(head)]
        return tuple(dict.fromkeys(words))

    def text(self, path: str, default: str | None = None) -> str:
        """Return a plain text leaf; it needs no unit or source."""
        self._used.add(path)
        if path not in self._leaves:
            if default is None:
                self.fault(path, "missing.")
            return default or ""
        value = self._leaves[path]["value"]
        if not isinstance(value, str):
            self.fault(path, f"must be text (got {value!r}).")
            return ""
        return value

    def words(self, path: str) -> tuple[str, ...]:
        """Return a list of plain texts; empty where the card has none."""
        self._used.add(path)
        value = self._leaves.get(path, {}).get("value") or []
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.fault(path, f"must be a list of texts (got {value!r}).")
            return ()
        return tuple(value)

    def number(self, path: str, unit: str, low: float = 0.0, high: float = float("inf")) -> float:
        """Return a sourced number; every fault is noted and yields `low`.

        Parameters
        ----------
        path : str
            Dotted path of the leaf.
        unit : str
            The one unit that is allowed; values are SI.
        low, high : float [unit]
            Smallest and largest allowed value.
        """
        self._used.add(path)
        leaf = self._leaves.get(path)
        if leaf is None:
            self.fault(path, f"missing; needs {{value:, unit: {unit}, source:}}.")
            return low
        value = leaf["value"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fault(path, f"must be a number (got {value!r}).", "Powers of ten: 3.35e+12.")
            return low
        if leaf.get("unit") != unit:
            self.fault(path, f"unit must be '{unit}' (got {leaf.get('unit')!r}).")
        source = " ".join(str(leaf.get("source") or self._source_of_block(path)).split())
        if not source:
            self.fault(path, "has no source.")
        for extra in set(leaf) - {"value", "unit", "source", "date"}:
            self.fault(
                path, f"unknown key '{extra}'.", nearest(extra, ("value", "unit", "source", "date"))
            )
        if not low <= value <= high:
            self.fault(path, f"must be in [{low:g}, {high:g}] (got {value:g}).")
        self.rows.append(CardRow(path, value, unit, source))
        return float(value)

    def _source_of_block(self, path: str) -> str:
        """Return the source that the block of a leaf states for all its numbers."""
        block = f"{path.rpartition('.')[0]}.source"
        return self.text(block, "") if block in self._leaves else ""

    def facts(self, prefix: str, source: str) -> dict[str, Any]:
        """Return the plain mapping below a prefix, whose entries share one source."""
        found: dict[str, Any] = {}
        for path, leaf in self._leaves.items():
            if not path.startswith(f"{prefix}."):
                continue
            self._used.add(path)
            *parents, last = path[len(prefix) + 1 :].split(".")
            place = found
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = leaf["value"]
            self.rows.append(CardRow(path, leaf["value"], "", source))
        return found

    def entries(self, path: str) -> list[Mapping[str, Any]]:
        """Return a list of plain mappings; empty where the card has none."""
        self._used.add(path)
        value = self._leaves.get(path, {}).get("value") or []
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            self.fault(path, f"must be a list of mappings (got {value!r}).")
            return []
        return list(value)

    def finish(self) -> tuple[CardRow, ...]:
        """Raise what was found wrong, unread keys included, or return the rows.

        Raises
        ------
        CardError
            With all faults.
        """
        known = self._used
        for path in self._leaves:
            if path not in known:
                self.fault(path, "unknown key.", nearest(path, known))
        if self.faults:
            raise CardError(self.path.name, self.faults)
        return tuple(self.rows)


def overlay(rows: Iterable[CardRow], more: Iterable[CardRow]) -> tuple[CardRow, ...]:
    """Return `rows` with those of `more` that they lack, in order."""
    kept = list(rows)
    seen = {row.field for row in kept}
    return (*kept, *(row for row in more if row.field not in seen))
