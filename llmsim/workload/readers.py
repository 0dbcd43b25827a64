"""Trace readers: published trace formats, read as published, in column chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from llmsim.core.registry import Registry
from llmsim.workload.chunk import Workload


class TraceReader(Protocol):
    """One trace format; its fields are its YAML parameters."""

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the workload in the file.

        Parameters
        ----------
        seed : int
            For the draws that a reader makes (imputed lengths); others ignore it.
        near : Path or None
            Folder that a relative path starts from; the scenario file's.

        Raises
        ------
        TraceError
            If the file is missing or is not of this format.
        """
        ...


TRACES: Registry[TraceReader] = Registry("trace")
