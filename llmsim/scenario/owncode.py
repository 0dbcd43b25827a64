"""Code that a scenario runs and that does not come with llmsim: of packages, scripts, notebooks."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llmsim.scenario.component import SEAMS, Component, registry

OwnKind = tuple[str, str, type]
"""Seam, name and class."""


def own_kinds() -> tuple[OwnKind, ...]:
    """Return what was registered in this process and does not come with llmsim."""
    found = []
    for seam in SEAMS:
        for name, cls in registry(seam).registered().items():
            if _is_own(cls):
                found.append((seam, name, cls))
    return tuple(found)


def own_code(scenario: BaseModel) -> dict[str, str]:
    """Return a hash of the code of every policy, trace or price that does not come with llmsim.

    Parameters
    ----------
    scenario : Scenario

    Returns
    -------
    dict of str to str
        By seam and kind; empty text where the code cannot be read.
    """
    return {
        f"{part.seam} {part.kind}": _hash_of(part.cls)
        for part in _components(scenario)
        if _is_own(part.cls)
    }


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] != "llmsim"


def _components(value: Any) -> Iterator[Component]:
    if isinstance(value, Component):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _components(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _components(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _components(each)


@lru_cache(maxsize=64)  # of the class, so that it is the code that was loaded, not a later edit
def _hash_of(cls: type) -> str:
    """Return a hash of the package, the file or the cell in which a class was written."""
    name = cls.__module__
    top = sys.modules.get(name.partition(".")[0])
    file = getattr(sys.modules.get(name), "__file__", None)
    files = [path for folder in getattr(top, "__path__", ()) for path in Path(folder).rglob("*.py")]
    try:
        if files or file:
            texts = [path.read_bytes() for path in sorted(files) or [Path(str(file))]]
        else:
            texts = [inspect.getsource(cls).encode()]
    except (OSError, TypeError):
        return ""
    digest = hashlib.blake2b(cls.__qualname__.encode(), digest_size=16)
    for text in texts:
        digest.update(text)
    return digest.hexdigest()
