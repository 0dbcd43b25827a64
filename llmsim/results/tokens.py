"""When every token came out: the table of token times, and what fluidity makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from llmsim.core.units import NS_PER_S
from llmsim.results.intervals import NOTHING, Interval, mean_interval, quantile_interval
from llmsim.results.slo import Slo
from llmsim.results.store import RequestTable

if TYPE_CHECKING:
    import pandas as pd

Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """Output tokens of a run, in order of request and time.

    Parameters
    ----------
    request : ndarray of int64 (tokens,)
        Whose token it is.
    time_ns : ndarray of int64 (tokens,) [ns]
        When it came out, since the start of the workload.
    """

    request: Times
    time_ns: Times

    def delivered(self, table: RequestTable) -> TokenTimes:
        """Return the tokens that reached a client, the first one when the client had it.

        Parameters
        ----------
        table : RequestTable
            Says how many tokens each request got.
        """
        request = table.numbers("request")
        most = int(max(request.max(initial=-1), self.request.max(initial=-1))) + 1
        got = np.zeros(most, dtype=np.int64)
        got[request] = table.numbers("output_tokens")
        first_s = np.full(most, np.nan)
        first_s[request] = table.numbers("arrival_s") + table.numbers("ttft_s")
        starts = np.flatnonzero(np.diff(self.request, prepend=-1))
        sizes = np.diff(starts, append=len(self.request))
        place = np.arange(len(self.request)) - np.repeat(starts, sizes)
        time_ns = self.time_ns.copy()
        told_s = first_s[self.request[starts]]
        known = ~np.isnan(told_s)
        time_ns[starts[known]] = np.rint(told_s[known] * NS_PER_S).astype(np.int64)
        kept = place < got[self.request]
        return TokenTimes(self.request[kept], time_ns[kept])

    def frame(self) -> pd.DataFrame:
        """Return one row per token: request, token (from 0), time_s."""
        import pandas as pd

        starts = np.flatnonzero(np.diff(self.request, prepend=-1))
        sizes = np.diff(starts, append=len(self.request))
        place = np.arange(len(self.request)) - np.repeat(starts, sizes)
        return pd.DataFrame(
            {"request": self.request, "token": place, "time_s": self.time_ns / NS_PER_S}
        )

    def by_request(self) -> Iterator[tuple[int, list[int]]]:
        """Yield every request with its token times [ns]."""
        starts = np.flatnonzero(np.diff(self.request, prepend=-1))
        for first, stop in zip(starts, np.append(starts[1:], len(self.request)), strict=True):
            yield int(self.request[first]), self.time_ns[first:stop].tolist()


def missed_deadlines(
    gaps_ns: Sequence[int], tbt_ns: int, ttft_ns: int = -1, first_ns: int = 0
) -> int:
    """Count the deadlines that a stream of tokens misses, slack carried over.

    Parameters
    ----------
    gaps_ns : sequence of int [ns]
        Gaps between tokens.
    tbt_ns : int [ns]
        Time between tokens that the reader is promised.
    ttft_ns : int [ns]
        Deadline of the first token; -1 to leave it out.
    first_ns : int [ns]
        Time to first token.

    Notes
    -----
    A token that comes early leaves slack to those after it. A late one misses as many deadlines
    as pass while the reader waits, and the next deadline counts from its arrival: the fluidity
    index of Etalon (Agrawal et al. 2024, arXiv 2407.07000), in whole nanoseconds. In floating
    point, where slack is a sum of rounded gaps, a stall that ends exactly at a deadline may miss
    one less.
    """
    slack = missed = 0
    if ttft_ns >= 0:
        if first_ns <= ttft_ns:
            slack = ttft_ns - first_ns
        else:
            missed = 1 + (first_ns - ttft_ns) // tbt_ns
    for gap in gaps_ns:
        left = slack + tbt_ns - gap
        if left >= 0:
            slack = left
        else:
            missed += (gap - slack) // tbt_ns
            slack = 0
    return missed


Deadline = Callable[[int], float]
"""Time to first token [s] that a prompt of so many tokens is promised."""


def fluidity_frame(
    times: TokenTimes, table: RequestTable, tbt_s: float, ttft_s: float | Deadline | None = None
) -> pd.DataFrame:
    """Return the fluidity of every request that got a token.

    Parameters
    ----------
    times : TokenTimes
        As delivered.
    table : RequestTable
    tbt_s : float [s]
        Promised time between tokens.
    ttft_s : float, callable or None [s]
        Promised time to first token, also by prompt length; None counts no deadline for it.

    Returns
    -------
    pandas.DataFrame
        request, deadlines, missed, fluidity (1 - missed / deadlines, at least 0); a request with
        one token and no deadline for it is not among them.
    """
    import pandas as pd

    place = {request: at for at, request in enumerate(table.numbers("request").tolist())}
    arrival_s, prompt = table.numbers("arrival_s"), table.numbers("prompt_tokens")
    tbt_ns = round(tbt_s * NS_PER_S)
    rows = []
    for request, tokens in times.by_request():
        at = place[request]
        promised = ttft_s(int(prompt[at])) if callable(ttft_s) else ttft_s
        ttft_ns = -1 if promised is None else round(promised * NS_PER_S)
        gaps = [after - before for before, after in pairwise(tokens)]
        deadlines = len(gaps) + (ttft_ns >= 0)
        if deadlines:
            first_ns = tokens[0] - round(float(arrival_s[at]) * NS_PER_S)
            missed = missed_deadlines(gaps, tbt_ns, ttft_ns, first_ns)
            rows.append((request, deadlines, missed, max(0.0, 1 - missed / deadlines)))
    return pd.DataFrame(rows, columns=["request", "deadlines", "missed", "fluidity"])


def token_metrics(
    times: TokenTimes, table: RequestTable, slo: Slo, warmup_s: float
) -> dict[str, Interval]:
    """Return the metrics of `metrics.TOKEN_METRICS`: by the TPOT and TTFT objectives.

    Parameters
    ----------
    times : TokenTimes
        As delivered.
    table : RequestTable
    slo : Slo
        Without a TPOT objective there is no deadline, and nothing is known.
    warmup_s : float [s]
    """
    names = ("missed_deadlines_mean_frac", "missed_deadlines_p99_frac")
    if slo.tpot_s is None:
        return dict.fromkeys(names, NOTHING)
    frame = fluidity_frame(times, table, slo.tpot_s, slo.ttft_s)
    arrival_s = dict(
        zip(table.numbers("request").tolist(), table.numbers("arrival_s").tolist(), strict=True)
    )
    began_s = np.array([arrival_s[request] for request in frame["request"]])
    late = began_s >= warmup_s - 0.5 / NS_PER_S
    missed = 1 - frame["fluidity"].to_numpy()[late][np.argsort(began_s[late], kind="stable")]
    return dict(zip(names, (mean_interval(missed), quantile_interval(missed, 0.99)), strict=True))


def fluid_token_rate(
    times: TokenTimes, missed_frac: float = 0.1, requests_frac: float = 0.99
) -> float:
    """Return the fastest steady rate at which nearly all clients can read [tokens/s].

    Parameters
    ----------
    times : TokenTimes
    missed_frac : float
        Share of its deadlines that a request may miss.
    requests_frac : float
        Share of the requests that must keep to it.

    Returns
    -------
    float [tokens/s]
        1 over the least time between tokens that does, to 0.1%; NaN without a gap.

    Notes
    -----
    Bisection: longer deadlines are taken to be missed no more often.
    """
    every = []
    for _, tokens in times.by_request():
        gaps = [after - before for before, after in pairwise(tokens)]
        if gaps:
            every.append(gaps)
    if not every:
        return math.nan

    def kept(tbt_ns: int) -> bool:
        good = sum(missed_deadlines(gaps, tbt_ns) <= missed_frac * len(gaps) for gaps in every)
        return good >= requests_frac * len(every)

    low, high = 1, max(max(gaps) for gaps in every) + 1
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return NS_PER_S / high
