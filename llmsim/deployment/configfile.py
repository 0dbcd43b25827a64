"""Flags from the file that ``--config`` of an engine names, as words of its command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmsim.core.errors import Fault, InputError, ScenarioError
from llmsim.scenario.document import read_document


def with_config(words: Sequence[str], source: str) -> list[str]:
    """Return the words of a command with the flags of its configuration files in front.

    vLLM and SGLang take a YAML file of flags without their dashes; what the command itself says
    counts more.

    Parameters
    ----------
    words : sequence of str
        Behind the engine's start.
    source : str
        For messages.

    Raises
    ------
    InputError
        If a file is missing or is no YAML of flags.
    """
    own: list[str] = []
    read: list[str] = []
    at = 0
    while at < len(words):
        name, equals, path = words[at].partition("=")
        if name != "--config":
            own.append(words[at])
            at += 1
            continue
        if not equals:
            at += 1
            path = words[at] if at < len(words) else ""
        at += 1
        read += _flags(path, source)
    return [*read, *own]


def _flags(path: str, source: str) -> list[str]:
    if not path:
        raise InputError(source, [Fault("", "--config", "needs a file")])
    file = Path(path).expanduser()
    if not file.is_file():
        message = f"no such file as '{path}', from where llmsim runs."
        raise InputError(source, [Fault("", "--config", message)])
    try:
        told = read_document(file).data
    except ScenarioError as error:
        raise InputError(source, list(error.faults)) from None
    return [word for key, value in told.items() for word in _words(str(key), value)]


def _words(key: str, value: Any) -> list[str]:
    """Return a flag as both engines make it of a key: true is the flag alone, false none."""
    flag = f"--{key.lstrip('-')}"
    if value is False or value is None:
        return []
    if value is True:
        return [flag]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, str(value)]
