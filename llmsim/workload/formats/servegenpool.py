"""Reads a ServeGen pool: what each client of a service sent, window by window, as statistics."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, TraceError
from llmsim.core.files import json_fault
from llmsim.core.units import MIB
from llmsim.workload.cells import LATEST_S
from llmsim.workload.csvrows import cells_of
from llmsim.workload.replay import MOST_FAULTS
from llmsim.workload.rows import MOST_TOKENS
from llmsim.workload.tracefile import first_lines, line_blocks, read_some

WINDOW_S: Final = 600.0
"""Length of a window of a rate [s] (ServeGen, NSDI 2026, section 4)."""

QUANTILES: Final = (0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99, 0.999, 1.0)
"""Levels of a table of lengths, in the order of its columns p1 ... p100."""

LEVELS: Final = (*(n / 50 for n in range(50)), 0.985, 0.99, 0.993, 0.996, 0.998, 0.999, 0.9995, 1.0)
"""Levels that a published histogram is kept at: a finer one would need gigabytes for a pool."""

LARGEST_BYTES: Final = 64 * MIB
"""Of the histograms of one client [bytes]; a larger file is cut and then no JSON."""

MOST_RPS: Final = 1e5
"""Of one client [requests/s]: a window of more would not fit into memory. The published pools have
at most 2,894."""

MOST_IMAGES: Final = 10_000
"""Of one request: each is drawn by itself. The published pools have at most 49."""

_TOO_DEEP: Final = (RecursionError, MemoryError)
"""What Python's parsers raise at brackets within brackets, the second with memory to spare."""

_ARRIVALS: Final = ("client", "t_start_s", "rate_rps", "cv", "dist", "shape", "scale")
_LENGTHS: Final = ("client", "window_start_s", "field", "mean", "std")


@dataclass(frozen=True, slots=True)
class Window:
    """What one client sends in one window.

    Parameters
    ----------
    client : int
    rate_rps : float [requests/s]
    family : str
        ``Gamma``, ``Weibull``, or empty of a Poisson process.
    shape : float
    """

    client: int
    rate_rps: float
    family: str
    shape: float


@dataclass(slots=True)
class Lengths:
    """Quantiles of one field, by client and window.

    Parameters
    ----------
    levels : ndarray of float (m,)
    rows : list of ndarray of float (m,)
    bends : list of float
        Between its last two levels a row rises as this power of the way: 1 is a straight line.
    by_client : dict of int to list of (float [s], int)
        Starts of windows with their row, ascending.
    """

    levels: npt.NDArray[np.float64]
    rows: list[npt.NDArray[np.float64]] = field(default_factory=list)
    bends: list[float] = field(default_factory=list)
    by_client: dict[int, list[tuple[float, int]]] = field(default_factory=dict)

    def add(
        self, client: int, start_s: float, values: npt.NDArray[np.float64], bend: float = 1.0
    ) -> None:
        """Keep the quantiles of a window."""
        self.by_client.setdefault(client, []).append((start_s, len(self.rows)))
        self.rows.append(values)
        self.bends.append(bend)


@dataclass(slots=True)
class Pool:
    """The statistics of a pool.

    Parameters
    ----------
    path : Path
    clients : list of str
    windows : dict of float to list of Window
        By start [s].
    lengths : dict of str to Lengths
        By field, such as ``input_tokens``.
    """

    path: Path
    clients: list[str] = field(default_factory=list)
    windows: dict[float, list[Window]] = field(default_factory=dict)
    lengths: dict[str, Lengths] = field(default_factory=dict)

    def field_of(self, name: str, levels: Sequence[float]) -> Lengths:
        """Return the quantiles of a field, empty ones if it is new."""
        return self.lengths.setdefault(name, Lengths(np.array(levels)))


def read_pool(path: Path) -> Pool:
    """Read a pool.

    Parameters
    ----------
    path : Path
        A folder of the published files (``chunk-*-trace.csv``, ``chunk-*-dataset.json``), or
        what two tables ``<path>_arrivals.csv`` and ``<path>_lengths.csv`` have in front of that.

    Raises
    ------
    TraceError
        If there is no such pool, or a row of it is damaged; up to 20 with their lines.
    """
    pool = _published(path) if path.is_dir() else _tables(path)
    for needed in ("input_tokens", "text_tokens"):
        if needed in pool.lengths and "output_tokens" in pool.lengths:
            break
    else:
        fault = Fault(str(path), "", "has no lengths input_tokens (or text_tokens), output_tokens")
        raise TraceError(str(path), [fault])
    for each in pool.lengths.values():
        for found in each.by_client.values():
            found.sort()
    return pool


def _published(path: Path) -> Pool:
    pool = Pool(path)
    traces = sorted(path.glob("chunk-*-trace.csv*"), key=lambda each: (len(each.name), each.name))
    if not traces:
        fault = Fault(str(path), "path", "a folder without chunk-*-trace.csv: no ServeGen pool")
        raise TraceError(str(path), [fault])
    for trace in traces:
        stem = trace.name.split("-trace.csv")[0]
        client = len(pool.clients)
        pool.clients.append(stem.removeprefix("chunk-"))
        for where, cells in _rows(trace, 0):
            _window(pool, where, client, cells)
        data = path / f"{stem}-dataset.json"
        if data.is_file():
            _histograms(pool, data, client)
    return pool


def _window(pool: Pool, where: str, client: int, cells: Sequence[str]) -> None:
    if len(cells) < 2 or (len(cells) == 4 and cells[3].strip()):
        message = f"expected a start, a rate and a law with its shape, read {len(cells)} columns"
        raise TraceError(where, [Fault(where, "", message)])
    start_s, rate = _start(where, cells[0]), _number(where, cells[1])
    if rate > MOST_RPS:
        message = f"{rate:g} requests/s of one client, at most {MOST_RPS:g}"
        raise TraceError(where, [Fault(where, "rate", message)])
    family = cells[3].strip() if len(cells) > 3 else ""
    if family not in ("", "Gamma", "Weibull"):
        message = f"expected Gamma, Weibull or nothing, read {family!r}"
        raise TraceError(where, [Fault(where, "dist", message)])
    shape = _number(where, cells[4]) if family else 1.0
    if rate > 0:
        pool.windows.setdefault(start_s, []).append(Window(client, rate, family, shape))


def _histograms(pool: Pool, path: Path, client: int) -> None:
    raw = read_some(path, LARGEST_BYTES)
    try:
        periods = json.loads(raw)
        for start, fields in periods.items():
            for name, histogram in fields.items():
                told = histogram if isinstance(histogram, dict) else ast.literal_eval(histogram)
                if not told:
                    continue
                where = f"{path}: {name} at {start} s"
                law = _levels_of(where, name, told)
                pool.field_of(name, LEVELS).add(client, _start(where, start), law)
    except (ValueError, SyntaxError, AttributeError, TypeError, *_TOO_DEEP) as error:
        message = f"not the histograms of a client: {json_fault(error) or 'too many brackets'}"
        raise TraceError(str(path), [Fault(str(path), "", message)]) from None


def _levels_of(where: str, name: str, told: Mapping[Any, Any]) -> npt.NDArray[np.float64]:
    """Return a histogram's values at `LEVELS`."""
    pmf = sorted((_length(where, name, value), _number(where, n)) for value, n in told.items())
    values, shares = (np.array(side) for side in zip(*pmf, strict=True))
    total = float(shares.sum())
    if not 0.0 < total < math.inf:
        message = f"expected shares whose sum is greater than 0, it is {total:g}"
        raise TraceError(where, [Fault(where, "", message)])
    at = np.searchsorted(np.cumsum(shares) / total, np.minimum(LEVELS, 1.0 - 1e-12))
    law: npt.NDArray[np.float64] = values[np.minimum(at, len(values) - 1)]
    return law


def _tables(path: Path) -> Pool:
    pool = Pool(path)
    index: dict[str, int] = {}
    for where, cells in _rows(_table(path, "arrivals", _ARRIVALS), 1):
        if cells[0] not in index:
            index[cells[0]] = len(pool.clients)
            pool.clients.append(cells[0])
        _window(pool, where, index[cells[0]], cells[1:])
    for where, cells in _rows(_table(path, "lengths", _LENGTHS), 1):
        if cells[0] not in index:
            continue
        if len(cells) != len(_LENGTHS) + len(QUANTILES):
            message = f"expected {len(_LENGTHS) + len(QUANTILES)} columns, read {len(cells)}"
            raise TraceError(where, [Fault(where, "", message)])
        law = np.array([_length(where, cells[2], cell) for cell in cells[len(_LENGTHS) :]])
        start_s, mean = _start(where, cells[1]), _number(where, cells[3])
        pool.field_of(cells[2], QUANTILES).add(index[cells[0]], start_s, law, _bend(law, mean))
    return pool


def _bend(law: npt.NDArray[np.float64], mean: float) -> float:
    """Return the power with which the tail beyond p99.9 rises to its end, so that the mean is kept.

    v^g on [0, 1] has the mean 1 / (1 + g). A straight line to the one longest request of millions
    would double the mean of short ones.
    """
    levels = np.array((0.0, *QUANTILES))
    values = np.concatenate((law[:1], law))
    body = float((np.diff(levels)[:-1] * (values[1:-1] + values[:-2]) / 2.0).sum())
    tail, span = (mean - body) / (levels[-1] - levels[-2]) - values[-2], values[-1] - values[-2]
    share = min(max(tail / span, 0.01), 0.99) if span > 0 else 0.5
    return float(1.0 / share - 1.0)


def _table(path: Path, part: str, header: Sequence[str]) -> Path:
    names = [path.with_name(f"{path.name}_{part}.csv{end}") for end in ("", ".gz", ".zst")]
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        message = "no such folder, and no such table of a ServeGen pool"
        raise TraceError(str(path), [Fault(str(names[0]), "path", message)])
    top = first_lines(found, 1)
    if not top or not top[0].startswith(",".join(header)):
        message = f"expected the header {','.join(header)}, read {(top or [''])[0][:100]!r}"
        raise TraceError(str(found), [Fault(f"{found}:1", "", message)])
    return found


def _rows(path: Path, skip: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (file:line, cells) of the rows of a table."""
    faults: list[Fault] = []
    for block in line_blocks(path, skip_lines=skip):
        text = block.data.decode(errors="replace")
        for line, said in enumerate(text.split("\n"), block.first_line):
            where, cells = f"{path}:{line}", cells_of(said.removesuffix("\r"))
            if not said.strip():
                continue
            if len(cells) < 2 and len(faults) < MOST_FAULTS:
                faults.append(Fault(where, "", f"expected several columns, read {said[:80]!r}"))
            elif not faults:
                yield where, cells
    if faults:
        raise TraceError(str(path), faults)


def _number(where: str, cell: Any) -> float:
    try:
        value = float(cell)
    except (ValueError, TypeError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        message = f"expected a number of at least 0, read {cell!r}"
        raise TraceError(where, [Fault(where, "", message)])
    return value


def _length(where: str, name: str, cell: Any) -> float:
    """Read a value of a field of lengths: so many tokens, or images, as one request may have."""
    value, most = _number(where, cell), MOST_IMAGES if name == "image_count" else MOST_TOKENS
    if value > most:
        message = f"expected at most {most}, read {cell!r}"
        raise TraceError(where, [Fault(where, name, message)])
    return value


def _start(where: str, cell: Any) -> float:
    value = _number(where, cell)
    if value >= LATEST_S:
        message = f"expected a time below {LATEST_S:g} s (292 years), read {cell!r}"
        raise TraceError(where, [Fault(where, "", message)])
    return value
