"""Tables of the flags that serving engines and routers document, by release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

from llmsim.core.errors import CardError, Fault, nearest
from llmsim.core.paths import find_data

Takes = Literal[
    "nothing",
    "switch",
    "count",
    "whole",
    "number",
    "share",
    "gibibytes",
    "choice",
    "text",
    "words",
    "json",
]
"""What stands behind a flag: ``switch`` has a ``--no-`` form, ``whole`` may be
negative, and ``words`` are several."""

PROGRAMS: Final = ("vllm", "sglang")
"""Engines with a table."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A value with where it was read."""

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Flag:
    """One documented flag.

    Parameters
    ----------
    name : str
        With its dashes.
    meaning : str
    takes : str
        What stands behind it; see `Takes`.
    carries : tuple of str
        Keys of a pool that it says; empty where it says nothing of a scenario.
    since : int
        Place of the first release, in the table's order, that has it.
    choices : mapping of str to int
        Values that are used of it, with the place of the first release that takes each.
    source : str
        Release and address, with ``{release}`` to be filled in.
    """

    name: str
    meaning: str
    takes: Takes
    carries: tuple[str, ...]
    since: int
    choices: Mapping[str, int]
    source: str


@dataclass(frozen=True, slots=True)
class FlagTable:
    """What one program documents.

    Parameters
    ----------
    program, name : str
        Key of the table, and the program's name in sentences.
    command : tuple of str
        The first words of a command.
    port : int
    releases : mapping of str to str
        Release that stands for an engine card, by the card's name, in order of age.
    image, health : Fact
        Container image with ``{release}`` in it; path of the health check.
    metrics : mapping of str to Fact
        Names of metrics by what they count.
    environment : mapping of str to Fact
        Meaning and source of each environment variable.
    flags : mapping of str to Flag
    install : Fact or None
        What pip installs, with ``{release}`` in it, where the image does not have it.
    aliases : mapping of str to str
        Other spellings of flags.
    others : mapping of str to (bool, bool)
        Of a flag that is not simulated: whether it takes a value, and whether it would change what
        a step costs or holds.
    """

    program: str
    name: str
    command: tuple[str, ...]
    port: int
    releases: Mapping[str, str]
    image: Fact
    health: Fact
    metrics: Mapping[str, Fact]
    environment: Mapping[str, Fact]
    flags: Mapping[str, Flag]
    install: Fact | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)

    def newest(self) -> str:
        """Return the engine card of the newest release in the table."""
        return list(self.releases)[-1]

    def place(self, card: str) -> int:
        """Return where a release stands in the order of age."""
        return list(self.releases).index(card)


@cache
def load_table(program: str) -> FlagTable:
    """Read a program's table from ``profiles/deploy``.

    Parameters
    ----------
    program : str
        Such as ``vllm``.

    Raises
    ------
    CardError
        If there is no table of this program, or it is wrong.
    """
    path = find_data("profiles", "deploy", f"{program}.yaml")
    if path is None:
        fault = Fault("", program, "no table of flags for this engine.", nearest(program, PROGRAMS))
        raise CardError(f"engine '{program}'", [fault])
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return _table(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CardError(path.name, [Fault(str(path), "", f"is wrong: {error!r}")]) from None


def load_facts(name: str) -> Mapping[str, Any]:
    """Return a file of ``profiles/deploy`` as plain values.

    Raises
    ------
    CardError
        If there is no such file.
    """
    path = find_data("profiles", "deploy", f"{name}.yaml")
    if path is None:
        raise CardError(f"profiles/deploy/{name}.yaml", [Fault("", name, "is missing.")])
    found: Mapping[str, Any] = _read(path)
    return found


@cache
def _read(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def _table(data: Mapping[str, Any]) -> FlagTable:
    releases = {str(card): str(number) for card, number in data["releases"].items()}
    order = list(releases)

    def flag(name: str, row: Mapping[str, Any]) -> Flag:
        if row["takes"] not in get_args(Takes):
            raise ValueError(f"{name} takes {row['takes']}")
        file = row.get("file", data.get("file", ""))
        return Flag(
            name=name,
            meaning=row["meaning"],
            takes=row["takes"],
            carries=tuple(row["carries"]),
            since=order.index(row.get("since", order[0])),
            choices={str(each): order.index(at) for each, at in row.get("choices", {}).items()},
            source=data["source"].replace("{file}", file),
        )

    def facts(key: str, word: str = "value") -> dict[str, Fact]:
        return {name: Fact(row[word], row["source"]) for name, row in data.get(key, {}).items()}

    return FlagTable(
        program=data["program"],
        name=data["name"],
        command=tuple(data["command"]),
        port=int(data["port"]),
        releases=releases,
        image=Fact(**data["image"]),
        health=Fact(**data["health"]),
        metrics=facts("metrics"),
        environment=facts("environment", "meaning"),
        flags={name: flag(name, row) for name, row in data["flags"].items()},
        install=Fact(**data["install"]) if "install" in data else None,
        aliases=data.get("aliases", {}),
        others={
            name: (takes == "takes", kind == "slower")
            for kind, rows in data.get("others", {}).items()
            for takes, names in rows.items()
            for name in names
        },
    )
