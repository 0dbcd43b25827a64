"""A workload around another one, which changes some columns of its rows."""

from __future__ import annotations

from llmsim.workload.chunk import ClosedLoop, Workload
from llmsim.workload.programs import Programs


class WrappedWorkload:
    """Says of itself what the workload inside says.

    Parameters
    ----------
    inner : Workload
        As `llmsim.workload.Workload`; who inherits yields its chunks, changed.
    """

    def __init__(self, inner: Workload) -> None:
        self._inner = inner
        self.total: int | None = inner.total
        self.closed_loop: ClosedLoop | None = inner.closed_loop
        self.programs: Programs | None = inner.programs
        self._read_through()

    def _read_through(self) -> None:
        """Take over what the workload inside has met so far: a trace learns while it is read."""
        self.clients: tuple[str, ...] = self._inner.clients
        self.slo_classes: tuple[str, ...] = self._inner.slo_classes
        self.skipped_rows: int = self._inner.skipped_rows
