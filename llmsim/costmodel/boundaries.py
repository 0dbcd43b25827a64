"""Where a prefill step can be stopped: between operators or layers, found in closed form.

Layers of one kind take equally long, so the next boundary after an instant is a division over
layers and a search among the few operators of one: no event, and no work, for boundaries that
nobody stops at.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.attention import ChunkSums, MixerPrice, price_mixer, scaled_mixer
from llmsim.costmodel.communication import token_collectives
from llmsim.costmodel.contract import Chunk
from llmsim.costmodel.operators import Floats, OpTable, scaled
from llmsim.costmodel.roofline import RooflineCost
from llmsim.specs import LayerSpec, SoftmaxAttention

_LAST_OF_MIXER = ("o", "out_proj")
_TOGETHER = {"router": "experts", "top-k": "experts", "act": "down", "shared_act": "shared_down"}
"""Operators that run with the one behind them: nobody looks between these two."""


class StopPoints(Protocol):
    """The instants at which a prefill step can be stopped.

    Attributes
    ----------
    checks_ns : int [ns]
        What looking at all of them adds to a step that nobody stops.
    """

    @property
    def checks_ns(self) -> int:
        """What looking at all of them adds to a step that nobody stops [ns]."""
        ...

    def next_ns(self, chunks: Sequence[Chunk], logits: int, duration_ns: int, after_ns: int) -> int:
        """Return the first of them at or after an instant, from the start of the step [ns].

        Parameters
        ----------
        chunks : sequence of (new, past) [tokens]
            Of the step, which decodes nothing.
        logits : int [rows]
        duration_ns, after_ns : int [ns]
            Of the step, looking included; and the instant in it.
        """
        ...


class LayerKind:
    """Equal layers: what their operators take, in the order in which they run.

    Attributes
    ----------
    count : int [layers]
    parts : list of list of float (operators, tokens) [ns]
        Of one layer, prefill and decode attention left out.
    attention : int
        The operator that attention is part of.
    mixers : tuple of MixerPrice
        Of all `count` layers together.
    """

    def __init__(
        self, count: int, parts: list[list[float]], attention: int, mixers: tuple[MixerPrice, ...]
    ) -> None:
        self.count = count
        self.parts = parts
        self.attention = attention
        self.mixers = mixers

    def edges_ns(self, tokens: int, sums: ChunkSums) -> list[float]:
        """Return the ends of one layer's operators, from its start [ns]."""
        times = [part[tokens] for part in self.parts]
        for mixer in self.mixers:
            times[self.attention] += mixer.prefill_ns(sums) / mixer.layers
        return list(accumulate(times))


class RooflineStopPoints:
    """Boundaries between the operators, or layers, of a `RooflineCost`; implements `StopPoints`.

    Parameters
    ----------
    cost : RooflineCost
    by_operator : bool
        Between operators; else between layers.
    check_ns : int [ns]
        What one look at the flag takes.

    Notes
    -----
    Operators are those between which FlowPrefill (arXiv 2602.16603) looks: each matrix product,
    attention, and the experts with their router; norms, rotary embeddings and activations run with
    the operator behind them, collectives with the one before. Layers of one kind are taken to stand
    one behind the other. A step longer than its operators (where the host launches slower than the
    GPU runs, or a profile says so) stretches all of them alike.
    """

    def __init__(self, cost: RooflineCost, by_operator: bool, check_ns: int = 0) -> None:
        self._cost = cost
        self._check_ns = check_ns
        most = cost.limits.max_num_batched_tokens
        sizes = cost.padded(np.arange(most + 1.0))
        self._kinds = layer_kinds(cost, sizes)
        self._embed_ns, self._norm_ns, self._head_ns = model_ends(cost, sizes)
        self.looks = sum(kind.count * len(kind.parts) for kind in self._kinds)
        if not by_operator:
            self.looks = sum(kind.count for kind in self._kinds)
        self._by_operator = by_operator

    @property
    def checks_ns(self) -> int:
        """What all looks of a step take [ns]."""
        return self.looks * self._check_ns

    def next_ns(self, chunks: Sequence[Chunk], logits: int, duration_ns: int, after_ns: int) -> int:
        """Return the first boundary at or after an instant; see `StopPoints.next_ns`."""
        host, embed, layers, tail = self.spans_ns(chunks, logits)
        gpu = embed + tail + sum(count * edges[-1] for count, edges in layers)
        scale = (duration_ns - host - self.checks_ns) / gpu
        at = host + scale * embed
        if after_ns <= at:
            return min(duration_ns, max(after_ns, rounded(at)))
        check = self._check_ns
        for count, edges in layers:
            ends = [scale * edge + check * (number + 1) for number, edge in enumerate(edges)]
            if not self._by_operator:
                ends = [scale * edges[-1] + check]
            layer = ends[-1]
            if after_ns <= at + count * layer:
                done = min(count - 1, int((after_ns - at) / layer))
                at += done * layer
                found = ends[min(bisect_left(ends, after_ns - at), len(ends) - 1)]
                return min(duration_ns, max(after_ns, rounded(at + found)))
            at += count * layer
        return duration_ns

    def spans_ns(
        self, chunks: Sequence[Chunk], logits: int
    ) -> tuple[float, float, list[tuple[int, list[float]]], float]:
        """Return what a step consists of, in order [ns].

        Returns
        -------
        host : float [ns]
            What the host does before the GPU starts.
        embed : float [ns]
        layers : list of (count, ends)
            Of each kind of layer, the ends of its operators from the start of a layer [ns].
        tail : float [ns]
            What comes behind the last layer.
        """
        cost = self._cost
        tokens = sum(new for new, _ in chunks)
        host, _ = cost.host_ns(tokens, 0, len(chunks))
        sums = cost.chunk_sums(chunks)
        layers = [(kind.count, kind.edges_ns(tokens, sums)) for kind in self._kinds]
        tail = self._norm_ns[tokens] + (self._head_ns[logits] if logits else 0.0)
        return host, self._embed_ns[tokens], layers, tail


def layer_kinds(cost: RooflineCost, sizes: Floats) -> list[LayerKind]:
    """Tabulate the operators of every kind of layer.

    Parameters
    ----------
    cost : RooflineCost
    sizes : ndarray of float (n,) [tokens]
        As computed, graph padding included.
    """
    return [_kind_of(cost, layer, sizes) for layer in cost.model.layers]


def model_ends(cost: RooflineCost, sizes: Floats) -> tuple[list[float], list[float], list[float]]:
    """Tabulate what runs before the first layer and behind the last.

    Parameters
    ----------
    cost : RooflineCost
    sizes : ndarray of float (n,) [tokens]
        As computed, graph padding included.

    Returns
    -------
    tuple of list of float [ns]
        Embedding and final norm by tokens; head by rows, up to the most requests of a step.
    """
    ends: dict[str, list[float]] = {
        table.name: (NS_PER_S * table.seconds).tolist()
        for table in cost.token_operators(sizes)
        if table.name in ("embed", "final norm")
    }
    rows = np.arange(cost.limits.max_num_seqs + 1.0)
    heads = sum((table.seconds for table in cost.head_tables(rows)), np.zeros_like(rows))
    return ends["embed"], ends["final norm"], (NS_PER_S * heads).tolist()


def _kind_of(cost: RooflineCost, layer: LayerSpec, sizes: Floats) -> LayerKind:
    """Tabulate the operators of one kind of layer, by tokens."""
    tables = [scaled(table, cost.scales, cost.gpu) for table in cost.layer_tables(layer, sizes)]
    order = _order(cost, layer, [table.name for table in tables])
    times = {name: np.zeros_like(sizes) for name in order}
    for table in tables:
        per_layer = NS_PER_S * table.seconds * table.count / layer.count
        if table.name == "norm":  # one before the mixer, one before the MLP
            firsts = _firsts(layer, order)
            for name in firsts:
                times[name] += per_layer / len(firsts)
        else:
            times[_place(table.name, order)] += per_layer
    for name, table in _collectives(cost, layer, order, sizes):
        times[name] += NS_PER_S * table.seconds
    mixers = tuple(
        scaled_mixer(price, cost.scales, cost.gpu)
        for price in price_mixer(layer, cost.gpu, cost.plan.tp, cost.kv_dtype)
    )
    attention = order.index("attention") if "attention" in order else 0
    parts: list[list[float]] = [times[name].tolist() for name in order]
    return LayerKind(layer.count, parts, attention, mixers)


def _order(cost: RooflineCost, layer: LayerSpec, names: Sequence[str]) -> list[str]:
    """Return the operators of a layer between which somebody may look, in running order."""
    mixer: list[str] = []
    if layer.mixer is not None:
        linears = layer.mixer.linears(cost.model.hidden, cost.plan.tp)
        mixer = [part.name for part in linears]
    last = [name for name in mixer if name in _LAST_OF_MIXER]
    first = [name for name in mixer if name not in last and name in names]
    aside = {*mixer, *_TOGETHER, "norm", "conv+gate", "rope+kv write", "qk variance", "qk norm"}
    rest = [name for name in names if name not in aside]
    return [*first, *(["attention"] if mixer else []), *last, *rest]


def _place(name: str, order: Sequence[str]) -> str:
    """Return the operator that another one runs with."""
    if name in order:
        return name
    return _TOGETHER.get(name, "attention")


def _firsts(layer: LayerSpec, order: Sequence[str]) -> list[str]:
    """Return the operators that a norm comes before."""
    mlp = [name for name in order if name in ("gate_up", "up", "experts")]
    return ([order[0]] if layer.mixer is not None else []) + mlp[:1]


def _collectives(
    cost: RooflineCost, layer: LayerSpec, order: Sequence[str], sizes: Floats
) -> Iterator[tuple[str, OpTable]]:
    """Yield the collectives of one layer, each with the operator that it comes behind."""
    if cost.network is None or cost.plan.tp == 1:
        return
    behind = [name for name in order if name in _LAST_OF_MIXER]
    if layer.mlp is not None:
        behind.append(order[-1])
    for table in token_collectives(cost.model, cost.plan, sizes, cost.network):
        table = scaled(table, cost.scales, cost.gpu)
        if table.name == "all-reduce":
            for name in behind:
                yield name, table
        elif isinstance(layer.mixer, SoftmaxAttention) and layer.mixer.layer_norm:
            yield "attention", table
