"""SLO classes that a trace names in a column of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, TraceError, nearest
from llmsim.workload.cells import TEXT, Kind
from llmsim.workload.csvrows import Text


class ClassColumn:
    """The column (CSV) or key (JSON lines) of a trace that names SLO classes.

    Parameters
    ----------
    path : Path
    name : str or None
        As the trace file has it; None where it names none.
    header : sequence of str, optional
        Columns of a CSV file; a JSON line may lack the key.
    taken : sequence of str
        Columns that hold numbers.

    Attributes
    ----------
    name : str or None
    names : list of str
        Classes met so far, in order of the file.

    Raises
    ------
    TraceError
        If a CSV file has no such column, or one of numbers.
    """

    def __init__(
        self,
        path: Path,
        name: str | None,
        header: Sequence[str] | None = None,
        taken: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.names: list[str] = []
        self._index: dict[str, int] = {"": -1}
        if name is None or header is None:
            return
        where = f"{path}:1"
        if name not in header:
            fault = Fault(where, name, "no such column (slo_class_column).", nearest(name, header))
            raise TraceError(str(path), [fault])
        if name in taken:
            fault = Fault(where, name, "holds numbers or times, not names of SLO classes")
            raise TraceError(str(path), [fault])

    @property
    def kinds(self) -> dict[str, Kind]:
        """How a CSV reader reads the column; empty where there is none."""
        return {} if self.name is None else {self.name: TEXT}

    def code(self, name: str) -> int:
        """Return the index of a class, a new one if it has not been met; -1 of the empty name."""
        code = self._index.get(name)
        if code is None:
            code = self._index[name] = len(self.names)
            self.names.append(name)
        return code

    def codes(self, texts: Mapping[str, Text]) -> npt.NDArray[np.int16] | None:
        """Return the classes of the rows of a block, -1 where a cell is empty; None if not asked.

        Parameters
        ----------
        texts : mapping of str to Text
            Text columns of the block.
        """
        if self.name is None:
            return None
        text = texts[self.name]
        used, first = np.unique(text.codes, return_index=True)
        index = np.full(len(text.values) + 1, -1, dtype=np.int16)
        for at in np.argsort(first).tolist():
            index[used[at]] = self.code(text.values[used[at]].strip())
        return index[text.codes]
