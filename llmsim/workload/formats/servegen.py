"""Traffic from a ServeGen pool: every client a renewal process of its own, with its lengths."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from llmsim.core.errors import Fault, TraceError
from llmsim.core.rng import stream
from llmsim.workload.chunk import Workload
from llmsim.workload.formats.generated import Floats, Generated, GeneratedWorkload, made_rows
from llmsim.workload.formats.servegenpool import WINDOW_S, Lengths, Pool, Window, read_pool
from llmsim.workload.parameters import check_parameters
from llmsim.workload.rows import Rows

Ints = npt.NDArray[np.int64]

_LEAST_SHAPE: Final = {"Gamma": 0.01, "Weibull": 0.1}
"""Below it a gap is 0 or astronomically long (CV above 10 and 400), and a window is never full;
the published pools have none below 0.0067 and 0.15."""


@dataclass(frozen=True, kw_only=True)
class ServeGen(Generated):
    """Traffic made from the statistics of a ServeGen pool (alibaba/ServeGen, NSDI 2026).

    Parameters
    ----------
    busiest_clients : int, optional
        Only the so many clients that send most requests.

    Notes
    -----
    A client's gaps have the shape of the law fitted to its window (Gamma, Weibull, or none) and
    the mean of its rate: the process runs in time warped by the rate, so that counts of a window
    are not fixed, and begins in equilibrium. Lengths come from the client's own quantiles, each
    field drawn by itself, as the pool says nothing of how they go together. A client without
    lengths draws from the others', as often as they send. A prompt with images is its text and
    all their tokens.
    """

    busiest_clients: Annotated[int, Ge(1)] | None = None

    def open(self, seed: int, near: Path | None) -> Workload:
        """Return the traffic.

        Parameters
        ----------
        seed : int
        near : Path or None
            Folder that a relative path starts from.

        Raises
        ------
        InputError
            If a parameter is out of its limits.
        TraceError
            If there is no such pool, or it is damaged.
        """
        check_parameters(self, "trace 'servegen'")
        wanted = Path(self.path).expanduser()
        path = wanted if near is None else near / wanted
        pool = read_pool(path)
        if not pool.windows:
            raise TraceError(str(path), [Fault(str(path), "", "no client sends anything")])
        return GeneratedWorkload(
            path,
            self,
            lambda: _Traffic(self, pool, seed).rows(),
            tuple(pool.clients),
            _Traffic(self, pool, seed).expected(),
        )


class _Traffic:
    """One pass over a pool."""

    def __init__(self, options: ServeGen, pool: Pool, seed: int) -> None:
        self._options, self._pool = options, pool
        self._gaps, self._draws = stream(seed, "servegen", "gaps"), stream(seed, "servegen", "rows")
        self._left: dict[int, float] = {}
        sent = np.zeros(len(pool.clients))
        for windows in pool.windows.values():
            for window in windows:
                sent[window.client] += window.rate_rps
        order = np.argsort(-sent, kind="stable")
        self._kept = set(order[: options.busiest_clients].tolist())
        self._sent = sent
        self._donors = {name: _donors(lengths, sent) for name, lengths in pool.lengths.items()}

    def expected(self) -> float:
        """Return how many requests the windows make in the mean."""
        rates = [
            window.rate_rps
            for start_s in self._starts()
            for window in self._pool.windows[start_s]
            if window.client in self._kept
        ]
        return math.fsum(rates) * WINDOW_S * self._options.rate_scale

    def _starts(self) -> list[float]:
        options = self._options
        return [
            start_s
            for start_s in sorted(self._pool.windows)
            if start_s + WINDOW_S > options.start_s
            and (options.end_s is None or start_s < options.end_s)
        ]

    def rows(self) -> Iterator[Rows]:
        """Yield the requests of each window."""
        for start_s in self._starts():
            at_s, client = self._arrivals(start_s, self._pool.windows[start_s])
            if not len(at_s):
                continue
            output = self._length("output_tokens", start_s, client)
            yield made_rows(at_s, self._prompt(start_s, client), output, client.astype(np.int32))

    def _arrivals(self, start_s: float, windows: list[Window]) -> tuple[Floats, Ints]:
        times: list[Floats] = []
        who: list[Ints] = []
        for window in windows:
            if window.client not in self._kept:
                continue
            rate = window.rate_rps * self._options.rate_scale
            found = self._renewals(window, rate * WINDOW_S)
            if len(found):
                times.append(start_s + found / rate)
                who.append(np.full(len(found), window.client))
        if not times:
            return np.empty(0), np.empty(0, dtype=np.int64)
        return np.concatenate(times), np.concatenate(who)

    def _renewals(self, window: Window, upto: float) -> Floats:
        """Return points of a renewal process with gaps of mean 1, from 0 up to `upto`."""
        family = window.family
        shape = max(window.shape, _LEAST_SHAPE.get(family, 1.0))
        at = self._left.get(window.client)
        if at is None:
            at = _first_gap(self._gaps, family, shape)
        found: list[Floats] = []
        while at < upto:
            count = int(upto - at + 4.0 * math.sqrt(upto - at)) + 16
            later = at + np.cumsum(_unit_gaps(self._gaps, family, shape, count))
            points = np.concatenate(([at], later[:-1]))
            found.append(points[points < upto])
            beyond = later[later >= upto]
            at = float(beyond[0] if len(beyond) else later[-1])
        self._left[window.client] = at - upto
        return np.concatenate(found) if found else np.empty(0)

    def _prompt(self, start_s: float, client: Ints) -> Floats:
        if "input_tokens" in self._pool.lengths:
            return self._length("input_tokens", start_s, client)
        prompt = self._length("text_tokens", start_s, client)
        if "image_count" in self._pool.lengths and "image_tokens" in self._pool.lengths:
            images = np.rint(self._length("image_count", start_s, client)).astype(np.int64)
            each = self._length("image_tokens", start_s, np.repeat(client, images))
            whose = np.repeat(np.arange(len(client)), images)
            prompt = prompt + np.bincount(whose, weights=each, minlength=len(client))
        return prompt

    def _length(self, name: str, start_s: float, client: Ints) -> Floats:
        """Draw a field of requests of these clients from their laws at that time."""
        lengths = self._pool.lengths[name]
        if not len(client):
            return np.empty(0)
        donors, upto = self._donors[name]
        missing = np.array([who not in lengths.by_client for who in range(len(self._sent))])
        who = client.copy()
        lacking = missing[who]
        if lacking.any():
            drawn = np.searchsorted(upto, self._draws.random(int(lacking.sum())), side="right")
            who[lacking] = donors[np.minimum(drawn, len(donors) - 1)]
        row_of = {each: _row(lengths, each, start_s) for each in np.unique(who).tolist()}
        row = np.array([row_of[each] for each in who.tolist()], dtype=np.int64)
        used, inverse = np.unique(row, return_inverse=True)
        table = np.stack([lengths.rows[each] for each in used.tolist()])
        bend = np.array([lengths.bends[each] for each in used.tolist()])[inverse]
        share = self._draws.random(len(client))
        return _inverse_cdf(lengths.levels, table, inverse, bend, share)


def _inverse_cdf(levels: Floats, table: Floats, row: Ints, bend: Floats, share: Floats) -> Floats:
    """Return quantiles of each row at each share: straight lines, bent at the end."""
    right = np.clip(np.searchsorted(levels, share, side="left"), 1, len(levels) - 1)
    low, high = levels[right - 1], levels[right]
    part = np.clip((share - low) / (high - low), 0.0, 1.0)
    part = np.where(right == len(levels) - 1, part**bend, part)
    drawn: Floats = table[row, right - 1] * (1.0 - part) + table[row, right] * part
    return drawn


def _row(lengths: Lengths, client: int, at_s: float) -> int:
    """Return the row of the window under way, or the nearest before or after it."""
    found = lengths.by_client[client]
    at = bisect_right(found, (at_s, len(lengths.rows)))
    return found[max(at - 1, 0)][1]


def _donors(lengths: Lengths, sent: Floats) -> tuple[Ints, Floats]:
    known = np.array(sorted(lengths.by_client), dtype=np.int64)
    upto = np.cumsum(sent[known])
    return known, upto / upto[-1] if upto[-1] > 0 else np.linspace(0, 1, len(known) + 1)[1:]


def _unit_gaps(rng: np.random.Generator, family: str, shape: float, count: int) -> Floats:
    if family == "Gamma":
        return rng.gamma(shape, 1.0 / shape, count)
    if family == "Weibull":
        return rng.weibull(shape, count) / math.gamma(1.0 + 1.0 / shape)
    return rng.exponential(1.0, count)


def _first_gap(rng: np.random.Generator, family: str, shape: float) -> float:
    """Draw the time to the first point in equilibrium: a part of a gap drawn by its length.

    A gap drawn by its length has density x f(x) / mean (Cox, Renewal Theory, 1962, section 5.4):
    Gamma with shape + 1; of a Weibull the shape-th root of a Gamma of 1 + 1 / shape.
    """
    if family == "Gamma":
        gap = rng.gamma(shape + 1.0, 1.0 / shape)
    elif family == "Weibull":
        mean = math.gamma(1.0 + 1.0 / shape)
        gap = float(rng.gamma(1.0 + 1.0 / shape)) ** (1.0 / shape) / mean
    else:
        gap = rng.gamma(2.0, 1.0)
    return float(gap * rng.random())
