"""The work of one decoded token, operator by operator, whatever the GPU.

The same operators that a step is priced by, without their prices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmsim.costmodel.attention import PerToken, price_mixer
from llmsim.costmodel.operators import head_operators, layer_operators
from llmsim.specs import ModelSpec, ParallelPlan, load_gpu

_ANY_GPU = "h100-sxm"
"""FLOPs and bytes are the same on every GPU; the operators ask for one to price them."""


@dataclass(frozen=True, slots=True)
class TokenOperator:
    """One operator of one token, all its layers together.

    Parameters
    ----------
    name : str
    calls : int
    flops, bytes : float [FLOP], [bytes]
        Weights read, activations read and written, KV read.
    """

    name: str
    calls: int
    flops: float
    bytes: float


def token_operators(model: ModelSpec, context: int, kv_dtype: str) -> tuple[TokenOperator, ...]:
    """Return the operators of one token decoded alone.

    Parameters
    ----------
    model : ModelSpec
    context : int [tokens]
        What attention reads, the token itself included.
    kv_dtype : str

    Returns
    -------
    tuple of TokenOperator
        In the order of a layer, attention after the projections of its layer kind; the head last.
        Those without FLOPs (norms, gathers, activations) are joined into one.
    """
    gpu, plan, one = load_gpu(_ANY_GPU), ParallelPlan(), np.array([1.0])
    found: dict[str, TokenOperator] = {}

    def add(name: str, calls: int, flops: float, moved: float) -> None:
        old = found.get(name, TokenOperator(name, 0, 0.0, 0.0))
        found[name] = TokenOperator(name, old.calls + calls, old.flops + flops, old.bytes + moved)

    for layer in model.layers:
        for table in layer_operators(layer, model.hidden, plan, one, gpu):
            name = "norms, gathers ..." if table.dtype == "elementwise" else table.name
            calls = table.count
            add(name, calls, calls * float(table.flops[0]), calls * float(table.bytes[0]))
        for mixer in price_mixer(layer, gpu, 1, kv_dtype):
            read = _amounts(context, model.window_tokens)
            flops, moved = _total(mixer.decode_flops, read), _total(mixer.decode_bytes, read)
            add(mixer.name, layer.count, layer.count * flops, layer.count * moved)
    for table in head_operators(model, 1, one, gpu):
        add(table.name, 1, float(table.flops[0]), float(table.bytes[0]))
    return tuple(found.values())


def _amounts(context: int, window: int) -> PerToken:
    return PerToken(context, min(context, window) if window else 0, 1.0)


def _total(weights: PerToken, amounts: PerToken) -> float:
    return sum(weight * amount for weight, amount in zip(weights, amounts, strict=True))
