"""Texts that name sessions and clients, as numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmsim.workload.csvrows import Text


def session_id(text: str) -> int:
    """Return -1 of no text, else 63 bits of BLAKE2b over it: the same number in every process."""
    if not text:
        return -1
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def session_ids(column: Text, of: Callable[[str], int] = session_id) -> npt.NDArray[np.int64]:
    """Return the session of each row of a text column, by `session_id` unless told otherwise."""
    ids = np.fromiter(map(of, column.values), dtype=np.int64, count=len(column.values))
    return ids[column.codes] if len(ids) else np.empty(0, dtype=np.int64)


def session_number(text: str) -> int:
    """Return a session's id: a whole number as it stands, other text by `session_id`."""
    plain = text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 2**63
    return int(text) if plain else session_id(text)


class Clients:
    """Names of clients in order of the file.

    Parameters
    ----------
    names : sequence of str
        Those that are known beforehand.

    Attributes
    ----------
    names : list of str
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = list(names)
        self._index = {"": -1} | {name: at for at, name in enumerate(names)}

    def code(self, name: str) -> int:
        """Return the index of a client, a new one if it has not been met; -1 of the empty name."""
        code = self._index.get(name)
        if code is None:
            code = self._index[name] = len(self.names)
            self.names.append(name)
        return code

    def codes(self, column: Text) -> npt.NDArray[np.int32]:
        """Return the client of each row of a text column."""
        used, first = np.unique(column.codes, return_index=True)
        index = np.full(len(column.values) + 1, -1, dtype=np.int32)
        for at in np.argsort(first).tolist():
            index[used[at]] = self.code(column.values[used[at]].strip())
        return index[column.codes]
