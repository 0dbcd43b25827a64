"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    except RecursionError as error:
        raise ValueError(json_fault(error)) from None


def json_fault(error: Exception) -> str:
    """Say what a parser of JSON found: its own words, but for brackets within brackets."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def check_target(path: Path) -> None:
    """Raise `OutputError` if no file can be written here; cheap, so call it before long work."""
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    check_place(path, path.parent)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: no such folder")
    if not path.exists() and not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: Permission denied")


def check_place(path: Path, folder: Path) -> None:
    """Raise `OutputError` if a file stands where `path` needs this folder, there or to be made."""
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), None)
    if there is not None and not there.is_dir():
        raise OutputError(f"cannot write {path}: {there} is not a folder")


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
    with whole_file(path) as made, made.open("w", encoding="utf-8", newline="") as file:
        file.writelines(parts)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a file to write into that takes its name only when all of it is written.

    Parameters
    ----------
    path : Path
        Replaced if it is there; a link is followed, a device or pipe is given as it is.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is as it was.
    """
    target = Path(os.path.realpath(path))
    check_place(path, target.parent if path.is_symlink() else path.parent)
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {path}: no such folder")
    try:
        if target.exists() and not target.is_file():
            yield target
            return
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}-", dir=target.parent)
        os.close(handle)
        made = Path(name)
        try:
            yield made
            made.chmod(target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            made.replace(target)
        finally:
            made.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def csv_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield rows as lines of CSV, each with its end, for `write_whole`."""
    line = io.StringIO()
    writer = csv.writer(line)
    for row in rows:
        writer.writerow(row)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
