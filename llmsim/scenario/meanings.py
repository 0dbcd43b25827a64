"""What the parameters of a policy mean, read from the docstrings their author wrote."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import NamedTuple

_UNIT = re.compile(r"\[([^\]]+)\]")
_HEADING = re.compile(r"^(\w[\w, ]*?) : (.+)$")


class Meaning(NamedTuple):
    """What a key means, and in which unit; both may be empty."""

    unit: str
    text: str


def meanings(cls: type) -> dict[str, Meaning]:
    """Return the documentation of a class's parameters, inherited ones included.

    Parameters
    ----------
    cls : type
        Either style is read: a numpydoc section ``Parameters`` in the class docstring
        (``name : type [unit]``), or a docstring under each field, with ``[unit]`` in it.
    """
    found: dict[str, Meaning] = {}
    for each in reversed(cls.__mro__[:-1]):
        found |= _from_section(each.__doc__ or "")
        found |= _from_fields(each)
    return found


def split_unit(text: str) -> Meaning:
    """Take the unit out of a docstring: ``[s] Age of ...`` or ``Age of ... [s].``."""
    match = _UNIT.search(text)
    if match is None:
        return Meaning("", text)
    rest = f"{text[: match.start()].rstrip()} {text[match.end() :].strip()}".strip()
    return Meaning(match.group(1), rest.replace(" .", "."))


def first_line(cls: type) -> str:
    """Return the one line that says what a class is."""
    return (inspect.getdoc(cls) or "").split("\n")[0]


def _from_section(doc: str) -> dict[str, Meaning]:
    """Read the section ``Parameters`` of a numpydoc docstring."""
    lines = inspect.cleandoc(doc).split("\n")
    if "Parameters" not in lines:
        return {}
    found: dict[str, Meaning] = {}
    names: list[str] = []
    for at in range(lines.index("Parameters") + 2, len(lines)):
        line = lines[at]
        if at + 1 < len(lines) and lines[at + 1].startswith("---"):
            break
        heading = _HEADING.match(line)
        if heading is not None:
            names = [name.strip() for name in heading.group(1).split(",")]
            unit = _UNIT.search(heading.group(2))
            found |= {name: Meaning(unit.group(1) if unit else "", "") for name in names}
        elif line.startswith(" "):
            for name in names:
                told = f"{found[name].text} {line.strip()}".strip()
                found[name] = Meaning(found[name].unit, told)
    return found


def _from_fields(cls: type) -> dict[str, Meaning]:
    """Read the docstrings that stand under the fields of a class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}  # a class made in a notebook or at run time has no source: no documentation
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, Meaning] = {}
    for item, after in pairwise(body):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        value = after.value if isinstance(after, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found[item.target.id] = split_unit(" ".join(value.value.split()))
    return found
