"""Which column of a table is the arrival, which the prompt: by a map, or by usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import Fault, TraceError, nearest
from llmsim.workload.cells import UNITS_NS, read_stamp

USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "arrival": (
        "arrival", "arrival_s", "arrival_ms", "arrival_us", "arrival_ns", "arrived_at",
        "arrival_time", "timestamp", "timestamp_s", "timestamp_ms", "time", "time_s", "t_s",
        "start_time",
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
            if role not in told and match is not None:
                told[role] = match
        faults += [
            Fault(where, f"columns.{role}", f"which column holds it? There are: {_few(names)}")
            for role in NEEDED
            if role not in told
        ]
        if "arrival" in told and told["arrival"] in names:
            unit = unit or _unit_of(told["arrival"], first.get(told["arrival"]))
            if unit is None:
                message = f"in which unit is '{told['arrival']}'? Say s, ms, us, ns or stamp."
                faults.append(Fault(where, "time_unit", message))
        if faults:
            raise TraceError(str(path), faults)
        return cls(**told, unit=unit or "s")


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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
