"""Texts that name sessions and clients, as numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from llmsim.workload.csvrows import Text


def session_id(text: str) -> int:
    """Return -1 of no text, else 63 bits of BLAKE2b over it: the same number in every process."""
    if not text:
        return -1
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def session_number(text: str) -> int:
    """Return a session's id: a whole number as it stands, other text by `session_id`."""
    return int(text) if _whole(text) else session_id(text)


def session_ids(column: Text, numbered: bool = False) -> npt.NDArray[np.int64]:
    """Return the session of each row of a text column.

    Parameters
    ----------
    column : Text
    numbered : bool
        By `session_number`; else by `session_id`.
    """
    values = column.values
    if not values:
        return np.empty(0, dtype=np.int64)
    if numbered and values[-1].isdigit():  # as the rest, most likely: few need a hash
        ids = np.fromiter(map(session_number, values), dtype=np.int64, count=len(values))
        return ids[column.codes]
    encoded = list(map(str.encode, values))
    ids = (np.frombuffer(_digests(encoded), ">u8") >> 1).astype(np.int64)
    if "" in values or any(map(bytes.isdigit, encoded)):  # seldom: passes in C find out
        for at, text in enumerate(values):
            if not text or text.isdigit():
                ids[at] = session_number(text) if numbered else session_id(text)
    return ids[column.codes]


def _digests(texts: list[bytes]) -> bytes:
    """Return 8 bytes of BLAKE2b over each.

    Calls per text are most of what a column of names costs; a copy of a hash that is set up spares
    a third of one.
    """
    empty = hashlib.blake2b(digest_size=8)
    found = []
    for text in texts:
        one = empty.copy()
        one.update(text)
        found.append(one.digest())
    return b"".join(found)


def _whole(text: str) -> bool:
    return text.isdigit() and text.isascii() and len(text) <= 19 and int(text) < 2**63


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
