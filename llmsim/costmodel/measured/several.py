"""One profile for most operators, and others for single ones: tables of several releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmsim.costmodel.measured.profile import Profile


@dataclass(frozen=True)
class Profiles:
    """Which profile prices which operator.

    Parameters
    ----------
    main : Profile
    others : mapping of str to Profile
        By operator; all others are the main one's.
    """

    main: Profile
    others: Mapping[str, Profile] = field(default_factory=dict)

    def of(self, op: str) -> Profile:
        """Return the profile that prices an operator."""
        return self.others.get(op, self.main)

    def lines(self) -> tuple[str, ...]:
        """Return the notes of all of them, each with its name."""
        each = (self.main, *self.others.values())
        return tuple(f"{one.name}: {line}" for one in each for line in one.usage.lines())
