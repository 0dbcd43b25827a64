"""Which experts get copies and where these lie, by the rules of DeepSeek's balancer, EPLB."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def copies_of(loads: Floats, spare: int) -> Integers:
    """Return how often each expert is there, itself included.

    Parameters
    ----------
    loads : ndarray of float (experts,)
        Of each expert, in any unit.
    spare : int
        Copies beside the experts themselves.

    Notes
    -----
    Each next copy goes to the expert with the largest load per copy.

    References
    ----------
    https://github.com/deepseek-ai/EPLB, ``replicate_experts``; with one group and one node, which
    is what it does where groups do not divide into nodes.
    """
    counts = np.ones(len(loads), dtype=np.int64)
    for _ in range(spare):
        counts[np.argmax(loads / counts)] += 1
    return counts


def packed(loads: Floats, ranks: int) -> Integers:
    """Return the rank that each copy lies on; every rank holds as many.

    Parameters
    ----------
    loads : ndarray of float (copies,)
        Of each copy; `ranks` divides their number.
    ranks : int

    Notes
    -----
    The heaviest goes first, each onto the rank with the least load that has room.

    References
    ----------
    https://github.com/deepseek-ai/EPLB, ``balanced_packing``.
    """
    room = len(loads) // ranks
    weights, items = np.zeros(ranks), np.zeros(ranks, dtype=np.int64)
    rank_of = np.empty(len(loads), dtype=np.int64)
    for copy in np.argsort(-loads, kind="stable"):
        rank = int(np.argmin(np.where(items < room, weights, np.inf)))
        rank_of[copy] = rank
        weights[rank] += loads[copy]
        items[rank] += 1
    return rank_of
