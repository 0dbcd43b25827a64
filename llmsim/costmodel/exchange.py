"""Tokens on their way to the experts and back, where attention ranks share the experts.

Each rank routes its own tokens. Either every GPU sends each token to the GPUs of its experts and
gets the outputs back (two all-to-alls), or all tokens go to all GPUs and the outputs are added up
on the way back (all-gather, reduce-scatter). Engines ship both; the price is the cheaper.

References
----------
vLLM's ``all2all_backend``: ``allgather_reducescatter``, ``deepep_*``; DeepEP sends activations as
the experts multiply them (FP8 there) and returns 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmsim.costmodel.communication import (
    Network,
    all_gather,
    all_to_all,
    reduce_scatter,
)
from llmsim.costmodel.operators import (
    ACTIVATION_BYTES,
    QUANTISED_BYTES,
    Floats,
    OpTable,
)
from llmsim.specs import GpuCard, ModelSpec, MoeMlp, ParallelPlan

EXCHANGE = ("dispatch", "combine", "gather of a rank")
"""Names of what `expert_exchange` yields."""


def expert_exchange(
    model: ModelSpec, plan: ParallelPlan, tokens: Floats, network: Network, gpu: GpuCard
) -> Iterator[OpTable]:
    """Yield dispatch and combine of every layer with experts.

    Parameters
    ----------
    model : ModelSpec
    plan : ParallelPlan
        With several attention ranks.
    tokens : ndarray of float (n,) [tokens]
        Of one rank; the others are padded to as many.
    network : Network
    gpu : GpuCard
        Says which formats activations travel in.

    Notes
    -----
    The `tp` GPUs of a rank hold the same tokens: each sends its part of them, and gathers the
    rest of what came back. An expert that is split over GPUs needs each token on all of them,
    which is what the all-gather does.
    """
    for layer in model.layers:
        moe = layer.mlp
        if isinstance(moe, MoeMlp):
            yield from _of_layer(moe, layer.count, model.hidden, plan, tokens, network, gpu)


def _of_layer(
    moe: MoeMlp,
    count: int,
    hidden: int,
    plan: ParallelPlan,
    tokens: Floats,
    network: Network,
    gpu: GpuCard,
) -> Iterator[OpTable]:
    gpus = plan.expert_gpus
    whole = ACTIVATION_BYTES * hidden * plan.dp * tokens
    there = all_gather("dispatch", count, whole, network, gpus)
    back = reduce_scatter("combine", count, whole, network, gpus)
    if plan.expert_split == 1:
        visits = moe.active_experts * hidden * tokens / plan.tp
        form = QUANTISED_BYTES.get(gpu.compute_dtype(moe.format.compute_dtype), ACTIVATION_BYTES)
        there_direct = all_to_all("dispatch", count, form * visits, network, gpus)
        back_direct = all_to_all("combine", count, ACTIVATION_BYTES * visits, network, gpus)
        direct = there_direct.seconds + back_direct.seconds < there.seconds + back.seconds
        there, back = _chosen(direct, there_direct, there), _chosen(direct, back_direct, back)
    yield there
    yield back
    if plan.tp > 1:
        yield all_gather(
            "gather of a rank", count, ACTIVATION_BYTES * hidden * tokens, network, plan.tp
        )


def _chosen(first: NDArray[np.bool_], one: OpTable, other: OpTable) -> OpTable:
    """Return one table where `first` holds, the other elsewhere."""
    return replace(
        one,
        bytes=np.where(first, one.bytes, other.bytes),
        fixed_s=np.where(first, one.fixed_s, other.fixed_s),
        memory_s=np.where(first, one.memory_s, other.memory_s),
        seconds=np.where(first, one.seconds, other.seconds),
    )
