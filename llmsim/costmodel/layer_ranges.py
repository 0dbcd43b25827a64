"""The price of a step whose prompts go through some of the layers only, decodes through all.

A prompt's hidden states wait between two such steps; the layers outside the range compute decodes
alone, which is cheap where few of them touch few experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmsim.core.integers import rounded
from llmsim.costmodel.boundaries import layer_kinds, model_ends
from llmsim.costmodel.contract import Chunk
from llmsim.costmodel.roofline import RooflineCost


class LayerCost(Protocol):
    """Prices steps whose prompts go through a range of layers.

    Attributes
    ----------
    layers : int [layers]
        Of the model.
    """

    @property
    def layers(self) -> int:
        """Layers of the model [layers]."""
        ...

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        first: int,
        end: int,
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price a step; all but the range as for `StepCost.step_ns` [ns].

        Parameters
        ----------
        first, end : int [layers]
            The chunks go through layers `first` to `end` - 1, at least one.
        """
        ...


class RooflineLayers:
    """Ranges of layers of a `RooflineCost`; implements `LayerCost`.

    Parameters
    ----------
    cost : RooflineCost

    Notes
    -----
    A range that is the whole model costs what `RooflineCost.step_ns` says. Layers of one kind are
    taken to stand one behind the other. The host works for a step as for any other.
    """

    def __init__(self, cost: RooflineCost) -> None:
        self._cost = cost
        limits = cost.limits
        top = limits.max_num_batched_tokens + limits.max_num_seqs
        sizes = cost.padded(np.arange(top + 1.0))
        self._kinds = layer_kinds(cost, sizes)
        self._layer_ns = [np.sum(kind.parts, axis=0).tolist() for kind in self._kinds]
        for table in self._layer_ns:
            table[0] = 0.0
        self._embed_ns, self._norm_ns, self._head_ns = model_ends(cost, sizes)
        self._layers = sum(kind.count for kind in self._kinds)

    @property
    def layers(self) -> int:
        """Layers of the model [layers]."""
        return self._layers

    def step_ns(
        self,
        chunks: Sequence[Chunk],
        first: int,
        end: int,
        decode: int,
        padded_tokens: int,
        windowed_tokens: int,
        logits: int,
    ) -> int:
        """Price a step; see `LayerCost.step_ns`."""
        cost = self._cost
        tokens = decode + sum(new for new, _ in chunks)
        sums = cost.chunk_sums(chunks)
        gpu_ns = self._head_ns[logits] if logits else 0.0
        begun = tokens if not first else decode
        ended = tokens if end == self._layers else decode
        gpu_ns += self._embed_ns[begun] if begun else 0.0
        gpu_ns += self._norm_ns[ended] if ended else 0.0
        at = 0
        for kind, layer_ns in zip(self._kinds, self._layer_ns, strict=True):
            inside = max(0, min(end, at + kind.count) - max(first, at))
            at += kind.count
            outside = kind.count - inside
            gpu_ns += inside * layer_ns[tokens] + outside * layer_ns[decode]
            for mixer in kind.mixers:
                part = inside / kind.count
                gpu_ns += part * mixer.prefill_ns(sums)
                if not decode:
                    continue
                terms = mixer.decode_ns
                each = terms.request * decode + terms.padded * padded_tokens
                each += terms.windowed * windowed_tokens
                gpu_ns += part * (mixer.mixed_fixed_ns + mixer.mixed_scale * each)
                gpu_ns += (1.0 - part) * (mixer.decode_fixed_ns + each)
        added, beside = cost.host_ns(tokens, decode, len(chunks))
        return max(1, rounded(added + max(gpu_ns, beside)))
