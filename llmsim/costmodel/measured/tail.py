"""What one long context adds to a decode launch, from rows of uneven batches.

A kernel that cuts every context of a batch into as many parts ends with the parts of the longest
one, alone on the GPU, at the pace of a single program. Such a launch is priced as an even one in
which the longest context is as long as the others in the mean, and what is left of the longest:
its overhang over that mean, divided by the parts, times the pace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmsim.core.units import NS_PER_S
from llmsim.costmodel.measured.answers import Answer
from llmsim.costmodel.measured.cuts import WAVES, decode_programs
from llmsim.costmodel.measured.lines import Tail
from llmsim.costmodel.measured.means import Floats
from llmsim.costmodel.measured.profile import Profile
from llmsim.costmodel.measured.tables import Context

LEAST_ROWS: Final = 4
"""Rows of uneven batches that tell the pace; fewer are noise."""

EQUAL_PARTS: Final[Mapping[str, Callable[[Floats, Floats], Floats]]] = {
    "triton.paged_decode.v1": decode_programs
}
"""Kernels that cut all contexts of a batch into as many parts, by which two waves of programs
fill the GPU; and the programs that one part of one request takes. The rule is the kernel's source;
kernels that plan parts by length (FlashInfer's) have no such tail."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the parts of the longest context end.

    Parameters
    ----------
    token_s : float [s/token]
        Of one part alone, in one layer.
    error : float
        Median relative error of the rows of uneven batches with it.
    rows : int
        That it is the median of.
    """

    token_s: float
    error: float
    rows: int


def measured_pace(profile: Profile, context: Context) -> Pace | None:
    """Return the pace of a profile's decode kernel; None where uneven batches do not tell it.

    Parameters
    ----------
    profile : Profile
    context : Context
        Rows of other KV types say nothing: what a program does per token is another thing.
    """

    def work_out() -> Answer:
        return Answer(_fit(profile, context))

    values = profile.remembered(work_out, "pace of the longest", context).values
    return Pace(float(values[0]), float(values[1]), int(values[2])) if len(values) else None


def measured_tail(
    profile: Profile, shape: Mapping[str, float], context: Context, layers: int
) -> Tail | None:
    """Return what the longest context adds in the layers of one mixer.

    Parameters
    ----------
    profile : Profile
    shape : mapping of str to float
        heads_q, heads_kv, window: a window cuts the longest context off, so there is no tail.
    context : Context
    layers : int
    """
    if shape["window"] > 0:
        return None
    pace = measured_pace(profile, context)
    if pace is None:
        return None
    programs = EQUAL_PARTS[profile.kernel("attention_decode", context)]
    slots = WAVES * profile.device.sm_count
    each = int(programs(np.array(shape["heads_q"]), np.array(shape["heads_kv"])))
    return Tail(layers * NS_PER_S * pace.token_s, slots, each)


def _fit(profile: Profile, context: Context) -> Floats:
    """Return pace, error and rows; nothing where they cannot be told."""
    kernel = profile.kernel("attention_decode", context)
    if kernel not in EQUAL_PARTS:
        return np.empty(0)
    rows = profile.rows
    keep = rows.usable & (rows["split"] == "fit") & (rows["op"] == "attention_decode")
    keep = keep & (rows["skew"] > 0) & (rows["kernel_id"] == kernel)
    keep = keep & (rows["dtype_kv"] == context.types.kv) & ~(rows["window"] > 0)
    names = ("batch", "kv_len", "heads_q", "heads_kv", "head_dim", "skew", "t_median_us")
    found = rows.where(keep, names)
    if len(found) < LEAST_ROWS:
        return np.empty(0)
    column = {name: np.asarray(found[name], dtype=float) for name in names}
    batch, mean = column["batch"], column["kv_len"]
    longest = column["skew"] * mean
    others = (batch * mean - longest) / (batch - 1.0)
    shape = {name: column[name] for name in ("heads_q", "heads_kv", "head_dim")}
    asked = {"batch": batch, "kv_len": np.maximum(1.0, np.round(others)), **shape}
    even = profile.latencies("attention_decode", asked, context).seconds
    slots = WAVES * profile.device.sm_count
    each = EQUAL_PARTS[kernel](column["heads_q"], column["heads_kv"])
    parts = np.array(
        [
            Tail(0.0, slots, int(own)).parts(int(count), int(most))
            for own, count, most in zip(each, batch, longest, strict=True)
        ]
    )
    time = column["t_median_us"] * 1e-6
    share = (longest - others) / parts
    pace = max(0.0, float(np.median((time - even) / share)))
    error = float(np.median(np.abs((even + pace * share) / time - 1.0)))
    return np.array([pace, error, float(len(time))])
