"""How much decode attention costs beside prefill in one launch, from rows of mixed batches.

A launch that holds both costs its prefill, and its decode less one launch times a factor kappa:
kernels pack the query heads of a KV head and split long contexts only when every query is one
token long. Kappa grows with the requests that decode, and is looked up by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmsim.costmodel.measured.answers import Answer
from llmsim.costmodel.measured.means import Floats
from llmsim.costmodel.measured.profile import Profile
from llmsim.costmodel.measured.tables import Context

LEAST_ROWS = 8  # per count of decoding requests; fewer are noise
LEAST_SHARE = 0.1  # of a row's time that decode must be, for the row to tell kappa
_HEADS = ("heads_q", "heads_kv", "head_dim")


@dataclass(frozen=True)
class Kappa:
    """The factor by number of decoding requests.

    Parameters
    ----------
    decodes : ndarray (n,) [requests]
        Rising.
    factor : ndarray (n,)
    error : float
        Median relative error of the rows' times with it.
    """

    decodes: Floats
    factor: Floats
    error: float

    def table(self, most: int) -> list[float]:
        """Return the factor for 0, 1, 2, ... requests; it holds beyond the measured ones.

        Parameters
        ----------
        most : int [requests]
        """
        counts = np.log2(np.maximum(np.arange(most + 1.0), 1.0))
        found: list[float] = np.interp(counts, np.log2(self.decodes), self.factor).tolist()
        return found


def measured_kappa(profile: Profile, shape: Mapping[str, float], context: Context) -> Kappa | None:
    """Return kappa of one shape of heads; None where too few mixed batches were measured.

    Parameters
    ----------
    profile : Profile
    shape : mapping of str to float
        heads_q, heads_kv, head_dim.
    context : Context
    """
    heads = tuple(shape[name] for name in _HEADS)

    def work_out() -> Answer:
        return Answer(_fit(profile, heads, context))

    values = profile.remembered(work_out, "kappa", heads, context).values
    if values.shape[1] == 0:
        return None
    return Kappa(values[0], values[1], float(values[2, 0]))


def _fit(profile: Profile, heads: tuple[float, ...], context: Context) -> Floats:
    """Return decodes, factor and error as rows (3, n)."""
    rows = profile.rows
    keep = rows.usable & (rows["split"] == "fit") & (rows["op"] == "attention_mixed")
    keep = keep & (rows["variant"] == "")  # as the kernel's own table cuts it
    for name, value in zip(_HEADS, heads, strict=True):
        keep = keep & (rows[name] == value)
    shared = {name: np.array([value]) for name, value in zip(_HEADS, heads, strict=True)}
    names = ("batch", "q_len", "kv_len", "decode_batch", "decode_kv_len", "t_median_us")
    found = rows.where(keep, names)
    if not len(found):
        return np.empty((3, 0))
    column = {name: np.asarray(found[name], dtype=float) for name in names}
    chunks = {name: column[name] for name in ("batch", "q_len", "kv_len")}
    lone = {"batch": column["decode_batch"], "kv_len": column["decode_kv_len"]}
    prefill = profile.latencies("attention_prefill", chunks | shared, context).seconds
    decode = profile.latencies("attention_decode", lone | shared, context).seconds
    beside = np.maximum(decode - profile.terms("attention_decode", context).t0_s, 1e-9)
    time = column["t_median_us"] * 1e-6
    telling = beside > LEAST_SHARE * time
    factor = np.maximum(time - prefill, 0.0) / beside
    known = []
    for count in np.unique(column["decode_batch"][telling]):
        rows_of = telling & (column["decode_batch"] == count)
        if rows_of.sum() >= LEAST_ROWS:
            known.append((count, _middle(factor[rows_of], (beside / time)[rows_of])))
    if not known:
        return np.empty((3, 0))
    decodes, factors = np.array(known).T
    kappa = np.interp(np.log2(column["decode_batch"]), np.log2(decodes), factors)
    error = float(np.median(np.abs((prefill + kappa * beside) / time - 1.0)))
    return np.stack([decodes, factors, np.full(len(decodes), error)])


def _middle(values: Floats, weights: Floats) -> float:
    """Return the weighted median: the factor whose error in time is least in the mean."""
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, 0.5 * passed[-1])])
