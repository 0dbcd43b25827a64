"""Seconds of the collectives of tensor parallelism.

An engine picks the fastest algorithm it has for each size, so the price is the minimum over the
measured ones. A group size without a measurement falls back to the ring formula over the link's
point-to-point figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmsim.costmodel.operators import ACTIVATION_BYTES, Floats, OpTable
from llmsim.specs import AllReducePrior, LinkCard, ModelSpec, SoftmaxAttention

VARIANCE_BYTES = 8.0
"""Of one token: the variance of its queries and of its keys, 32 bits each [bytes]."""


def algorithms(link: LinkCard, gpus: int) -> tuple[AllReducePrior, ...]:
    """Return the all-reduce lines for a group, measured ones first.

    Notes
    -----
    Ring: ``2 (n - 1) alpha + 2 (n - 1) / n bytes / bw``, used where nothing was measured.
    """
    measured = tuple(prior for prior in link.all_reduce if prior.gpus == gpus)
    ring = AllReducePrior("ring", gpus, 2 * (gpus - 1) * link.p2p_alpha_s, link.p2p_bytes_per_s)
    return measured or (ring,)


def all_reduce(name: str, count: int, size_bytes: Floats, link: LinkCard, gpus: int) -> OpTable:
    """Price an all-reduce.

    Parameters
    ----------
    name : str
    count : int
        Times per step.
    size_bytes : ndarray of float (n,) [bytes]
        Size of the tensor on each GPU.
    link : LinkCard
    gpus : int [GPUs]
    """
    return _collective(name, count, size_bytes, 2.0 * (gpus - 1) / gpus, link, gpus)


def token_collectives(
    model: ModelSpec, tp: int, tokens: Floats, link: LinkCard
) -> Iterator[OpTable]:
    """Yield the all-reduces of a step's tokens: one behind each mixer and each MLP, and more.

    Parameters
    ----------
    model : ModelSpec
    tp : int [GPUs]
        Above 1.
    tokens : ndarray of float (n,) [tokens]
    link : LinkCard

    Notes
    -----
    A norm over all heads of a layer needs one more, a small one (vLLM ``minimax_m2.py``).
    """
    parts = sum(
        layer.count * ((layer.mixer is not None) + (layer.mlp is not None))
        for layer in model.layers
    )
    yield all_reduce("all-reduce", parts, ACTIVATION_BYTES * model.hidden * tokens, link, tp)
    normed = sum(
        layer.count
        for layer in model.layers
        if isinstance(layer.mixer, SoftmaxAttention) and layer.mixer.layer_norm
    )
    if normed:
        yield all_reduce("qk all-reduce", normed, VARIANCE_BYTES * tokens, link, tp)


def all_gather(name: str, count: int, size_bytes: Floats, link: LinkCard, gpus: int) -> OpTable:
    """Price an all-gather of a tensor that is `size_bytes` when whole.

    Notes
    -----
    Half the traffic of an all-reduce, at the same latency and bus bandwidth.
    """
    return _collective(name, count, size_bytes, (gpus - 1) / gpus, link, gpus)


def _collective(
    name: str, count: int, size_bytes: Floats, share: float, link: LinkCard, gpus: int
) -> OpTable:
    sent = share * size_bytes
    ways = algorithms(link, gpus)
    times = np.stack([way.alpha_s + sent / way.bus_bytes_per_s for way in ways])
    best = times.argmin(axis=0)
    alpha = np.array([way.alpha_s for way in ways])[best]
    seconds = times.min(axis=0)
    zero = np.zeros_like(sent)
    return OpTable(name, count, "network", zero, sent, alpha, zero, seconds - alpha, seconds)
