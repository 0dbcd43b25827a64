"""What answered the queries of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmsim.costmodel.measured.tables import SOURCES


@dataclass
class Usage:
    """What answered the queries so far: the run prints it.

    Parameters
    ----------
    queries : Counter of str
        Shapes priced, by source.
    outside : Counter of str
        Shapes beyond the measured ones, by operator.
    relaxed : set of str
        What was used in place of what was asked for.
    """

    queries: Counter[str]
    outside: Counter[str]
    relaxed: set[str]

    def lines(self) -> tuple[str, ...]:
        """Return the notes that belong beside results."""
        total = sum(self.queries.values())
        if not total:
            return ()
        shares = ", ".join(
            f"{100 * self.queries[word] / total:.0f}% {word}"
            for word in SOURCES
            if self.queries[word]
        )
        notes = [f"kernel times: {shares} of {total} shapes priced"]
        if self.outside:
            beyond = ", ".join(f"{op} {count}" for op, count in sorted(self.outside.items()))
            notes.append(f"beyond the measured shapes, scaled by the roofline: {beyond}")
        return (*notes, *sorted(self.relaxed))
