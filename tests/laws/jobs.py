"""What the clients of a world ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

Segments = tuple[tuple[int, int], ...]


def short(thing: Any) -> str:
    """Write a dataclass as a call with what differs from its defaults."""
    told = [
        f"{field.name}={getattr(thing, field.name)!r}"
        for field in fields(thing)
        if getattr(thing, field.name) != field.default
    ]
    return f"{type(thing).__name__}({', '.join(told)})"


@dataclass(frozen=True, repr=False)
class Job:
    """One request of a world."""

    arrival_ns: int
    prompt: int
    output: int
    segments: Segments | None = None
    priority: int = 0
    abort_ns: int = -1
    failed: bool = False
    session: int = -1
    images: int = 0

    def __repr__(self) -> str:
        return short(self)


@dataclass(frozen=True, repr=False)
class Turn:
    """A later call of the program that a job begins."""

    own: int
    output: int
    after_ns: int = 0

    def __repr__(self) -> str:
        return short(self)
