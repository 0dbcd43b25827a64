"""How many experts a step hits, and on which rank most of them, when some are more popular.

Popularity falls with the rank to a power, the skew (`MoeMlp.skew`). A skew of 0.69 gives the
busiest of 64 experts, 8 of them a token, 5.1 times the mean, as the busiest of OLMoE-1B-7B's had
of 4,471 tokens of GSM8K (layer 0, KaxitPandya/cerebras-assesment2).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmsim.specs import MoeMlp

Floats = NDArray[np.float64]

_MOST_TOKENS = 4096
"""As many tokens leave out less than one in a hundred experts, however unpopular."""

_DEALS = 400
"""Enough for the mean of the busiest rank's share to be known within 1%."""

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_ABOVE = (0.0, 0.564, 1.029, 1.424, 1.766, 2.070, 2.346)
"""Expected maximum of so many standard normal draws (order statistics)."""


def experts_hit(experts: int, active: int, tokens: Floats, skew: float = 0.0) -> Floats:
    """Return how many distinct experts a batch is expected to hit.

    Parameters
    ----------
    experts, active : int
        Experts, and how many of them a token visits.
    tokens : ndarray of float (n,) [tokens]
    skew : float

    Notes
    -----
    ``E (1 - (1 - k / E)^T)`` when all are alike, else ``sum_r (1 - (1 - q_r)^T)`` with q_r the
    share of tokens that visit the expert of rank r.
    """
    if not skew or active >= experts:
        return experts * (1.0 - (1.0 - active / experts) ** tokens)
    hits = _hits(experts, active, skew)
    return np.asarray(np.interp(tokens, np.arange(len(hits)), hits), dtype=np.float64)


@lru_cache(maxsize=32)
def _hits(experts: int, active: int, skew: float) -> Floats:
    """Experts that are hit by 0, 1, 2 ... tokens."""
    missed = np.log1p(-visited(experts, active, skew))
    return np.array([experts - np.exp(t * missed).sum() for t in range(_MOST_TOKENS + 1)])


def visited(experts: int, active: int, skew: float) -> Floats:
    """Return the share of tokens that visit each expert, the most popular first.

    Notes
    -----
    A token visits `active` different experts, so that no share is above one:
    ``1 - exp(-c rank^-skew)``, with the c that makes the shares add up, found by bisection.
    """
    popularity = np.arange(1.0, experts + 1.0) ** -skew
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = 0.5 * (low + high)
        if np.sum(-np.expm1(-middle * popularity)) < active:
            low = middle
        else:
            high = middle
    return np.asarray(-np.expm1(-high * popularity), dtype=np.float64)


def loads(moe: MoeMlp, ep: int, tokens: Floats) -> tuple[Floats, Floats]:
    """Return the experts hit and the rows of a rank that the others wait for.

    Parameters
    ----------
    moe : MoeMlp
    ep : int
        Ranks that the experts are dealt to.
    tokens : ndarray of float (n,) [tokens]

    Returns
    -------
    (ndarray, ndarray)

    Notes
    -----
    Without skew all ranks have the same. With it, experts lie on ranks without regard to their
    popularity: a rank has a hypergeometric number of those that are hit, of which the busiest has
    the maximum of as many normal draws. Its rows are the mean of many such deals: a few popular
    experts decide, which is no normal draw.
    """
    hit = experts_hit(moe.experts, moe.active_experts, tokens, moe.skew)
    rows = moe.active_experts * tokens
    if ep == 1 or not moe.skew or moe.active_experts >= moe.experts:
        return hit / ep, rows / ep
    own = moe.experts / ep
    drawn = np.sqrt(own * (moe.experts - own) / (moe.experts - 1.0))
    above = float(np.interp(np.log2(ep), np.log2(_RANKS), _ABOVE)) * drawn
    share = hit / moe.experts
    most_hit = own * share + above * np.sqrt(share * (1.0 - share))
    share_of_rows = _busiest_share(moe.experts, moe.active_experts, moe.skew, ep)
    return np.minimum(most_hit, own), share_of_rows * rows


@lru_cache(maxsize=64)
def _busiest_share(experts: int, active: int, skew: float, ep: int) -> float:
    """Share of all rows that the busiest rank has, in the mean of `_DEALS` deals of experts."""
    shares = visited(experts, active, skew)[: experts // ep * ep]
    random = np.random.default_rng(0)
    deals = [random.permutation(shares).reshape(ep, -1).sum(axis=1).max() for _ in range(_DEALS)]
    return float(np.mean(deals)) / active
