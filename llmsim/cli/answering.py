"""The answer of a command as one JSON document on standard output, for scripts.

`--json` changes what standard output gets and nothing else: talk and errors go to standard error
as ever, and the exit code is the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""The option of a command whose answer is a document of its own."""


def print_json(told: object) -> None:
    """Print an answer as JSON.

    Parameters
    ----------
    told : object
        Mappings, sequences, sets, dataclasses (by their fields), paths, NumPy values, and what
        JSON knows. A number that is not finite becomes null: JSON has no other word for it.

    Raises
    ------
    TypeError
        If something else is in it.
    """
    typer.echo(json.dumps(plain(told), indent=1, allow_nan=False))


def plain(told: object) -> Any:
    """Return the same with nothing in it but what JSON knows."""
    if told is None or isinstance(told, str | bool | int):
        return told.value if isinstance(told, Enum) else told
    if isinstance(told, float):
        return float(told) if math.isfinite(told) else None
    if isinstance(told, PurePath):
        return str(told)
    if isinstance(told, Mapping):
        return {str(plain(key)): plain(value) for key, value in told.items()}
    if isinstance(told, Sequence) and not isinstance(told, bytes):
        return [plain(each) for each in told]
    if isinstance(told, AbstractSet):
        return sorted(plain(each) for each in told)
    if is_dataclass(told) and not isinstance(told, type):
        return {part.name: plain(getattr(told, part.name)) for part in fields(told)}
    if hasattr(told, "tolist"):  # arrays and scalars of NumPy, whose import a plain answer spares
        return plain(told.tolist())
    raise TypeError(f"no JSON for {type(told).__name__}")


def records(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[dict[str, object]]:
    """Return the rows of a table as one mapping each."""
    return [dict(zip(head, row, strict=True)) for row in rows]
