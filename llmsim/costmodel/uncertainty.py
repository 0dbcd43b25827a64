"""How wrong the price of an operator family may be, and draws of it.

An error of a family is shared by all its calls in all layers and steps: it does not average out
over a model's depth, so one factor per family is drawn for a whole run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Final

import numpy as np

from llmsim.core.rng import stream
from llmsim.specs import GpuCard, ModelSpec, MoeMlp, OperatorScales

PRIOR_LOG_SD: Final = {
    "gemm": 0.15,
    "attention_prefill": 0.25,
    "attention_decode": 0.25,
    "moe": 0.25,
    "communication": 0.15,
    "elementwise": 0.30,
}
"""Standard deviation of the log of a family's factor where the GPU has no profile.

GEMM, attention and MoE: medians of 8-14%, 14-18% and 16-26% between the universal smooth roofline
and public kernel tables (aiconfigurator 095f58a51) come with these widths. Communication: two
parameters per collective miss tables by 8-15%. Elementwise: assumed, no table was compared with.
"""

LOW_PRECISION_LOG_SD: Final = 0.40
"""The same for products narrower than 16 bits: several kernels hide behind one name there."""


def family_log_sd(model: ModelSpec, gpu: GpuCard, tp: int = 1) -> dict[str, float]:
    """Return how uncertain each operator family is, by family name.

    Parameters
    ----------
    model : ModelSpec
    gpu : GpuCard
    tp : int [GPUs]

    Returns
    -------
    dict of str to float
        Standard deviation of the log of the family's time.
    """
    found = dict(PRIOR_LOG_SD)
    for layer in model.layers:
        routed = layer.mlp.expert_linears(model.hidden, tp) if isinstance(layer.mlp, MoeMlp) else ()
        names = {part.name for part in routed}
        for part in layer.linears(model.hidden, tp):
            if gpu.compute_dtype(part.format.compute_dtype) != "bf16":
                family = "moe" if part.name in names else "gemm"
                found[family] = LOW_PRECISION_LOG_SD
    return found


def draw_scales(
    log_sd: Mapping[str, float], gpu: str, seed: int, draws: int
) -> list[OperatorScales]:
    """Draw factors on the operator families.

    Parameters
    ----------
    log_sd : mapping of str to float
        By family, see `family_log_sd`.
    gpu : str
        Name of the GPU. Two fleets of the same GPU get the same draws, so that they can be
        compared draw by draw; those of different GPUs are independent.
    seed : int
    draws : int

    Returns
    -------
    list of OperatorScales
        Log-normal with median 1; the first draws are the same whatever their number.
    """
    factors = {}
    for each in fields(OperatorScales):
        normal = stream(seed, "cost draws", gpu, each.name).standard_normal(draws)
        factors[each.name] = np.exp(log_sd.get(each.name, 0.0) * normal).tolist()
    return [
        OperatorScales(**{name: values[number] for name, values in factors.items()})
        for number in range(draws)
    ]
