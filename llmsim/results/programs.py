"""From calls to programs: when each began and ended, and how long the whole job took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from llmsim.results.columns import OUTCOMES, PROGRAM_COLUMNS
from llmsim.results.intervals import (
    NOTHING,
    Interval,
    mean_interval,
    quantile_interval,
    share_interval,
)
from llmsim.results.metrics import QUANTILES
from llmsim.results.slo import Slo
from llmsim.results.store import RequestTable

if TYPE_CHECKING:
    import pandas as pd

Column = npt.NDArray[Any]

_FINISHED: Final = OUTCOMES.index("finished")


def program_columns(table: RequestTable) -> dict[str, Column]:
    """Return one row per program as columns, in order of program; category columns as codes.

    Parameters
    ----------
    table : RequestTable
        Of a run whose requests are calls of programs.

    Returns
    -------
    dict of str to ndarray (programs,)
        The columns of `columns.PROGRAM_COLUMNS` but `client`; `outcome` indexes `OUTCOMES`.
        `last` [row] is where a program's latest call lies in the table.
    """
    program, arrival_s = table.numbers("session"), table.numbers("arrival_s")
    order = np.lexsort((table.numbers("request"), arrival_s, program))
    program = program[order]
    first = np.flatnonzero(np.diff(program, prepend=program[0] - 1 if len(program) else 0))
    last = np.append(first[1:], len(program)) - 1 if len(first) else first
    arrival_s, end_s = arrival_s[order], table.numbers("end_s")[order]
    outcome = table.codes("outcome", OUTCOMES)[order]
    final = table.numbers("final")[order]

    def total(name: str) -> Column:
        amounts = np.nan_to_num(table.numbers(name)[order])
        return np.add.reduceat(amounts, first) if len(first) else amounts

    over = (outcome[last] == _FINISHED) & final[last]
    between = np.zeros(len(program))
    between[1:] = arrival_s[1:] - end_s[:-1]
    between[first] = 0.0
    took = end_s[last] - arrival_s[first]
    # a program that is between two calls when the run is stopped has not finished
    ended = np.where((outcome[last] == _FINISHED) & ~over, _STOPPED, outcome[last])
    return {
        "program": program[first],
        "outcome": ended,
        "arrival_s": arrival_s[first],
        "jct_s": np.where(over, took, np.nan),
        "pause_s": np.add.reduceat(between, first) if len(first) else between,
        "queue_s": total("queue_s"),
        "calls": (last - first + 1).astype(np.int32),
        "prompt_tokens": total("prompt_tokens").astype(np.int64),
        "cached_tokens": total("cached_tokens").astype(np.int64),
        "output_tokens": total("output_tokens").astype(np.int64),
        "preemptions": total("preemptions").astype(np.int32),
        "last": order[last],
    }


_STOPPED: Final = OUTCOMES.index("running_at_end")


def program_frame(table: RequestTable, clients: Sequence[str]) -> pd.DataFrame:
    """Return the table of programs, with the columns of `columns.PROGRAM_COLUMNS`.

    Parameters
    ----------
    table : RequestTable
    clients : sequence of str
        Names that occur in its column `client`.
    """
    import pandas as pd

    made: dict[str, Any] = dict(program_columns(table))
    client = table.codes("client", clients)[made.pop("last")]
    made["client"] = pd.Categorical.from_codes(client, pd.Index(clients, dtype=str))
    made["outcome"] = pd.Categorical.from_codes(made["outcome"], pd.Index(OUTCOMES, dtype=str))
    return pd.DataFrame({column.name: made[column.name] for column in PROGRAM_COLUMNS})


def program_metrics(table: RequestTable, slo: Slo, warmup_s: float) -> dict[str, Interval]:
    """Return the metrics of `metrics.PROGRAM_METRICS`, over programs that began after the warm-up.

    Parameters
    ----------
    table : RequestTable
    slo : Slo
    warmup_s : float [s]
    """
    made = program_columns(table)
    counted = made["arrival_s"] >= warmup_s - 0.5e-9
    jct_s = made["jct_s"][counted]
    known = jct_s[~np.isnan(jct_s)]
    found = {
        "programs": _exact(len(made["program"])),
        "programs_finished": _exact(int((~np.isnan(made["jct_s"])).sum())),
        "program_calls_mean": mean_interval(made["calls"][counted].astype(np.float64)),
        "program_pause_mean_s": mean_interval(made["pause_s"][counted]),
        "slo_jct_attained_frac": NOTHING,
    }
    for stat, fraction in QUANTILES.items():
        found[f"jct_{stat}_s"] = quantile_interval(known, fraction)
    found["jct_mean_s"] = mean_interval(known)
    if slo.jct_s is not None:
        found["slo_jct_attained_frac"] = share_interval(jct_s <= slo.jct_s * (1 + 1e-12))
    return found


def _exact(value: float) -> Interval:
    return Interval(float(value), math.nan, math.nan)
