"""What a lane's steps take of the GPU that it shares: SMs and memory bandwidth.

A *lane* is a process that runs its own steps on a GPU beside others, limited to a share of the
SMs. Alone, it is priced by a cost model bound to that share of the GPU. Beside others, work is a
fluid that needs SMs and bandwidth in a fixed ratio: when the needs of all lanes add up to more
than there is, all of them slow down alike, until the scarcer of the two is just used up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmsim.core.units import NS_PER_S
from llmsim.costmodel.contract import Chunk
from llmsim.costmodel.operators import Floats, OpTable
from llmsim.costmodel.roofline import RooflineCost


@dataclass(frozen=True, slots=True)
class Use:
    """What work takes of a whole GPU while it runs alone at its lane's share.

    Parameters
    ----------
    sm_frac : float
        Share of all SMs that is busy for it.
    bandwidth_frac : float
        Share of the memory bandwidth.
    """

    sm_frac: float
    bandwidth_frac: float


IDLE = Use(0.0, 0.0)


class LaneUse(Protocol):
    """Says what the steps of a lane take; bound to the lane's share."""

    def of(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, logits: int, alone_ns: float
    ) -> Use:
        """Return what a step takes.

        Parameters
        ----------
        chunks, decode, padded_tokens, logits
            As `StepCost.step_ns` got them.
        alone_ns : float [ns]
            The step's price.
        """
        ...


def pace_of(uses: Sequence[Use]) -> float:
    """Return how fast lanes run beside one another, as a factor on the speed of each alone.

    Parameters
    ----------
    uses : sequence of Use
        Of the work under way in each lane.

    Returns
    -------
    float
        In (0, 1]: 1 while neither SMs nor bandwidth are asked for more than there is.
    """
    sms = sum(use.sm_frac for use in uses)
    bandwidth = sum(use.bandwidth_frac for use in uses)
    return 1.0 / max(1.0, sms, bandwidth)


class RooflineUse:
    """Implements `LaneUse` with the operators that a `RooflineCost` is made of.

    Parameters
    ----------
    cost : RooflineCost
        Bound to ``gpu.shared(share_frac)``.
    share_frac : float

    Notes
    -----
    Time that an operator would take by compute alone is time in which all SMs of the lane are
    busy; time by memory alone is time in which all bandwidth of the lane is. A memory-bound kernel
    keeps as many SMs busy as draw its bandwidth (`bandwidth_sm_frac` of the card for all of it).
    Collectives take neither.
    """

    def __init__(self, cost: RooflineCost, share_frac: float) -> None:
        self._cost = cost
        self._share = share_frac
        self._bandwidth = cost.gpu.bandwidth_frac(share_frac)
        limits = cost.limits
        top = limits.max_num_batched_tokens + limits.max_num_seqs
        tokens = cost.padded(np.arange(top + 1.0))
        rows = np.arange(limits.max_num_seqs + 1.0)
        self._tokens = _limits_ns(cost.token_operators, tokens)
        self._head = _limits_ns(cost.head_tables, rows)
        peak, bandwidth = cost.gpu.peak_flops_per_s, cost.gpu.memory_bytes_per_s
        self._compute_slope = self._memory_slope = 0.0
        for mixer in cost.mixers:
            layers = mixer.layers * NS_PER_S
            compute = layers * mixer.decode_flops.padded / peak[mixer.dtype]
            memory = layers * mixer.decode_bytes.padded / bandwidth
            self._compute_slope += compute
            self._memory_slope += memory if compute > memory else mixer.decode_ns.padded

    def of(
        self, chunks: Sequence[Chunk], decode: int, padded_tokens: int, logits: int, alone_ns: float
    ) -> Use:
        """Return what a step takes; see `LaneUse.of`."""
        tokens = decode + sum(new for new, _ in chunks)
        computes, moves = self._tokens
        token = min(tokens, len(computes) - 1)
        head_computes, head_moves = self._head
        head = min(logits, len(head_computes) - 1)
        compute = computes[token] + head_computes[head] + self._compute_slope * padded_tokens
        memory = moves[token] + head_moves[head] + self._memory_slope * padded_tokens
        if chunks:
            sums = self._cost.chunk_sums(chunks)
            for mixer in self._cost.mixers:
                by_compute, by_memory = mixer.limits_ns(sums)
                compute += by_compute
                memory += by_memory
        bandwidth = self._bandwidth * min(1.0, memory / alone_ns)
        busy = self._share * min(1.0, compute / alone_ns)
        return Use(max(busy, self._cost.gpu.bandwidth_sm_frac * bandwidth), bandwidth)


def _limits_ns(
    operators: Callable[[Floats], Iterator[OpTable]], sizes: Floats
) -> tuple[list[float], list[float]]:
    """Return by size what all operators would take by compute and by memory alone [ns]."""
    compute, memory = np.zeros_like(sizes), np.zeros_like(sizes)
    for table in operators(sizes):
        if table.dtype != "network":
            compute += table.count * table.compute_s
            memory += table.count * table.memory_s
    compute[sizes == 0] = memory[sizes == 0] = 0.0
    return (compute * NS_PER_S).tolist(), (memory * NS_PER_S).tolist()
