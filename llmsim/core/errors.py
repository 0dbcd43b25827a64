"""Everything llmsim raises on purpose.

::

    LlmsimError                 something the caller can act on; the CLI exits with 2
    ├── InputError              a file or an argument is wrong; carries every fault found
    │   ├── ScenarioError       a scenario file
    │   ├── CardError           a GPU, link, model or price card
    │   └── TraceError          a workload trace
    ├── RegistryError           a name nobody registered, or one registered twice
    ├── ModelDoesNotFitError    weights or KV do not fit the GPUs; says by how much
    ├── OutputError             the run folder cannot be used
    ├── PolicyError             a policy answered what cannot be
    └── InvariantError          a law of the simulation broke: a bug in a policy or in llmsim
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, where it is, and what was probably meant.

    Parameters
    ----------
    where : str
        ``file:line`` or ``file``; empty when the fault is in a call, not in a file.
    path : str
        Dotted path of the key, such as ``fleet.pools.main.gpu``; may be empty.
    message : str
        What was read and what is wrong with it.
    hint : str
        The nearest right word or the way out; may be empty.
    """

    where: str
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        head = "  ".join(part for part in (self.where, self.path) if part)
        text = f"{head}: {self.message}" if head else self.message
        if self.hint[:1].isupper() and text[-1:] not in _ENDS:
            text += "."
        return f"{text} {self.hint}".rstrip()


_ENDS = (".", ":", ";", ",", "?", "!", "")
"""What ends a message that a hint may follow."""

MOST_TOLD = 40
"""Faults in the text of an error; all of them are in `InputError.faults`."""

LONGEST_TOLD = 1_000
"""Characters of a fault in that text."""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TOLD else f"{text[: LONGEST_TOLD - 3]}..."


class LlmsimError(Exception):
    """Base of everything llmsim raises on purpose."""


class InputError(LlmsimError):
    """Input that is wrong; `faults` holds all that was found, not just the first.

    Parameters
    ----------
    source : str
        Name of the file or call that was read.
    faults : sequence of Fault (n,)
    """

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        plural = "" if len(self.faults) == 1 else "s"
        lines = [f"{len(self.faults)} problem{plural} in {_cut(source)}:"]
        lines += [f"  {_cut(str(fault))}" for fault in self.faults[:MOST_TOLD]]
        if len(self.faults) > MOST_TOLD:
            lines.append(f"  ... and {len(self.faults) - MOST_TOLD:,} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, tuple[Fault, ...]]]:
        # raised in one process and shown by another: exceptions are rebuilt from their text alone
        return type(self), (self.source, self.faults)


class ScenarioError(InputError):
    """A scenario file or an override is wrong."""


class CardError(InputError):
    """A GPU, link, model or price card is wrong or missing."""


class TraceError(InputError):
    """A workload trace cannot be read."""


class RegistryError(LlmsimError):
    """A name that nobody registered, or one registered twice."""


class ModelDoesNotFitError(LlmsimError):
    """The model's weights, or one request's KV, do not fit the GPUs."""


class OutputError(LlmsimError):
    """The output folder cannot be used."""


class PolicyError(LlmsimError):
    """A policy answered what cannot be; says which one, what it was asked and what it answered."""


class InvariantError(LlmsimError):
    """A law of the simulation was broken; never the user's fault."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, or None when nothing is near.

    Notes
    -----
    Who typed the beginning of a long name meant it more than a short one that looks alike. Capital
    letters make no difference.
    """
    words = {each.lower(): each for each in sorted(known)}
    low = word.lower()
    begun = [each for each in words if len(low) > 1 and each.startswith(low)]
    match = difflib.get_close_matches(low, begun or words, n=1, cutoff=0.0 if begun else 0.5)
    return words[match[0]] if match else None


def nearest(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant.

    Parameters
    ----------
    word : str
        What was read.
    known : iterable of str
        The right words.

    Returns
    -------
    str
        ``"Did you mean 'x'? Known: a, b, x."``, or without the question when nothing is near;
        a long list is cut after twelve words.
    """
    words = sorted(known)
    meant = closest(word, words)
    guess = f"Did you mean '{meant}'? " if meant is not None else ""
    more = f", ... ({len(words)} in all)" if len(words) > 12 else ""
    return f"{guess}Known: {', '.join(words[:12])}{more}." if words else guess.strip()
