"""Trace files on disk: finding, opening and cutting them into blocks of whole lines."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from llmsim.core.errors import Fault, TraceError, nearest
from llmsim.core.paths import data_roots, find_data
from llmsim.core.units import MIB

BLOCK_BYTES = 2 * 1024 * 1024
"""Bytes parsed at once [bytes]: about 20,000 rows of BurstGPT; larger ones gain nothing."""

LONGEST_LINE_BYTES = 16 * 1024 * 1024
"""A line longer than this means that the file is no text trace [bytes]."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""First bytes of a Zstandard frame (RFC 8878, section 3.1.1)."""
_ZSTD_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""Those of a frame to be passed over, such as pzstd begins with (section 3.1.2)."""
_BOM = b"\xef\xbb\xbf"
_FOREIGN = (
    (b"PK\x03\x04", "is a zip archive, as Excel's workbooks are, and no trace.", "Save it as CSV."),
    (b"\xfd7zXZ\x00", "is packed by xz, which is not read.", "Unpack it: xz -d."),
    (b"BZh", "is packed by bzip2, which is not read.", "Unpack it: bzip2 -d."),
    (b"\x04\x22\x4d\x18", "is packed by lz4, which is not read.", "Unpack it: lz4 -d."),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive, and no trace.", "Unpack it."),
    (b"ARROW1", "is an Arrow (Feather) file, which is not read.", "Save it as Parquet."),
    (b"\xff\xfe", "is UTF-16, which is not read.", "Save it as UTF-8."),
    (b"\xfe\xff", "is UTF-16, which is not read.", "Save it as UTF-8."),
)
"""First bytes of files that people have and that are no traces, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive whole lines of a file.

    Parameters
    ----------
    first_line : int
        Number of the first line, counted from 1.
    data : bytes
    """

    first_line: int
    data: bytes


def find_trace(path: str, near: Path | None) -> Path:
    """Return the file that a trace's `path` means.

    Parameters
    ----------
    path : str
        Absolute, or relative to `near`; a name without a slash may also be one of the shipped
        traces.
    near : Path or None
        Folder of the scenario file; None when called from Python, where a relative path starts
        from the working directory as everywhere in Python.

    Raises
    ------
    TraceError
        If there is no such file; names the nearest file.
    """
    wanted = Path(path).expanduser()
    candidate = wanted if near is None else near / wanted
    if candidate.is_file():
        return candidate
    shipped = find_data("traces", path) if "/" not in path else None
    if shipped is not None and shipped.is_file():
        return shipped
    known = {entry.name for entry in _list(candidate.parent)} - {wanted.name}
    if "/" not in path:
        known |= {entry.name for root in data_roots() for entry in _list(root / "traces")}
    missing = "a link to nothing" if candidate.is_symlink() else "no such file"
    what = "is a folder" if candidate.is_dir() else missing
    raise TraceError(path, [Fault(str(candidate), "path", what, nearest(wanted.name, known))])


def _list(folder: Path) -> list[Path]:
    """Return the trace-like files of a folder."""
    if not folder.is_dir():
        return []
    plain = (".csv", ".jsonl", ".json", ".parquet")
    endings = tuple(kind + packed for kind in plain for packed in ("", ".gz", ".zst"))
    return [entry for entry in folder.iterdir() if entry.name.endswith(endings)]


def open_trace(path: Path) -> BinaryIO:
    """Open a plain, gzipped or zstd file for reading; told apart by content, not by name.

    Raises
    ------
    TraceError
        If the file cannot be read, or is packed or written in a way that is not.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        for begins, message, hint in _FOREIGN:
            if magic.startswith(begins):
                raise TraceError(str(path), [Fault(str(path), "", message, hint)])
        if magic.startswith(_ZSTD_MAGIC) or _ZSTD_SKIPPED.match(magic):
            return io.BufferedReader(_Unzstd(path))
        zipped = magic.startswith(_GZIP_MAGIC)
        return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")
    except OSError as error:
        raise TraceError(str(path), [Fault(str(path), "", f"cannot be read: {error}")]) from error


class _Unzstd(io.RawIOBase):
    """A zstd file, unpacked by pyarrow: Python has no zstd before 3.14."""

    def __init__(self, path: Path) -> None:
        from pyarrow import CompressedInputStream, OSFile

        self._packed = OSFile(str(path))
        self._plain = CompressedInputStream(self._packed, "zstd")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer and return the number of bytes, 0 at the end."""
        # what is asked for is set aside first, and stays so where the file turns out to be damaged
        found: bytes = self._plain.read(min(len(buffer), MIB))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._plain.close()
            self._packed.close()
        super().close()


def read_some(path: Path, most_bytes: int) -> bytes:
    """Return the beginning of a file, unpacked, or all of it if it is not longer.

    Raises
    ------
    TraceError
        If the file cannot be read or unpacked.
    """
    with open_trace(path) as file:
        try:
            return file.read(most_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise TraceError(str(path), [_broken_gzip(path, 1, error)]) from error


def first_lines(path: Path, count: int) -> list[str]:
    """Return the first lines of a file without their ends, fewer if it is shorter.

    Raises
    ------
    TraceError
        If the file cannot be read or unpacked.
    """
    with open_trace(path) as file:
        try:
            lines = [file.readline(LONGEST_LINE_BYTES) for _ in range(count)]
        except (OSError, EOFError, zlib.error) as error:
            raise TraceError(str(path), [_broken_gzip(path, 1, error)]) from error
    lines[0] = lines[0].removeprefix(_BOM)
    return [line.decode(errors="replace").rstrip("\r\n") for line in lines if line]


def line_blocks(path: Path, skip_lines: int = 0) -> Iterator[Block]:
    """Yield a file in blocks of whole lines, in constant memory.

    Parameters
    ----------
    path : Path
    skip_lines : int
        Lines at the top to leave out, such as a header.

    Yields
    ------
    Block

    Raises
    ------
    TraceError
        If the file cannot be read, is a damaged gzip file, or is no text.
    """
    line, rest = 1, b""
    with open_trace(path) as file:
        while True:
            try:
                read = file.read(BLOCK_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise TraceError(str(path), [_broken_gzip(path, line, error)]) from error
            data = rest + read
            end = data.rfind(b"\n") + 1 if read else len(data)
            data, rest = data[:end], data[end:]
            if len(rest) > LONGEST_LINE_BYTES:
                where = f"{path}:{line + data.count(10)}"
                message = f"a line of more than {LONGEST_LINE_BYTES} bytes: not a text trace"
                raise TraceError(str(path), [Fault(where, "", message)])
            lines = newlines(data) + (not data.endswith(b"\n") and bool(data))
            if skip_lines and data:
                cut = min(skip_lines, lines)
                data = data.split(b"\n", cut)[-1] if cut < lines else b""
                skip_lines, line, lines = skip_lines - cut, line + cut, lines - cut
            if data:
                yield Block(line, data)
            line += lines
            if not read:
                return


def newlines(data: bytes) -> int:
    """Return how many lines end in it; over short lines faster than `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def _broken_gzip(path: Path, line: int, error: Exception) -> Fault:
    return Fault(f"{path}:{line}", "", f"the file is cut off or damaged: {error}", "Fetch it anew.")
