"""Whether a model can be laid out over the GPUs of a plan at all."""

from __future__ import annotations

from llmsim.core.errors import Fault, InputError
from llmsim.specs import (
    DenseMlp,
    GpuCard,
    LatentAttention,
    LinkCard,
    ModelSpec,
    MoeMlp,
    ParallelPlan,
    RecurrentMixer,
    SoftmaxAttention,
)
from llmsim.specs.layers import Mixer, Mlp


def check_layout(model: ModelSpec, gpu: GpuCard, plan: ParallelPlan) -> None:
    """Raise unless every layer splits evenly over the plan's GPUs and these share one node.

    Raises
    ------
    InputError
        With every part that does not split.

    Notes
    -----
    The rules of vLLM: heads and MLP widths are multiples of `tp`; key/value heads are a multiple
    or a divisor of it.
    """
    tp = plan.tp
    faults: list[Fault] = []
    if tp > gpu.node_gpus:
        faults.append(Fault("", "tp", f"{tp} GPUs, but a node of {gpu.name} has {gpu.node_gpus}."))
    for layer in model.layers:
        for what, width in (*_mixer_widths(layer.mixer), *_mlp_widths(layer.mlp)):
            splits = width % tp == 0 or (what == "key/value heads" and tp % width == 0)
            fault = Fault("", "tp", f"{tp} does not divide the {width} {what} of {model.name}.")
            if not splits and fault not in faults:
                faults.append(fault)
    if faults:
        raise InputError(f"tp {tp}", faults)


def fits_layout(model: ModelSpec, gpu: GpuCard, tp: int) -> bool:
    """Say whether `check_layout` accepts this tensor-parallel degree."""
    try:
        check_layout(model, gpu, ParallelPlan(tp))
    except InputError:
        return False
    return True


def check_link(plan: ParallelPlan, link: LinkCard | None) -> None:
    """Raise if several GPUs have no link.

    Raises
    ------
    InputError
    """
    if plan.tp > 1 and link is None:
        raise InputError(f"tp {plan.tp}", [Fault("", "link", "is needed when tp is above 1.")])


def _mixer_widths(mixer: Mixer | None) -> list[tuple[str, int]]:
    if isinstance(mixer, SoftmaxAttention):
        return [("attention heads", mixer.heads), ("key/value heads", mixer.kv_heads)]
    if isinstance(mixer, LatentAttention):
        return [("attention heads", mixer.heads)]
    if isinstance(mixer, RecurrentMixer):
        return [("recurrent heads", mixer.heads)]
    return []


def _mlp_widths(mlp: Mlp | None) -> list[tuple[str, int]]:
    if isinstance(mlp, DenseMlp):
        return [("MLP channels", mlp.intermediate)]
    if isinstance(mlp, MoeMlp):
        return [
            ("expert channels", mlp.intermediate),
            ("shared-expert channels", mlp.shared_intermediate),
        ]
    return []
