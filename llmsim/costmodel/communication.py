"""Seconds of collectives: by algorithm, inside a node and across nodes.

An engine's libraries pick the fastest algorithm they have for each size, so the price is the
minimum over the enabled ones. A group size that was measured on a link is priced by its measured
lines, one between two measured sizes by lines between theirs, any other by textbook forms over
the link's point-to-point figures. Across nodes every GPU has a link of its own out (a rail): the
collective runs inside each node and between nodes at once, piece by piece.

References
----------
Ring, tree and their message counts: NCCL; Thakur, Rabenseifner and Gropp, 2005. One-shot and
two-shot: the custom all-reduce of TensorRT-LLM and vLLM, in nodes where every GPU reaches every
other, of 2 to 8 GPUs, and never across nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmsim.costmodel.operators import ACTIVATION_BYTES, Floats, OpTable
from llmsim.specs import (
    CollectiveLine,
    LinkCard,
    ModelSpec,
    MoeMlp,
    ParallelPlan,
    SoftmaxAttention,
)

MOST_CUSTOM_GPUS = 8
"""vLLM's custom all-reduce takes groups of 2, 4, 6 and 8 GPUs of one node."""

VARIANCE_BYTES = 8.0
"""Of one token: the variance of its queries and of its keys, 32 bits each [bytes]."""

ONE_NODE = 2**31

_MIB = 2**20
_BLACKWELL = {2: 64 * _MIB, 4: 32 * _MIB, 8: _MIB}
FUSED_NORM_BYTES: Mapping[str, Mapping[int, int]] = {
    "sm90": {2: 64 * _MIB, 4: 2 * _MIB, 8: _MIB // 2},
    "sm100": _BLACKWELL,
    "sm103": _BLACKWELL,
}
"""Largest all-reduce that does the residual and norm behind it, by architecture and GPUs [bytes]:
vLLM 0.16.0, ``FI_ALLREDUCE_FUSION_MAX_SIZE_MB``; on B300 as on B200 (pull 37755). TensorRT-LLM's
own limits were not found; its are taken to be the same."""


def fused_tokens(hidden: int, architecture: str, gpus: int) -> int:
    """Return the largest step whose norms the all-reduces of tensor parallelism do [tokens].

    Parameters
    ----------
    hidden : int
    architecture : str
        Of the GPU, such as ``sm90``.
    gpus : int [GPUs]
        Of the group.
    """
    most = FUSED_NORM_BYTES.get(architecture, {}).get(gpus, 0)
    return most // int(ACTIVATION_BYTES * hidden)


@dataclass(frozen=True, slots=True)
class Network:
    """What connects the GPUs of a replica.

    Parameters
    ----------
    inside : LinkCard
        Between GPUs of one node.
    node_gpus : int [GPUs]
        Of one node.
    between : LinkCard or None
        From each GPU to other nodes; None where there is one node.
    """

    inside: LinkCard
    node_gpus: int = ONE_NODE
    between: LinkCard | None = None

    def split(self, gpus: int) -> tuple[int, int]:
        """Return how a group lies: GPUs in each node, and nodes.

        Parameters
        ----------
        gpus : int [GPUs]
            At most one node's, or whole nodes.
        """
        if gpus <= self.node_gpus:
            return gpus, 1
        return self.node_gpus, -(-gpus // self.node_gpus)


@dataclass(frozen=True, slots=True)
class Way:
    """One algorithm for a collective, at several sizes.

    Parameters
    ----------
    algorithm : str
    messages : int [messages]
        That each GPU sends, one after another; 0 where a measured line does not say.
    fixed_s : float [s]
        At size 0.
    seconds : ndarray (n,) [s]
    """

    algorithm: str
    messages: int
    fixed_s: float
    seconds: Floats


Form = Callable[[LinkCard, int, Floats], Iterator[Way]]


def _way(algorithm: str, messages: int, alpha_s: float, sent: Floats, link: LinkCard) -> Way:
    fixed = messages * alpha_s
    return Way(algorithm, messages, fixed, fixed + sent / link.p2p_bytes_per_s)


def _all_reduce_forms(link: LinkCard, gpus: int, size: Floats) -> Iterator[Way]:
    """Ring, tree; one-shot and two-shot where the link has a library that does them."""
    alpha = link.p2p_alpha_s
    yield _way("ring", 2 * (gpus - 1), alpha, 2.0 * (gpus - 1) / gpus * size, link)
    yield _way("tree", 2 * math.ceil(math.log2(gpus)), alpha, 2.0 * size, link)
    if gpus <= MOST_CUSTOM_GPUS and any(line.algorithm == "custom" for line in link.all_reduce):
        yield _way("one-shot", 1, alpha, (gpus - 1.0) * size, link)
        yield _way("two-shot", 2, alpha, 2.0 * (gpus - 1) / gpus * size, link)


def _gather_forms(link: LinkCard, gpus: int, size: Floats) -> Iterator[Way]:
    yield _way("ring", gpus - 1, link.p2p_alpha_s, (gpus - 1) / gpus * size, link)


def _exchange_forms(link: LinkCard, gpus: int, size: Floats) -> Iterator[Way]:
    """Messages to different GPUs overlap, so that only one latency shows."""
    sent = (gpus - 1) / gpus * size
    direct = _way("direct", 1, link.p2p_alpha_s, sent, link)
    yield Way("direct", gpus - 1, direct.fixed_s, direct.seconds)


FORMS: dict[str, tuple[Form, float]] = {
    "all_reduce": (_all_reduce_forms, 2.0),
    "all_gather": (_gather_forms, 1.0),
    "reduce_scatter": (_gather_forms, 1.0),
    "all_to_all": (_exchange_forms, 1.0),
}
"""By collective: its textbook forms, and how often ``(n - 1) / n`` of its size is on the bus."""


def lines_of(link: LinkCard, kind: str, gpus: int) -> tuple[CollectiveLine, ...]:
    """Return the measured lines of a group, or lines between two measured group sizes.

    Parameters
    ----------
    link : LinkCard
    kind : str
        A key of `FORMS`.
    gpus : int [GPUs]

    Returns
    -------
    tuple of CollectiveLine
        Empty where the group is smaller or larger than any measured one.
    """
    known: tuple[CollectiveLine, ...] = getattr(link, kind)
    found = []
    for algorithm in dict.fromkeys(line.algorithm for line in known):
        own = sorted((one for one in known if one.algorithm == algorithm), key=lambda one: one.gpus)
        below = [line for line in own if line.gpus <= gpus]
        above = [line for line in own if line.gpus >= gpus]
        if below and above:
            found.append(_between(below[-1], above[0], gpus))
    return tuple(found)


def _between(low: CollectiveLine, high: CollectiveLine, gpus: int) -> CollectiveLine:
    """Return the line of a group between two: geometric in all terms over log2 of the group."""
    if low.gpus == high.gpus:
        return low
    share = math.log2(gpus / low.gpus) / math.log2(high.gpus / low.gpus)

    def mean(a: float, b: float) -> float:
        return math.exp((1.0 - share) * math.log(a) + share * math.log(b))

    return CollectiveLine(
        low.algorithm,
        gpus,
        mean(low.alpha_s, high.alpha_s),
        mean(low.bus_bytes_per_s, high.bus_bytes_per_s),
        mean(low.norm, high.norm),
    )


def ways_inside(kind: str, size_bytes: Floats, link: LinkCard, gpus: int) -> list[Way]:
    """Return what a group on one link can use.

    Parameters
    ----------
    kind : str
        A key of `FORMS`.
    size_bytes : ndarray of float (n,) [bytes]
        The whole tensor: before an all-reduce or a reduce-scatter, after an all-gather; what one
        GPU holds before an all-to-all.
    link : LinkCard
    gpus : int [GPUs]
    """
    forms, rounds = FORMS[kind]
    lines = lines_of(link, kind, gpus)
    if not lines:
        return list(forms(link, gpus, size_bytes))
    bus = rounds * (gpus - 1) / gpus * size_bytes
    return [_measured(line, bus) for line in lines]


def _measured(line: CollectiveLine, bus_bytes: Floats) -> Way:
    transfer = bus_bytes / line.bus_bytes_per_s
    seconds = (line.alpha_s**line.norm + transfer**line.norm) ** (1.0 / line.norm)
    return Way(line.algorithm, 0, line.alpha_s, seconds)


def ways(kind: str, size_bytes: Floats, network: Network, gpus: int) -> list[Way]:
    """Return what a group can use, across nodes where it is larger than one.

    Parameters
    ----------
    kind, size_bytes
        See `ways_inside`.
    network : Network
    gpus : int [GPUs]

    Notes
    -----
    Across nodes, pieces are inside one node while others are between nodes, so the latencies add
    up and of the transfers the longer counts. Each of a node's ``g`` GPUs carries ``1 / g`` of
    the tensor over its own rail; of an all-to-all, the share that goes to other nodes. The
    custom all-reduce of engines does not leave a node.
    """
    local, nodes = network.split(gpus)
    if nodes == 1:
        return ways_inside(kind, size_bytes, network.inside, gpus)
    if network.between is None:
        raise ValueError(f"{gpus} GPUs over {nodes} nodes without a link between these")
    rail = size_bytes if kind == "all_to_all" else size_bytes / local
    outer = ways_inside(kind, rail, network.between, nodes)
    if local == 1:
        return outer
    of_node = size_bytes * (local / gpus) if kind == "all_to_all" else size_bytes
    inner = [
        way
        for way in ways_inside(kind, of_node, network.inside, local)
        if way.algorithm not in ("custom", "one-shot", "two-shot")
    ]
    return [_joined(near, far) for near in inner for far in outer]


def _joined(near: Way, far: Way) -> Way:
    fixed = near.fixed_s + far.fixed_s
    moving = np.maximum(near.seconds - near.fixed_s, far.seconds - far.fixed_s)
    name = f"{near.algorithm}+{far.algorithm}"
    return Way(name, near.messages + far.messages, fixed, fixed + moving)


def all_reduce(name: str, count: int, size_bytes: Floats, network: Network, gpus: int) -> OpTable:
    """Price an all-reduce: of tensor parallelism, twice per layer.

    Parameters
    ----------
    name : str
    count : int
        Times per step.
    size_bytes : ndarray of float (n,) [bytes]
        Size of the tensor on each GPU.
    network : Network
    gpus : int [GPUs]
    """
    return _cheapest("all_reduce", name, count, size_bytes, network, gpus)


def token_collectives(
    model: ModelSpec, plan: ParallelPlan, tokens: Floats, network: Network
) -> Iterator[OpTable]:
    """Yield the all-reduces of a step's tokens: one behind each mixer and each MLP, and more.

    Parameters
    ----------
    model : ModelSpec
    plan : ParallelPlan
        With more than one GPU in a rank; where there are several ranks, what experts give comes
        back another way (`llmsim.costmodel.exchange`).
    tokens : ndarray of float (n,) [tokens]
    network : Network

    Notes
    -----
    A norm over all heads of a layer needs one more, a small one (vLLM ``minimax_m2.py``).
    """
    tp = plan.tp
    parts = 0
    for layer in model.layers:
        added = layer.mlp is not None and not (plan.dp > 1 and isinstance(layer.mlp, MoeMlp))
        parts += layer.count * ((layer.mixer is not None) + added)
    yield all_reduce("all-reduce", parts, ACTIVATION_BYTES * model.hidden * tokens, network, tp)
    normed = sum(
        layer.count
        for layer in model.layers
        if isinstance(layer.mixer, SoftmaxAttention) and layer.mixer.layer_norm
    )
    if normed:
        yield all_reduce("qk all-reduce", normed, VARIANCE_BYTES * tokens, network, tp)


def all_gather(name: str, count: int, size_bytes: Floats, network: Network, gpus: int) -> OpTable:
    """Price an all-gather of a tensor that is `size_bytes` when whole; see `all_reduce`."""
    return _cheapest("all_gather", name, count, size_bytes, network, gpus)


def reduce_scatter(
    name: str, count: int, size_bytes: Floats, network: Network, gpus: int
) -> OpTable:
    """Price a reduce-scatter of a tensor that is `size_bytes` on each GPU; see `all_reduce`."""
    return _cheapest("reduce_scatter", name, count, size_bytes, network, gpus)


def all_to_all(name: str, count: int, size_bytes: Floats, network: Network, gpus: int) -> OpTable:
    """Price an all-to-all in which each GPU holds `size_bytes` for all of them; see `all_reduce`.

    Notes
    -----
    Of expert parallelism, dispatch and combine: ``tokens x topk x hidden`` values of each rank.
    """
    return _cheapest("all_to_all", name, count, size_bytes, network, gpus)


def send(name: str, count: int, size_bytes: Floats, link: LinkCard) -> OpTable:
    """Price one message between neighbours: of pipeline parallelism, once per stage boundary.

    Parameters
    ----------
    name : str
    count : int
        Messages, one after another.
    size_bytes : ndarray of float (n,) [bytes]
    link : LinkCard
        Inside a node or between nodes.
    """
    seconds = link.p2p_alpha_s + size_bytes / link.p2p_bytes_per_s
    return _table(name, count, size_bytes, np.full_like(seconds, link.p2p_alpha_s), seconds)


def pass_around(name: str, count: int, size_bytes: Floats, network: Network, gpus: int) -> OpTable:
    """Price a ring in which every GPU sees all others' blocks of `size_bytes`.

    Notes
    -----
    Of context parallelism, the KV of a prefill: ``n - 1`` rounds, each as slow as its slowest
    link. What hides behind attention is for the caller to say.
    """
    _, nodes = network.split(gpus)
    slowest = network.inside if nodes == 1 or network.between is None else network.between
    return send(name, count * (gpus - 1), size_bytes, slowest)


def _cheapest(
    kind: str, name: str, count: int, size_bytes: Floats, network: Network, gpus: int
) -> OpTable:
    _, rounds = FORMS[kind]
    sent = rounds * (gpus - 1) / gpus * size_bytes
    found: Sequence[Way] = ways(kind, size_bytes, network, gpus)
    times = np.stack([way.seconds for way in found])
    best = times.argmin(axis=0)
    fixed = np.array([way.fixed_s for way in found])[best]
    return _table(name, count, sent, fixed, times.min(axis=0))


def _table(name: str, count: int, sent: Floats, fixed: Floats, seconds: Floats) -> OpTable:
    zero = np.zeros_like(seconds)
    return OpTable(name, count, "network", zero, sent, fixed, zero, seconds - fixed, seconds)
