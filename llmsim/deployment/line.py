"""A command line that is put together flag by flag, and what it could not say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmsim.core.errors import InvariantError
from llmsim.deployment.tables import Flag, FlagTable


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a scenario says and that was not, or not exactly, put into what is deployed.

    Parameters
    ----------
    pool : str
        Empty for the fleet as a whole.
    key : str
        Dotted path below the pool or the fleet.
    value : str
        As the scenario has it.
    text : str
        What becomes of it.
    """

    pool: str
    key: str
    value: str
    text: str

    @property
    def path(self) -> str:
        """Dotted path in the scenario."""
        return f"fleet.pools.{self.pool}.{self.key}" if self.pool else f"fleet.{self.key}"


@dataclass(frozen=True, slots=True)
class Shell:
    """A value that the shell fills in, such as ``$NODE_RANK``."""

    text: str


@dataclass(frozen=True, slots=True)
class Argument:
    """A flag with what stands behind it.

    Parameters
    ----------
    flag : str
    values : tuple of str or Shell (n,)
        Empty where it takes nothing.
    """

    flag: str
    values: tuple[str | Shell, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words of a command, as a program gets them; what the shell fills in as written."""
        return (self.flag, *(v.text if isinstance(v, Shell) else v for v in self.values))

    @property
    def shell(self) -> str:
        """The text of a shell command."""
        told = (f'"{v.text}"' if isinstance(v, Shell) else shlex.quote(v) for v in self.values)
        return " ".join((self.flag, *told))


class CommandLine:
    """Flags of one pool, each checked against the table of its release.

    Parameters
    ----------
    table : FlagTable
    card : str
        Engine card whose release it is for.
    pool : str
        Name of the pool.
    """

    def __init__(self, table: FlagTable, card: str, pool: str) -> None:
        self.table, self.card, self.pool = table, card, pool
        self.release = table.releases[card]
        self._place = table.place(card)
        self._arguments: list[Argument] = []
        self._notes: list[Note] = []
        self._said: set[str] = set()

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """All flags so far, in order."""
        return tuple(self._arguments)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What could not be said so far."""
        return tuple(self._notes)

    @property
    def said(self) -> frozenset[str]:
        """Keys of the pool that were put into flags, or noted, or found to need nothing."""
        return frozenset(self._said)

    def put(self, flag: str, value: Any, *keys: str, told: Any = None) -> bool:
        """Say a value by a flag; where the release has no such flag or value, note it.

        Parameters
        ----------
        flag : str
        value : object
            None for a flag that takes nothing; `Shell` for what the shell fills in.
        *keys : str
            Keys of the pool that are said by it.
        told : object, optional
            The value as the scenario has it, for a note; `value` when absent.

        Returns
        -------
        bool
            Whether it was said.

        Raises
        ------
        InvariantError
            If no release has such a flag, or it takes something else: a fault of the code.
        """
        row = self.table.flags.get(flag)
        if row is None:
            raise InvariantError(f"{flag} is in no table of {self.table.name}")
        wrong = self._refused(row, value)
        if wrong:
            for key in keys:
                self.note(key, value if told is None else told, wrong)
            return False
        self._arguments.append(_argument(row, value))
        self._said.update(keys)
        return True

    def note(self, key: str, value: Any, text: str) -> None:
        """Say that a key could not be put into flags."""
        self._notes.append(Note(self.pool, key, plain_text(value), text))
        self._said.add(key)

    def leave(self, *keys: str) -> None:
        """Say that nothing need be said of some keys: the engine does so anyway."""
        self._said.update(keys)

    def _refused(self, row: Flag, value: Any) -> str:
        """Return why the release does not take a flag with a value; empty when it does."""
        name = f"{self.table.name} {self.release}"
        if row.since > self._place:
            return f"{name} has no {row.name}"
        if row.takes == "choice":
            if value not in row.choices:
                raise InvariantError(f"{row.name} {value} is in no table of {self.table.name}")
            if row.choices[value] > self._place:
                return f"{row.name} of {name} does not take {value}"
        return ""


def plain_text(value: Any) -> str:
    """Return a value of a scenario as one line."""
    if hasattr(value, "plain"):
        value = value.plain()
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_text, value))
    return json.dumps(value)


def _argument(row: Flag, value: Any) -> Argument:
    if isinstance(value, Shell):
        return Argument(row.name, (value,))
    if row.takes == "nothing":
        if value is not None:
            raise InvariantError(f"{row.name} takes nothing, not {value!r}")
        return Argument(row.name)
    if row.takes == "switch":
        return Argument(row.name if value else f"--no-{row.name.removeprefix('--')}")
    if row.takes == "words":
        return Argument(row.name, tuple(value))
    return Argument(row.name, (_RENDER[row.takes](row.name, value),))


def _whole(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvariantError(f"{name} takes a whole number, not {value!r}")
    return str(value)


def _count(name: str, value: Any) -> str:
    if isinstance(value, int) and value < 0:
        raise InvariantError(f"{name} takes no negative number, such as {value!r}")
    return _whole(name, value)


def _number(name: str, value: Any) -> str:
    # repr is the shortest text that reads back as the same number
    return repr(int(value)) if float(value).is_integer() else repr(float(value))


def _share(name: str, value: Any) -> str:
    if not 0 <= value <= 1:
        raise InvariantError(f"{name} takes a share, not {value!r}")
    return repr(float(value))


def _gibibytes(name: str, value: Any) -> str:
    return _number(name, value / 2**30)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvariantError(f"{name} takes a text, not {value!r}")
    return value


def _json(name: str, value: Any) -> str:
    return json.dumps(value)


_RENDER = {
    "count": _count,
    "whole": _whole,
    "number": _number,
    "share": _share,
    "gibibytes": _gibibytes,
    "text": _text,
    "choice": _text,
    "json": _json,
}


def as_script(command: Iterable[str], arguments: Iterable[Argument]) -> str:
    """Return a command with one flag a line, as a shell reads it."""
    lines = [shlex.join(command), *(argument.shell for argument in arguments)]
    return " \\\n  ".join(lines)
