"""Which column of a table is the arrival, which the prompt: by a map, or by usual names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, TraceError, nearest
from llmsim.workload.cells import UNITS_NS, read_stamp

USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "arrival": (
        "arrival", "arrival_s", "arrival_ms", "arrival_us", "arrival_ns", "arrived_at",
        "arrival_time", "timestamp", "timestamp_s", "timestamp_ms", "time", "time_s", "t_s",
        "start_time", "starttime", "created_at", "request_time", "datetime", "ts",
    ),
    "prompt_tokens": (
        "prompt_tokens", "input_tokens", "input_length", "input_len", "prompt_len",
        "contexttokens", "context_tokens", "num_prefill_tokens", "request tokens",
        "request_tokens",
    ),
    "output_tokens": (
        "output_tokens", "completion_tokens", "output_length", "output_len", "generated_tokens",
        "generatedtokens", "num_decode_tokens", "response tokens", "response_tokens",
    ),
    "session": ("session", "session_id", "session id", "conversation_id"),
    "client": ("client", "client_id", "tenant", "user"),
    "failed": ("failed",),
}  # fmt: skip
"""Role -> the names it is looked for under, in lower case."""

NEEDED: Final = ("prompt_tokens", "output_tokens")

_SIDES: Final = {
    "prompt_tokens": {"in", "input", "inputs", "prompt", "context", "prefill", "request"},
    "output_tokens": {
        "out", "output", "outputs", "completion", "generated", "generation", "response", "decode",
    },
}  # fmt: skip
_LENGTHS: Final = {"token", "tokens", "tok", "toks", "len", "length", "size", "count"}
_TIMES: Final = {"time", "timestamp", "datetime", "date", "ts", "created", "started", "when"}
_DURATIONS: Final = {
    "duration", "elapsed", "latency", "end", "ended", "finish", "finished", "first", "last",
    "total", "processing", "response", "zone", "between", "per", "to",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Roles:
    """The columns of one table.

    Parameters
    ----------
    prompt_tokens, output_tokens : str
    arrival, session, client, failed : str or None
    unit : str
        ``s``, ``ms``, ``us``, ``ns`` or ``stamp``; of no meaning without arrivals.
    """

    prompt_tokens: str
    output_tokens: str
    arrival: str | None = None
    session: str | None = None
    client: str | None = None
    failed: str | None = None
    unit: str = "s"

    @property
    def numbers(self) -> list[str]:
        """Columns that hold numbers or times."""
        found = (self.prompt_tokens, self.output_tokens, self.arrival, self.failed)
        return [name for name in found if name is not None]

    @classmethod
    def find(
        cls,
        path: Path,
        told: Mapping[str, str] | None,
        unit: str | None,
        names: Sequence[str],
        first: Mapping[str, Any],
        *,
        paced: bool = False,
    ) -> Roles:
        """Return the columns of a table.

        Parameters
        ----------
        path : Path
        told : mapping of str to str or None
            Role -> column.
        unit : str or None
            Of arrivals.
        names : sequence of str
            The table's columns.
        first : mapping of str to Any
            Its first row.
        paced : bool
            Whether a table without arrivals has been given a rate.

        Raises
        ------
        TraceError
            With every role or column that is missing, doubled or unknown.
        """
        where, told = f"{path}:1", dict(told or {})
        doubled = sorted({name for name in names if list(names).count(name) > 1})
        faults = [Fault(where, name, "two columns have this name") for name in doubled]
        faults += [
            Fault("", f"columns.{role}", "no such role.", nearest(role, USUAL))
            for role in told
            if role not in USUAL
        ]
        faults += [
            Fault(where, name, f"no such column (columns.{role}).", nearest(name, names))
            for role, name in told.items()
            if name not in names
        ]
        plain = {name.strip().lower(): name for name in reversed(names)}
        for role, usual in USUAL.items():
            match = next((plain[name] for name in usual if name in plain), None)
            if match is None and role == "arrival":
                match = _with_unit(usual, plain)
            if role not in told and match is not None:
                told[role] = match
        # Without arrivals all would come at once: not to be had by forgetting to name a column.
        timed = "arrival" in told or paced or not guess("arrival", names)
        asked = [role for role in NEEDED if role not in told] + ([] if timed else ["arrival"])
        faults += _asked(asked, told, names, where)
        if "arrival" in told and told["arrival"] in names:
            unit = unit or _unit_of(told["arrival"], first.get(told["arrival"]))
            if unit is None:
                message = f"in which unit is '{told['arrival']}'? Say s, ms, us, ns or stamp."
                likely, day = _since_1970(first.get(told["arrival"]))
                hint = f"On the command line: --set traffic.trace.time_unit={likely}."
                if day:
                    hint = f"{first[told['arrival']]} {likely} after 1970 began is {day}. {hint}"
                faults.append(Fault(where, "time_unit", message, hint))
        if faults:
            raise TraceError(str(path), faults)
        return cls(**told, unit=unit or "s")


def guess(role: str, names: Sequence[str]) -> str:
    """Return the column that looks like an arrival, a prompt or an output; empty where none does.

    For messages, and to tell a table from other files: which column is read is not to be guessed.
    """
    for name in names:
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
        if role == "arrival":
            if words & _TIMES and not words & _DURATIONS:
                return name
        elif words & _SIDES[role] and (words & _LENGTHS or len(words) == 1):
            return name
    return ""


def _asked(
    asked: Sequence[str], told: Mapping[str, str], names: Sequence[str], where: str
) -> list[Fault]:
    """Ask for the columns of some roles, and say how to answer."""
    faults = [
        Fault(where, f"columns.{role}", f"which column holds it? There are: {_few(names)}.")
        for role in asked[:1]
    ]
    faults += [Fault(where, f"columns.{role}", "and which holds this?") for role in asked[1:]]
    if not faults:
        return []
    found = {role: told.get(role) or guess(role, names) or "..." for role in ("arrival", *NEEDED)}
    found |= {role: name for role, name in told.items() if role in USUAL}
    pairs = ", ".join(f"{role}: {_quoted(name)}" for role, name in found.items())
    hint = (
        f"Perhaps: --set 'traffic.trace.columns={{{pairs}}}', or the same in the scenario; "
        "`llmsim trace` takes it, too."
    )
    return [*faults[:-1], replace(faults[-1], hint=hint)]


def _quoted(name: str) -> str:
    return (
        name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ ./()-]*|\.\.\.", name) else json.dumps(name)
    )


def _unit_of(name: str, value: Any) -> str | None:
    ending = name.rsplit("_", 1)[-1].lower() if "_" in name else ""
    if ending in UNITS_NS:
        return ending
    if value is not None and not isinstance(value, int | float | str):
        return "stamp"  # a date of Parquet
    try:
        read_stamp(str(value).strip())
    except ValueError:
        return None
    return "stamp"


def _with_unit(usual: Sequence[str], plain: Mapping[str, str]) -> str | None:
    """Return a column that a usual name and a unit call, such as ``ts_us``."""
    found = (plain.get(f"{name}_{unit}") for name in usual for unit in UNITS_NS)
    return next((name for name in found if name is not None), None)


_RECENT_S: Final = (1.4e9, 2.2e9)
"""From 2014 to 2039: what clocks have said while there were such servers, and say for long."""


def _since_1970(value: Any) -> tuple[str, str]:
    """Return the unit in which a number is a time of these years, and the day; else s and none."""
    try:
        number = float(str(value).strip())
    except ValueError:
        return "s", ""
    low, high = _RECENT_S
    for unit, unit_ns in UNITS_NS.items():
        at_s = number * unit_ns / UNITS_NS["s"]
        if low <= at_s <= high:
            return unit, f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d}"
    return "s", ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
