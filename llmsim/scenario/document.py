"""One YAML file as plain values, with the line of every key; everything odd in it is a fault.

The dialect is the YAML that people mean: numbers as in YAML 1.2 (``1e3`` is a number, ``010`` is
ten, ``12:30`` is text), true/false only for booleans, dates are text. Merge keys, tags, keys that
are no text and several documents in one file are faults.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from llmsim.core.errors import Fault, ScenarioError

Keys = tuple[str, ...]
"""Path of a value: mapping keys, and list positions as text."""

LARGEST_BYTES: Final = 1_000_000
"""A scenario file longer than this is some other file [bytes]."""

MOST_NODES: Final = 100_000
"""Values in a file with its aliases written out; more is a mistake or an attack."""

MOST_CHARACTERS: Final = 4_000_000
"""Text in a file with its aliases written out."""

LONGEST_NUMBER: Final = 400
"""Digits of a number: the largest float has 309."""

_NUMBERS: Final = {
    "tag:yaml.org,2002:int": (
        re.compile(r"^(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+)$"),
        list("-+0123456789"),
    ),
    "tag:yaml.org,2002:float": (
        re.compile(
            r"^(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (re.compile(r"^<<$"), ["<"]),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, (pattern, firsts) in _NUMBERS.items():
        for first in firsts:
            table.setdefault(first, []).append((tag, pattern))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read.

    Parameters
    ----------
    source : Path or None
        None for text that came from no file.
    data : dict
        Plain values.
    places : dict
        ``file:line`` of every key.
    """

    source: Path | None
    data: dict[str, Any]
    places: dict[Keys, str]


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises
    ------
    ScenarioError
        If it is too long, no UTF-8 text, or not one YAML mapping; all faults with lines.
    OSError
        If the machine cannot read it.
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST_BYTES + 1)
    if len(raw) > LARGEST_BYTES:
        message = f"is longer than {LARGEST_BYTES:,} bytes: not a scenario"
        raise ScenarioError(brief(path), [Fault(path.name, "", message)])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        fault = Fault(f"{path.name}:{line}", "", "is not UTF-8 text.", "Save it as UTF-8.")
        raise ScenarioError(brief(path), [fault]) from None
    return parse_document(text, path)


def parse_document(text: str, source: Path | None = None) -> Document:
    """Read YAML text; see `read_document`."""
    name = source.name if source else "<text>"
    title = brief(source) if source else name
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ScenarioError(title, [_syntax_fault(name, error)]) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        fault = Fault(f"{name}:{line}", "", f"character {error.character!r} is not allowed in YAML")
        raise ScenarioError(title, [fault]) from None
    except RecursionError:
        raise ScenarioError(title, [Fault(name, "", "is nested too deeply")]) from None
    if node is None:
        raise ScenarioError(title, [Fault(name, "", "is empty")])
    walk = _Walk(name)
    data = walk.value(node, ())
    if not walk.faults and not isinstance(data, dict):
        walk.fault(node, (), f"must be a mapping of keys to values (got {shown(data)})")
    if walk.faults:
        raise ScenarioError(title, walk.faults)
    return Document(source, data, walk.places)


def parse_value(text: str) -> Any:
    """Read one YAML value, as `--set` gives it.

    Raises
    ------
    ScenarioError
        If it is no YAML value.
    """
    return parse_document(f"value: {text}" if "\n" not in text else f"value:\n{text}").data["value"]


def dump_yaml(data: Any) -> str:
    """Return YAML text that `parse_document` reads back as the same values."""
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=99,
    )
    return text


def brief(path: Path) -> str:
    """Return a file's name for a message: from the current folder where it lies inside that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def shown(value: Any) -> str:
    """Return a value as it stands in a fault: as YAML writes it, cut after 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _syntax_fault(name: str, error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "is not YAML"
    hint = ""
    if "'\\t'" in problem:
        problem, hint = "a tab is used for indentation.", "YAML is indented with spaces."
    elif problem == "but found another document":
        problem = "a second document begins here; one file holds one scenario"
    elif "mapping values are not allowed" in problem:
        hint = "Is a quote or a line break missing?"
    where = f"{name}:{mark.line + 1}" if mark else name
    return Fault(where, "", problem, hint)


@dataclass(slots=True)
class _Walk:
    """Turns YAML nodes into values, noting places and faults."""

    name: str
    places: dict[Keys, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    nodes: int = 0
    characters: int = 0
    open: set[int] = field(default_factory=set)

    def fault(self, node: yaml.Node, keys: Keys, message: str, hint: str = "") -> None:
        where = f"{self.name}:{node.start_mark.line + 1}"
        self.faults.append(Fault(where, ".".join(keys), message, hint))

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        self.nodes += 1
        if self.nodes >= MOST_NODES:
            if self.nodes == MOST_NODES:
                self.fault(node, keys, f"aliases unfold to more than {MOST_NODES:,} values")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        if id(node) in self.open:
            self.fault(node, keys, "an alias contains itself")
            return None
        standard = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"tag:yaml.org,2002:{standard}":
            self.fault(node, keys, f"the tag '{node.tag}' is not allowed")
        self.open.add(id(node))
        made = self._mapping(node, keys) if standard == "map" else self._list(node, keys)
        self.open.discard(id(node))
        return made

    def _list(self, node: yaml.Node, keys: Keys) -> list[Any]:
        made = []
        for index, item in enumerate(node.value):
            inner = (*keys, str(index))
            self.places.setdefault(inner, f"{self.name}:{item.start_mark.line + 1}")
            made.append(self.value(item, inner))
        return made

    def _mapping(self, node: yaml.Node, keys: Keys) -> dict[str, Any]:
        made: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.fault(key_node, keys, "merge keys ('<<') are not read.", "Use 'extends'.")
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                read = getattr(key_node, "value", "")
                got = shown(read) if isinstance(read, str) else "a list or a mapping"
                self.fault(key_node, keys, f"a key must be text (got {got}).", "Put it in quotes.")
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            inner = (*keys, key)
            if key in first:
                self.fault(key_node, inner, f"stands twice, first in line {first[key]}")
                continue
            first[key] = line
            self.places[inner] = f"{self.name}:{line}"
            made[key] = self.value(value_node, inner)
        return made

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text = node.value
        before = self.characters
        self.characters += len(text)
        if self.characters > MOST_CHARACTERS:
            if before <= MOST_CHARACTERS:
                told = f"aliases unfold to more than {MOST_CHARACTERS:,} characters"
                self.fault(node, keys, told)
            return None
        if kind == "str":
            return text
        try:
            if kind in ("int", "float") and len(text) > LONGEST_NUMBER:
                raise ValueError(text)
            if kind == "null" and not text.strip("~nulNUL"):
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 16) if text.startswith("0x") else int(text.replace("_", ""))
            if kind == "float":
                return _float(text)
        except (KeyError, ValueError):
            self.fault(node, keys, f"{shown(text)} is no {kind}")
            return None
        self.fault(node, keys, f"the tag '{node.tag}' is not allowed")
        return None


def _float(text: str) -> float:
    bare = text.replace("_", "").lower().lstrip("+")
    if bare in (".inf", "-.inf"):
        return math.inf if bare == ".inf" else -math.inf
    return math.nan if bare == ".nan" else float(bare)
