"""Who was served how much, window by window: fairness between clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from llmsim.core.errors import Fault, InputError
from llmsim.results.store import RequestTable

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

PROMPT_WEIGHT: Final = 1.0
OUTPUT_WEIGHT: Final = 2.0
"""Service is prompt tokens plus twice the output tokens: Sheng et al., Fairness in Serving Large
Language Models, OSDI 2024 (arXiv 2401.00588), as the weights of their evaluation."""

STEPS_PER_WINDOW: Final = 2
"""Windows slide by half their width."""


@dataclass(frozen=True, slots=True)
class Service:
    """What each client got in each window.

    Parameters
    ----------
    clients : tuple of str (c,)
    start_s : ndarray of float64 (windows,) [s]
    window_s : float [s]
    served : ndarray of float64 (windows, c) [weighted tokens]
    asked : ndarray of bool (windows, c)
        Whether a request of the client was there at some time of the window.
    backlogged : ndarray of bool (windows, c)
        Whether one waited for its first step at every time of the window.
    """

    clients: tuple[str, ...]
    start_s: Floats
    window_s: float
    served: Floats
    asked: npt.NDArray[np.bool_]
    backlogged: npt.NDArray[np.bool_]


def service_windows(
    table: RequestTable,
    window_s: float,
    prompt_weight: float = PROMPT_WEIGHT,
    output_weight: float = OUTPUT_WEIGHT,
) -> Service:
    """Return the service of every client in sliding windows.

    Parameters
    ----------
    table : RequestTable
        A prompt counts when its request's first token comes, its output evenly between first
        token and end.
    window_s : float [s]
        Width of a window; windows begin every half of it.
    prompt_weight, output_weight : float
        Service of one token.

    Raises
    ------
    InputError
        If the requests name no clients, or the window is no positive number of seconds.
    """
    names = table.categories("client")
    clients = tuple(name for name in names if name)
    faults = []
    if not clients:
        faults.append(Fault("", "client", "the requests of this run name no clients."))
    if not (0 < window_s < float("inf")):
        faults.append(Fault("", "window_s", f"read {window_s}, but a window is a positive time."))
    if faults:
        raise InputError("fairness", faults)
    code = table.codes("client", names)
    arrival_s, end_s = table.numbers("arrival_s"), table.numbers("end_s")
    first_s = arrival_s + table.numbers("ttft_s")
    waited_s = table.numbers("queue_s")
    begun_s = np.where(np.isnan(waited_s), end_s, arrival_s + waited_s)
    prompt = prompt_weight * table.numbers("prompt_tokens")
    output = output_weight * table.numbers("output_tokens")
    last_s = float(end_s.max(initial=0.0))
    step_s = window_s / STEPS_PER_WINDOW
    windows = max(1, int(np.floor((last_s - window_s) / step_s)) + 1)
    start_s: Floats = np.arange(windows, dtype=np.float64) * step_s
    shape = len(start_s), len(clients)
    served = np.zeros(shape)
    asked, backlogged = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for column, client in enumerate(clients):
        mine = code == names.index(client)
        got = mine & ~np.isnan(first_s)
        span_s = np.maximum(end_s[got] - first_s[got], 1e-9)
        waits = _merged(arrival_s[mine], begun_s[mine])
        for row, begin in enumerate(start_s.tolist()):
            stop = begin + window_s
            inside = (first_s[got] >= begin) & (first_s[got] < stop)
            overlap = np.minimum(end_s[got], stop) - np.maximum(first_s[got], begin)
            share = np.clip(overlap / span_s, 0.0, 1.0)
            served[row, column] = prompt[got][inside].sum() + (output[got] * share).sum()
            asked[row, column] = bool(((arrival_s[mine] < stop) & (end_s[mine] > begin)).any())
            backlogged[row, column] = any(low <= begin and high >= stop for low, high in waits)
    return Service(clients, start_s, window_s, served, asked, backlogged)


def _merged(begin_s: Floats, stop_s: Floats) -> list[tuple[float, float]]:
    """Return intervals that overlap as one, in order."""
    found: list[tuple[float, float]] = []
    for low, high in sorted(zip(begin_s.tolist(), stop_s.tolist(), strict=True)):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def jain_index(values: Floats) -> float:
    """Return Jain's index: 1 where all are equal, 1/n where one has all; NaN for nothing.

    References
    ----------
    Jain, Chiu, Hawe, A Quantitative Measure of Fairness and Discrimination, DEC-TR-301, 1984.
    """
    squares = float((values * values).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else float("nan")


def fairness_frame(service: Service) -> pd.DataFrame:
    """Return a row per window: start_s, asking, backlogged [clients], jain, difference.

    Parameters
    ----------
    service : Service

    Returns
    -------
    pandas.DataFrame
        ``jain`` is over the clients that asked for something; ``difference`` [weighted tokens] is
        the largest less the least service among clients that were backlogged through the whole
        window, of which a fair scheduler bounds it (Sheng et al. 2024, theorem 4.4); NaN with
        fewer than two such clients.
    """
    import pandas as pd

    rows = []
    for at, start in enumerate(service.start_s.tolist()):
        asking, waiting = service.asked[at], service.backlogged[at]
        got = service.served[at][waiting]
        difference = float(got.max() - got.min()) if len(got) > 1 else float("nan")
        jain = jain_index(service.served[at][asking]) if asking.any() else float("nan")
        rows.append((start, int(asking.sum()), int(waiting.sum()), jain, difference))
    return pd.DataFrame(rows, columns=["start_s", "asking", "backlogged", "jain", "difference"])
