"""What a profile has answered before, kept between runs: a start then reads no rows at all.

One small file per query below ``$XDG_CACHE_HOME/llmsim/kernels`` (or ``~/.cache``), named by a
digest of all that the answer depends on: the rows and `meta.json`, the device, the query, and the
sources that answer it. A file is a line of JSON and the numbers behind it; one that is damaged is
worked out again. The folder may be deleted at any time, and need not be writable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from llmsim.core.paths import cache_folder
from llmsim.costmodel.measured.means import Floats


@dataclass(frozen=True, slots=True)
class Answer:
    """Numbers, and what must be said beside them.

    Parameters
    ----------
    values : ndarray of float
    note : str
    """

    values: Floats
    note: str = ""


class Memory:
    """Answers of one profile on one device.

    Parameters
    ----------
    identity : str
        Of rows, meta and device: see `identity_of`.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._folder = cache_folder() / "kernels"

    def path(self, *question: object) -> Path:
        """Return the file of a question.

        Parameters
        ----------
        *question : ndarray or anything whose `repr` says it all
        """
        digest = hashlib.sha256(f"{self._identity}\n{_sources()}".encode())
        for part in question:
            if isinstance(part, np.ndarray):
                digest.update(f"{part.dtype}{part.shape}".encode())
                digest.update(np.ascontiguousarray(part).tobytes())
            else:
                digest.update(repr(part).encode())
            digest.update(b"\x1f")
        name = digest.hexdigest()
        return self._folder / name[:2] / name[2:]

    @staticmethod
    def recall(path: Path) -> Answer | None:
        """Return the answer in a file; None without one, or where it is damaged."""
        try:
            head, _, body = path.read_bytes().partition(b"\n")
            told = json.loads(head)
            values = np.frombuffer(body, dtype=np.float64).reshape(told["shape"])
            return Answer(values.copy(), str(told["note"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def keep(path: Path, answer: Answer) -> None:
        """Write an answer, whole or not at all; nothing where the folder is not writable."""
        head = json.dumps({"shape": answer.values.shape, "note": answer.note}).encode()
        body = np.ascontiguousarray(answer.values, dtype=np.float64).tobytes()
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(head + b"\n" + body)
            os.replace(name, path)


def identity_of(files: Iterable[Path], device: object) -> str:
    """Return what tells one profile on one device from all others.

    Parameters
    ----------
    files : iterable of Path
        Rows and meta.
    device : object
        Its `repr` holds all its numbers.
    """
    digest = hashlib.sha256(repr(device).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _sources() -> str:
    """Return a digest of the code that answers: another version answers anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
