"""How many experts a step hits, and on which rank most of them, when some are more popular.

Popularity falls with the rank to a power, the skew (`MoeMlp.skew`). A skew of 0.69 gives the
busiest of 64 experts, 8 of them a token, 5.1 times the mean, as the busiest of OLMoE-1B-7B's had
of 4,471 tokens of GSM8K (layer 0, KaxitPandya/cerebras-assesment2). Dealt out over 32 ranks, 256
experts of such popularity give the busiest rank 2.56 times the mean; DeepSeek-R1's gave it 2.56
times in the mean over layers and steps, 1.5 to 3.5 by layer, and 1.12 times on 36 ranks with 32
copies by EPLB, where chance alone makes 1.06 (TensorRT-LLM, examples/wide_ep/ep_load_balancer).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.expert_balance import copies_of, packed
from llmsim.specs import MoeMlp, ParallelPlan

Floats = NDArray[np.float64]

_MOST_TOKENS = 4096
"""As many tokens leave out less than one in a hundred experts, however unpopular."""

_DEALS = 400
"""Enough for the mean of the busiest rank's share to be known within 1%."""

_SURE = 1.0 - 1e-12
"""Share of tokens above which an expert is hit by all."""

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


def loads(moe: MoeMlp, plan: ParallelPlan, tokens: Floats) -> tuple[Floats, Floats]:
    """Return the experts hit and the rows of a rank that the others wait for.

    Parameters
    ----------
    moe : MoeMlp
    plan : ParallelPlan
        Ranks that the experts are dealt to, copies of them, and whether they are balanced.
    tokens : ndarray of float (n,) [tokens]

    Returns
    -------
    (ndarray, ndarray)

    Notes
    -----
    Without skew or copies all ranks have the same. With skew, experts lie on ranks without regard
    to their popularity: a rank has a hypergeometric number of those that are hit, of which the
    busiest has the maximum of as many normal draws. Its rows are the mean of many such deals: a few
    popular experts decide, which is no normal draw.

    Copies of an expert share its tokens evenly, and each of them is read by whom it is hit. Without
    balancing the first experts by number have them, whoever is popular, as in SGLang with
    ``--ep-num-redundant-experts`` and no ``--enable-eplb``. Balanced experts lie as `copies_of` and
    `packed` say, of a popularity that is taken as known and standing still: a real balancer counts
    for some time and moves experts then, which is not priced. Chance counts in their rows, which
    are never more than without balancing, where chance is left out beside what few experts do.
    """
    ep, spare = plan.ep, plan.spare_experts
    key = (moe.experts, moe.active_experts, moe.skew, spare)
    hit = _slots_hit(moe, spare, tokens)
    rows = moe.active_experts * tokens
    if ep == 1 or moe.active_experts >= moe.experts or not (moe.skew or spare):
        return hit / ep, rows / ep
    slots = moe.experts + spare
    own = slots / ep
    drawn = np.sqrt(own * (slots - own) / (slots - 1.0))
    share = hit / slots
    most_hit = own * share + _above(ep) * drawn * np.sqrt(share * (1.0 - share))
    by_number = _busiest_share(*key, ep) * rows
    if not plan.expert_balancing:
        return np.minimum(most_hit, own), by_number
    most, mean, spread = _balanced(*key, ep)
    chance = _above(ep) * np.sqrt(tokens)[:, None] * spread
    return (
        np.interp(tokens, np.arange(len(most)), most),
        np.minimum((tokens[:, None] * mean + chance).max(axis=1), by_number),
    )


def _above(ep: int) -> float:
    """Return the expected maximum of so many standard normal draws."""
    return float(np.interp(np.log2(ep), np.log2(_RANKS), _ABOVE))


def _slots_hit(moe: MoeMlp, spare: int, tokens: Floats) -> Floats:
    """Return how many experts, and copies of any of them, are hit on all ranks."""
    if not spare:
        return experts_hit(moe.experts, moe.active_experts, tokens, moe.skew)
    hits = _copies_hit(moe.experts, moe.active_experts, moe.skew, spare)
    return np.asarray(np.interp(tokens, np.arange(len(hits)), hits), dtype=np.float64)


@lru_cache(maxsize=32)
def _copies_hit(experts: int, active: int, skew: float, spare: int) -> Floats:
    """Experts and copies, of any experts, that are hit by 0, 1, 2 ... tokens."""
    every, more = divmod(spare, experts)
    shares = visited(experts, active, skew)
    hits = np.zeros(_MOST_TOKENS + 1)
    for copies, part in ((every + 1, experts - more), (every + 2, more)):
        missed = np.log1p(-np.minimum(shares / copies, _SURE))
        left = np.array([np.exp(t * missed).sum() for t in range(_MOST_TOKENS + 1)])
        hits += part / experts * copies * (experts - left)
    return hits


@lru_cache(maxsize=64)
def _busiest_share(experts: int, active: int, skew: float, spare: int, ep: int) -> float:
    """Share of all rows that the busiest rank has, in the mean of `_DEALS` deals of experts."""
    shares = visited(experts, active, skew)
    expert_of = np.arange((experts + spare) // ep * ep) % experts
    counts = np.bincount(expert_of, minlength=experts)[expert_of]
    random = np.random.default_rng(0)
    deals = [
        (random.permutation(shares)[expert_of] / counts).reshape(ep, -1).sum(axis=1).max()
        for _ in range(_DEALS)
    ]
    return float(np.mean(deals)) / active


@lru_cache(maxsize=64)
def _balanced(
    experts: int, active: int, skew: float, spare: int, ep: int
) -> tuple[Floats, Floats, Floats]:
    """Most slots hit on a rank by 0, 1, 2 ... tokens; mean and spread of a rank's rows per token.

    Ranks whose means are equal differ by chance: the fullest has the maximum of as many normal
    draws more than the mean, of slots hit and of rows.
    """
    shares = visited(experts, active, skew)
    counts = copies_of(shares, spare)
    each = np.repeat(shares / counts, counts)
    ranks = each[np.argsort(packed(each, ep), kind="stable")].reshape(ep, -1)
    # what one rank gets the others do not
    apart = np.sqrt((ranks.size - ranks.shape[1]) / (ranks.size - 1.0))
    missed = np.log1p(-np.minimum(ranks, _SURE))
    most = np.empty(_MOST_TOKENS + 1)
    for t in range(_MOST_TOKENS + 1):
        left = np.exp(t * missed)
        chance = _above(ep) * apart * np.sqrt((left * (1.0 - left)).sum(axis=1))
        most[t] = ((1.0 - left).sum(axis=1) + chance).max()
    spread = apart * np.sqrt((ranks * (1.0 - ranks)).sum(axis=1))
    return np.minimum(most, ranks.shape[1]), ranks.sum(axis=1), spread
