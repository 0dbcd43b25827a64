"""Traces as calls: `inspect`, `convert`, `head`, `scale`, `anonymise`; as `llmsim trace` does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from llmsim.core.errors import Fault, InputError, RegistryError, nearest
from llmsim.core.files import check_target, write_whole
from llmsim.workload import TRACES, Workload
from llmsim.workload.detect import detect_kind
from llmsim.workload.reshaping import Anonymised, Thinned
from llmsim.workload.traceprofile import TraceProfile, profile_trace
from llmsim.workload.writing import Written, write_trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["anonymise", "convert", "head", "inspect", "open_trace", "scale"]

Options = Mapping[str, Any]

MOST_MADE: Final = 100_000_000
"""More requests than these are made from statistics only where `limit` asks for them: a week of a
large ServeGen pool is 1.4e9, for which nobody waits."""


def open_trace(
    path: str | Path, kind: str | None = None, options: Options | None = None, *, seed: int = 0
) -> Workload:
    """Open a trace of any kind.

    Parameters
    ----------
    path : str or Path
        A file, or a pool of ServeGen.
    kind : str, optional
        A name that `ls.names("trace")` gives; absent: told by what is in the file.
    options : mapping of str to Any, optional
        Parameters of the kind, such as ``{"time_unit": "ms"}``.
    seed : int
        For what is drawn: times and lengths that the file does not have.

    Raises
    ------
    InputError
        If there is no such kind or parameter, or a value is out of its limits.
    TraceError
        If the file is missing or of another kind.
    """
    if kind is None:
        kind = detect_kind(Path(path).expanduser(), TRACES.names())
    try:
        cls = TRACES.get(kind)
    except RegistryError as error:
        raise InputError("llmsim trace", [Fault("", "kind", str(error))]) from None
    known = [each.name for each in dataclasses.fields(cast(Any, cls)) if each.init]
    told = dict(options or {})
    if "path" in known:
        told["path"] = str(path)
    wrong = [
        Fault("", name, f"no such parameter of trace '{kind}'.", hint)
        for name in told
        if name not in known
        for hint in ["Say it beside: --kind." if name == "kind" else nearest(name, known)]
    ]
    if wrong:
        raise InputError(f"trace '{kind}'", wrong)
    return cls(**told).open(seed, None)


def _whole(path: str | Path, kind: str | None, options: Options | None, seed: int) -> Workload:
    """Open a trace to go through all of it."""
    workload = open_trace(path, kind, options, seed=seed)
    expected = getattr(workload, "expected", None)
    if expected is not None and expected > MOST_MADE:
        message = f"these statistics make about {expected:,.0f} requests"
        hint = "Say how many with limit=N, or which hours with start_s and end_s."
        raise InputError("llmsim trace", [Fault(str(path), "limit", message + ".", hint)])
    return workload


def inspect(
    path: str | Path,
    kind: str | None = None,
    options: Options | None = None,
    *,
    seed: int = 0,
    html: str | Path | None = None,
) -> TraceProfile:
    """Say what a trace is like: rates, bursts, lengths, shared prefixes.

    Parameters
    ----------
    path, kind, options, seed
        As in `open_trace`.
    html : str or Path, optional
        Write a page with drawings there.

    Returns
    -------
    TraceProfile

    Raises
    ------
    InputError
        If it cannot be read; every damaged row with its line, up to 20.
    """
    if html is not None:
        check_target(Path(html))
    profile = profile_trace(_whole(path, kind, options, seed))
    if html is not None:
        from llmsim.report.trace_page import render_trace

        write_whole(Path(html), render_trace(profile, Path(path).name))
    return profile


def convert(
    path: str | Path,
    out: str | Path,
    kind: str | None = None,
    options: Options | None = None,
    *,
    seed: int = 0,
    force: bool = False,
) -> Written:
    """Write a trace as a table that the kinds `csv`, `jsonl` and `parquet` read back as it was.

    Parameters
    ----------
    path, kind, options, seed
        As in `open_trace`.
    out : str or Path
        Its ending says the kind: .csv, .csv.gz, .csv.zst, .jsonl (likewise), .parquet.
    force : bool
        Replace a file that is there.

    Raises
    ------
    InputError
        If the trace cannot be read or the ending is none of these.
    OutputError
        If the file is there or cannot be written.
    """
    return write_trace(_whole(path, kind, options, seed), Path(out), force)


def head(
    path: str | Path,
    rows: int = 10,
    kind: str | None = None,
    options: Options | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the first requests of a trace.

    Parameters
    ----------
    path, kind, options, seed
        As in `open_trace`.
    rows : int

    Returns
    -------
    pandas.DataFrame
        arrival_s, prompt_tokens, output_tokens, session, client, failed.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    import pandas as pd

    workload = open_trace(path, kind, {**(options or {}), "limit": rows}, seed=seed)
    parts = []
    for chunk in workload.chunks():
        names = (*workload.clients, "")
        parts.append(
            pd.DataFrame(
                {
                    "arrival_s": chunk.arrival_ns / 1e9,
                    "prompt_tokens": chunk.prompt_tokens,
                    "output_tokens": chunk.output_tokens,
                    "session": [str(each) if each >= 0 else "" for each in chunk.session.tolist()],
                    "client": [names[code] for code in chunk.client.tolist()],
                    "failed": chunk.failed,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def scale(
    path: str | Path,
    out: str | Path,
    kind: str | None = None,
    options: Options | None = None,
    *,
    rate_scale: float | None = None,
    rate_rps: float | None = None,
    keep_frac: float | None = None,
    seed: int = 0,
    force: bool = False,
) -> Written:
    """Write a trace at another rate; exactly one of the three says which.

    Parameters
    ----------
    path, kind, options
        As in `open_trace`.
    out, force
        As in `convert`.
    rate_scale : float, optional
        Replay it so many times faster; think times in sessions shrink as well. Of statistics
        (`servegen`, `vllm-metrics`) the rates are multiplied instead.
    rate_rps : float, optional [requests/s]
        Replay it as much faster or slower as gives this mean rate.
    keep_frac : float, optional
        Keep this share of its sessions and of the requests outside any: times stay as they are.
    seed : int
        For what is drawn.

    Raises
    ------
    InputError
        If not exactly one is given, or one is out of its limits.
    OutputError
        If the file is there or cannot be written.
    """
    given = {"rate_scale": rate_scale, "rate_rps": rate_rps, "keep_frac": keep_frac}
    wrong = [
        Fault("", name, f"must be a number greater than 0 (got {value!r})")
        for name, value in given.items()
        if value is not None and not (math.isfinite(value) and value > 0)
    ]
    if keep_frac is not None and keep_frac > 1:
        wrong.append(Fault("", "keep_frac", f"must be at most 1 (got {keep_frac!r})"))
    if sum(value is not None for value in given.values()) != 1:
        wrong.append(Fault("", ", ".join(given), "give exactly one of these"))
    if wrong:
        raise InputError("llmsim trace scale", wrong)
    told = dict(options or {})
    if rate_rps is not None:
        now = profile_trace(_whole(path, kind, told, seed)).rate_rps
        if not now > 0:
            fault = Fault(str(path), "rate_rps", "all requests of this trace come at one time")
            raise InputError("llmsim trace scale", [fault])
        rate_scale = float(told.get("rate_scale", 1.0)) * rate_rps / now
    if rate_scale is not None:
        told["rate_scale"] = rate_scale
    workload = _whole(path, kind, told, seed)
    if keep_frac is not None:
        workload = Thinned(workload, keep_frac, seed)
    return write_trace(workload, Path(out), force)


def anonymise(
    path: str | Path,
    out: str | Path,
    kind: str | None = None,
    options: Options | None = None,
    *,
    round_tokens: int = 1,
    seed: int = 0,
    force: bool = False,
) -> Written:
    """Write a trace without dates, names of clients and ids of sessions.

    Parameters
    ----------
    path, kind, options, seed
        As in `open_trace`.
    out, force
        As in `convert`.
    round_tokens : int [tokens]
        Lengths become multiples of it; above 1 the prompts' identity is left out.

    Raises
    ------
    InputError
        If the trace cannot be read, or `round_tokens` is below 1.
    OutputError
        If the file is there or cannot be written.

    Notes
    -----
    Times and lengths stay (but for rounding): who knows a service's traffic may recognise it.
    """
    if round_tokens < 1:
        fault = Fault("", "round_tokens", f"must be at least 1 (got {round_tokens!r})")
        raise InputError("llmsim trace anonymise", [fault])
    workload = Anonymised(_whole(path, kind, options, seed), round_tokens)
    return write_trace(workload, Path(out), force)
