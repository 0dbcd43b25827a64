"""How one cell of a trace is read: tokens, times by unit, dates, flags, text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmsim.core.units import NS_PER_S
from llmsim.workload.rows import MOST_TOKENS


@dataclass(frozen=True, slots=True)
class Kind:
    """How a column is read.

    Parameters
    ----------
    arrow : str
        Name of the pyarrow type of the fast path.
    parse : callable
        Reads one cell exactly; raises ValueError saying what was expected.
    unit_ns : int [ns]
        Of times as numbers, what 1 stands for; 0 of what is no such time.
    """

    arrow: str
    parse: Callable[[str], Any]
    unit_ns: int = 0


UNITS_NS = {"s": NS_PER_S, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""What a number of each unit of time stands for [ns]."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
"""A finite number as text."""
_WHOLE = re.compile(r"-?\d+")
_TOKENS = re.compile(r"-?\d+(\.0*)?")
"""Whole, also as tables write whole numbers of a column that had gaps: 100.0."""
_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)
LATEST_S = 9.2e9
"""Largest time that fits into int64 nanoseconds [s]."""


def _tokens(cell: str) -> int:
    if not _TOKENS.fullmatch(cell) or not cell.isascii():
        raise ValueError("expected a whole number of tokens")
    cell = cell.partition(".")[0]
    if int(cell) < 0:
        raise ValueError("expected no less than 0 tokens")
    if int(cell) > MOST_TOKENS:
        raise ValueError(f"expected at most {MOST_TOKENS} tokens")
    return int(cell)


def _time(unit: str) -> Callable[[str], int]:
    unit_ns = UNITS_NS[unit]
    words = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "whole nanoseconds"}

    def parse(cell: str) -> int:
        pattern = NUMBER if unit_ns > 1 else _WHOLE
        if not pattern.fullmatch(cell) or not cell.isascii():
            raise ValueError(f"expected a time in {words[unit]}")
        if not 0 <= float(cell) < LATEST_S * (NS_PER_S // unit_ns):
            raise ValueError("expected a time of at least 0 s and below 292 years")
        return int(cell) if unit_ns == 1 else whole_ns(float(cell), unit_ns)

    return parse


def whole_ns(value: float, unit_ns: int) -> int:
    """Return a time as whole nanoseconds.

    Parameters
    ----------
    value : float
        At least 0.
    unit_ns : int [ns]
        What 1 stands for.
    """
    return math.floor(value) * unit_ns + round(math.modf(value)[0] * unit_ns)


def _flag(cell: str) -> int:
    word = cell.lower()
    if word not in ("true", "false", "0", "1"):
        raise ValueError("expected true, false, 1 or 0")
    return int(word in ("true", "1"))


def read_stamp(cell: str) -> int:
    """Return a date and time as nanoseconds since 1970 [ns]; without a zone it is UTC.

    Raises
    ------
    ValueError
        If it is none, or not from 1970 to 2261.
    """
    match = _STAMP.fullmatch(cell)
    if not match:
        raise ValueError("expected a date and time like 2023-11-16 18:15:46.6805900")
    day, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{day}T{clock}{zone or '+00:00'}").astimezone(UTC)
    whole = moment - datetime(1970, 1, 1, tzinfo=UTC)
    seconds = whole.days * 86_400 + whole.seconds
    if not 0 <= seconds < LATEST_S:
        raise ValueError("expected a date from 1970 to 2261")
    return seconds * NS_PER_S + int((fraction or "0").ljust(9, "0"))


TOKENS = Kind("int64", _tokens)
"""Whole tokens [tokens]."""

TIMES = {
    unit: Kind("float64" if unit_ns > 1 else "int64", _time(unit), unit_ns)
    for unit, unit_ns in UNITS_NS.items()
}
"""Times as numbers, by unit, read into nanoseconds [ns]."""

SECONDS = TIMES["s"]
"""Seconds since the trace began, read into nanoseconds [ns]."""

FLAG = Kind("bool", _flag)
"""Yes or no, read into 1 or 0."""

STAMP = Kind("timestamp[ns]", read_stamp)
"""Date and time without a zone, read into nanoseconds since 1970 [ns]."""

STAMP_UTC = Kind("timestamp[ns, UTC]", read_stamp)
"""Date and time with a zone, read into nanoseconds since 1970 [ns]."""

TEXT = Kind("text", str)
"""Text, kept as codes."""
