"""What the first line of each trace format looks like, and which one a file has."""

from __future__ import annotations

from pathlib import Path

from llmsim.core.errors import Fault, TraceError, nearest
from llmsim.workload.tracefile import first_lines

BURSTGPT = (
    "Timestamp",
    "Session ID",
    "Elapsed time",
    "Model",
    "Request tokens",
    "Response tokens",
    "Total tokens",
    "Log Type",
)
"""Columns of BurstGPT_3; the older files lack the second and third."""

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Columns of the Azure LLM inference traces of 2023 and 2024."""

AZURE_2025 = ("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens")
"""Columns of the Azure multimodal inference trace of 2025."""

MOONCAKE = ("timestamp", "input_length", "output_length", "hash_ids")
"""Keys of a line of the Mooncake traces."""

_ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "burstgpt": {
        "timestamp": ("timestamp",),
        "model": ("model",),
        "request": ("request tokens",),
        "response": ("response tokens",),
        "log": ("log type",),
        "session": ("session id", "session"),
    },
    "azure": {
        "timestamp": ("timestamp",),
        "context": ("contexttokens",),
        "generated": ("generatedtokens",),
    },
    "azure-2025": {
        "timestamp": ("timestamp",),
        "images": ("numimages",),
        "context": ("contexttokens",),
        "generated": ("generatedtokens",),
    },
}
"""Format -> role -> the spellings that a header may use, in lower case, `_` as space."""

_OPTIONAL = {"session"}

_EXPECTED = {"burstgpt": BURSTGPT, "azure": AZURE, "azure-2025": AZURE_2025}


def match_header(path: Path, layout: str) -> tuple[list[str], dict[str, str]]:
    """Read the header of a CSV trace and say which column plays which role.

    Parameters
    ----------
    path : Path
    layout : str
        ``burstgpt``, ``azure`` or ``azure-2025``.

    Returns
    -------
    header : list of str
        The file's column names in file order.
    names : dict of str to str
        Role -> the file's column name; optional roles that the file lacks are left out.

    Raises
    ------
    TraceError
        If the file is empty, a column is missing or doubled; says which format the header fits.
    """
    lines = first_lines(path, 1)
    if not lines or not lines[0].strip():
        raise TraceError(str(path), [Fault(f"{path}:1", "", "the file has no header line")])
    header = [cell.strip().strip('"') for cell in lines[0].split(",")]
    plain = {_plain(cell): cell for cell in header}
    names = {
        role: plain[spelling]
        for role, spellings in _ROLES[layout].items()
        for spelling in spellings
        if spelling in plain
    }
    missing = [role for role in _ROLES[layout] if role not in names and role not in _OPTIONAL]
    doubled = sorted({cell for cell in header if header.count(cell) > 1})
    if missing or doubled:
        raise TraceError(str(path), _faults(path, layout, lines[0], missing, doubled))
    return header, names


def looks_like(first_line: str) -> str:
    """Return the kind of trace that a first line belongs to, or an empty string."""
    if first_line.lstrip().startswith("{"):
        return "mooncake" if '"hash_ids"' in first_line else ""
    cells = {_plain(cell) for cell in first_line.split(",")}
    kinds = {"burstgpt": "burstgpt", "azure-2025": "azure-2025", "azure": "azure-2023"}
    for layout, kind in kinds.items():
        needed = [spelled for role, spelled in _ROLES[layout].items() if role not in _OPTIONAL]
        if all(cells & set(spellings) for spellings in needed):
            return kind
    return ""


def wrong_format(path: Path, expected: str, first_line: str) -> Fault:
    """Say that a file is of another format than expected, and of which one if known."""
    shown = first_line if len(first_line) <= 100 else f"{first_line[:97]}..."
    other = looks_like(first_line)
    hint = f"This looks like `kind: {other}`." if other else ""
    return Fault(f"{path}:1", "", f"expected {expected}, read {shown!r}.", hint)


def _faults(
    path: Path, layout: str, first_line: str, missing: list[str], doubled: list[str]
) -> list[Fault]:
    where, columns = f"{path}:1", ",".join(_EXPECTED[layout])
    if missing and looks_like(first_line):
        return [wrong_format(path, f"the header {columns}", first_line)]
    header = [cell.strip() for cell in first_line.split(",")]
    faults = []
    for role in missing:
        column = next(name for name in _EXPECTED[layout] if _plain(name) in _ROLES[layout][role])
        hint = nearest(column, header)
        faults.append(
            Fault(where, column, "no such column.", hint if hint.startswith("Did") else "")
        )
    if missing:
        faults.append(wrong_format(path, f"the header {columns}", first_line))
    return faults + [Fault(where, cell, "two columns have this name") for cell in doubled]


def _plain(cell: str) -> str:
    return cell.strip().strip('"').lower().replace("_", " ")
