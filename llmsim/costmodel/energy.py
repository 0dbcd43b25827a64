"""Joules of a step, by the three-point power model of a GPU.

A loaded GPU draws its idle power all the time. On top, an operator draws what memory-bound or
compute-bound kernels draw, whichever bounds it, for as long as it runs beyond its launch floor.
What is added up here is that part alone, called *active*; idle power times time is the rest.

The sums are those that the price is made of, so a stretch of decode steps costs O(1) as well.

References
----------
Power points are card data (`llmsim.specs.gpu.PowerPoints`): medians of kernels longer than 0.2 to
1 ms, from the power column of aiconfigurator tables (095f58a51) where the card says so. A law that
is continuous in the utilisations fits the same rows only to 25-30%, so no more than this is
claimed; single kernels are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from llmsim.core.integers import rounded
from llmsim.core.units import NS_PER_S
from llmsim.costmodel.attention import MixerPrice
from llmsim.costmodel.measured.cost import MeasuredCost
from llmsim.costmodel.operators import Floats, OpTable
from llmsim.costmodel.roofline import RooflineCost

_UJ_PER_W_NS = 1e-3  # a watt for a nanosecond is a nanojoule


class ActiveEnergy:
    """Energy above idle of the steps that a cost model prices, over all GPUs of a replica.

    Parameters
    ----------
    cost : RooflineCost
    measured : MeasuredCost or None
        What prices the steps in place of `cost`, its base: then times are those of the profile,
        and whichever limit is the longer by the roofline says which power they draw.

    Attributes
    ----------
    idle_w : float [W]
        Drawn all the time by the replica's GPUs, model loaded.

    Notes
    -----
    Decode attention is memory-bound or compute-bound by its own slopes, prefill attention counts
    as compute-bound. Collectives count as idle: copy engines and a few SMs are busy.
    """

    def __init__(self, cost: RooflineCost, measured: MeasuredCost | None = None) -> None:
        self._cost = cost
        self._measured = measured
        power, gpus = cost.gpu.power, cost.plan.gpus
        self.idle_w = gpus * power.idle_w
        self._compute_uj = gpus * (power.compute_w - power.idle_w) * _UJ_PER_W_NS
        self._memory_uj = gpus * (power.memory_w - power.idle_w) * _UJ_PER_W_NS
        limits = cost.limits
        top = limits.max_num_batched_tokens + limits.max_num_seqs
        tokens = cost.padded(np.arange(top + 1.0))
        rows = np.arange(limits.max_num_seqs + 1.0)
        self._terms: dict[int, tuple[float, float, float]] = {}
        if measured is not None:
            self._token_uj = self._table(measured.token_operators, tokens)
            self._head_uj = self._table(measured.head_tables, rows)
            self._launch_ns = measured.prefill_launch_ns
            self._request_uj = self._padded_uj = self._windowed_uj = 0.0
            return
        self._token_uj = self._table(cost.token_operators, tokens)
        self._head_uj = self._table(cost.head_tables, rows)
        self._request_uj = self._padded_uj = self._windowed_uj = 0.0
        self._launch_ns = float(sum(mixer.prefill_fixed_ns for mixer in cost.mixers))
        for mixer in cost.mixers:
            per_ns = self._decode_uj_per_ns(mixer)
            self._request_uj += per_ns * mixer.decode_ns.request
            self._padded_uj += per_ns * mixer.decode_ns.padded
            self._windowed_uj += per_ns * mixer.decode_ns.windowed

    def _table(
        self, operators: Callable[[Floats], Iterator[OpTable]], sizes: Floats
    ) -> list[float]:
        """Return the active energy of all operators, by size [uJ]."""
        energy = np.zeros_like(sizes)
        for table in operators(sizes):
            if table.dtype != "network":
                bound = np.where(
                    table.compute_s > table.memory_s, self._compute_uj, self._memory_uj
                )
                energy += table.count * np.maximum(0.0, table.seconds - table.fixed_s) * bound
        energy[sizes == 0] = 0.0
        told: list[float] = (energy * NS_PER_S).tolist()
        return told

    def _decode_uj_per_ns(self, mixer: MixerPrice) -> float:
        gpu = self._cost.gpu
        compute = sum(mixer.decode_flops) / gpu.peak_flops_per_s[mixer.dtype]
        memory = sum(mixer.decode_bytes) / gpu.memory_bytes_per_s
        return self._compute_uj if compute > memory else self._memory_uj

    def decode_uj(self, batch: int, ticks: int, padded_sum: int, windowed_sum: int) -> int:
        """Return the active energy of decode steps of one batch [uJ].

        Parameters
        ----------
        batch : int [requests]
        ticks : int [steps]
        padded_sum, windowed_sum : int [tokens]
            Padded context sums, added up over the steps.
        """
        if batch < len(self._head_uj):  # the shorter table
            rest = self._token_uj[batch] + self._head_uj[batch]
        else:
            rest = self._at(self._token_uj, batch) + self._at(self._head_uj, batch)
        fixed, padded, windowed = self._attention(batch)
        return rounded(ticks * (rest + fixed) + padded * padded_sum + windowed * windowed_sum)

    def decode_terms(self, batch: int) -> tuple[float, float, float]:
        """Return one step of decodes: at no context, per padded, per windowed token [uJ].

        Parameters
        ----------
        batch : int [requests]
        """
        fixed, padded, windowed = self._attention(batch)
        rest = self._at(self._token_uj, batch) + self._at(self._head_uj, batch)
        return rest + fixed, padded, windowed

    def _attention(self, batch: int) -> tuple[float, float, float]:
        """Return decode attention of a batch: at no context, per padded, per windowed token [uJ].

        Straight in the sums for either cost model, so that merged and single steps draw the same.
        """
        if self._measured is None:
            return self._request_uj * batch, self._padded_uj, self._windowed_uj
        found = self._terms.get(batch)
        if found is None:
            fixed = padded = windowed = 0.0
            for price, level, slope, in_window in self._measured.decode_terms(batch):
                per_ns = self._decode_uj_per_ns(price)
                fixed += per_ns * level
                padded += per_ns * slope
                windowed += per_ns * in_window
            found = self._terms[batch] = (fixed, padded, windowed)
        return found

    def priced_step_uj(
        self, decode: int, padded_tokens: int, windowed_tokens: int, logits: int
    ) -> int:
        """Return the active energy of the mixed step that the cost model has just priced [uJ].

        Parameters
        ----------
        decode, padded_tokens, windowed_tokens, logits : int
            As `StepCost.step_ns` got them; of the chunks the cost model remembers what counts,
            so that their attention is not worked out twice.
        """
        measured = self._measured
        if measured is None:
            prompt, prefill_ns = self._cost.prefill_tokens, self._cost.prefill_ns
        else:
            prompt, prefill_ns = measured.prefill_tokens, measured.prefill_ns
        energy = 0.0
        tokens = decode + prompt
        if prompt:
            energy = max(0.0, prefill_ns - self._launch_ns) * self._compute_uj
        if decode:
            fixed, padded, windowed = self._attention(decode)
            energy += fixed + padded * padded_tokens
            energy += windowed * windowed_tokens
        if tokens < len(self._token_uj) and logits < len(self._head_uj):
            energy += self._token_uj[tokens] + self._head_uj[logits]
        else:
            energy += self._at(self._token_uj, tokens) + self._at(self._head_uj, logits)
        return rounded(energy)

    @staticmethod
    def _at(table: list[float], size: int) -> float:
        """Look a size up; beyond the engine's limits energy grows in proportion."""
        if size < len(table):
            return table[size]
        return table[-1] * size / (len(table) - 1)
