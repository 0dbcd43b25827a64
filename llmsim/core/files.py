"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmsim.core.errors import OutputError


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text says.

    Raises
    ------
    ValueError
        If it is no JSON, nested too deeply, or holds a number with thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_target(path: Path) -> None:
    """Raise `OutputError` if no file can be written here; cheap, so call it before long work."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: Is a directory")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: no such folder")
    if not path.exists() and not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: Permission denied")


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """Write a text file that takes its name only when all of it is written.

    Parameters
    ----------
    path : Path
        Replaced if it is there; a link is followed, a device or pipe is written to.
    text : str or iterable of str
        As UTF-8; several parts are written one behind the other.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is as it was.
    """
    parts = (text,) if isinstance(text, str) else text
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            with target.open("w", encoding="utf-8") as file:
                file.writelines(parts)
            return
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}-", dir=target.parent)
        made = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(parts)
            made.chmod(target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            made.replace(target)
        finally:
            made.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
