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
    stage_of,
)
from llmsim.specs.layers import Mixer, Mlp


def check_layout(model: ModelSpec, gpu: GpuCard, plan: ParallelPlan) -> None:
    """Raise unless every layer splits evenly over the plan's GPUs and these can reach each other.

    Raises
    ------
    InputError
        With every part that does not split.

    Notes
    -----
    The rules of vLLM: heads and MLP widths are multiples of `tp`; key/value heads are a multiple
    or a divisor of it. Experts are a multiple of `ep` and their width is one of ``tp dp / ep``.
    Attention ranks need experts to share: without any, vLLM runs them as replicas of their own.
    Beyond one node the GPUs fill whole nodes, joined by the card's `scale_out` link; of a pipeline,
    whole stages do. Stages of attention ranks have experts each, or their ranks would not meet.
    """
    tp = plan.tp
    faults: list[Fault] = []
    faults += _node_faults(gpu, plan)
    for layer in model.layers:
        for what, width in (*_mixer_widths(layer.mixer), *_mlp_widths(layer.mlp)):
            parts = plan.expert_split if what == "expert channels" else tp
            splits = width % parts == 0 or (what == "key/value heads" and tp % width == 0)
            message = f"{parts} does not divide the {width} {what} of {model.name}."
            _add(faults, None if splits else Fault("", "tp", message))
        _add(faults, _expert_fault(layer.mlp, plan, model))
    if plan.pp > model.layer_count:
        message = f"{plan.pp} stages, but {model.name} has {model.layer_count} layers."
        faults.append(Fault("", "pp", message))
    if not any(isinstance(layer.mlp, MoeMlp) for layer in model.layers):
        if plan.ep > 1:
            faults.append(Fault("", "ep", f"{plan.ep}, but {model.name} has no experts."))
        if plan.dp > 1:
            hint = f"Use replicas: {plan.dp}."
            faults.append(Fault("", "dp", f"{plan.dp}, but {model.name} has no experts.", hint))
    elif not faults and plan.dp > 1 and plan.pp > 1:
        faults += _stage_faults(model, plan)
    if faults:
        raise InputError(f"tp {tp}", faults)


def _stage_faults(model: ModelSpec, plan: ParallelPlan) -> list[Fault]:
    """Return a fault if some stage has no experts that its attention ranks would share."""
    for stage in range(plan.pp):
        part = stage_of(model, stage, plan.pp)
        if not any(isinstance(layer.mlp, MoeMlp) for layer in part.layers):
            message = f"stage {stage} of {plan.pp} has no experts for its {plan.dp} ranks to share."
            return [Fault("", "pp", message, "Use fewer stages.")]
    return []


def _node_faults(gpu: GpuCard, plan: ParallelPlan) -> list[Fault]:
    """Return which groups of GPUs neither fit into a node nor fill whole ones."""
    key = "dp" if plan.dp > 1 else "pp" if plan.pp > 1 else "tp"
    size = f"a node of {gpu.name} has {gpu.node_gpus}"
    if plan.gpus <= gpu.node_gpus:
        return []
    if not gpu.scale_out:
        hint = "Say with inter_node_link what joins the nodes."
        return [Fault("", key, f"{plan.gpus} GPUs, but {size}.", hint)]
    if plan.expert_gpus > gpu.node_gpus and plan.expert_gpus % gpu.node_gpus:
        return [Fault("", key, f"{plan.expert_gpus} GPUs do not fill whole nodes: {size}.")]
    if plan.tp <= gpu.node_gpus and gpu.node_gpus % plan.tp:
        of = "stage" if plan.pp > 1 else "rank"
        return [Fault("", "tp", f"{plan.tp} GPUs of a {of} would lie on two nodes: {size}.")]
    if plan.pp > 1 and plan.stage_gpus < gpu.node_gpus and gpu.node_gpus % plan.stage_gpus:
        message = f"{plan.stage_gpus} GPUs of a stage would lie on two nodes: {size}."
        return [Fault("", "dp", message)]
    return []


def _add(faults: list[Fault], fault: Fault | None) -> None:
    if fault is not None and fault not in faults:
        faults.append(fault)


def _expert_fault(mlp: Mlp | None, plan: ParallelPlan, model: ModelSpec) -> Fault | None:
    spare = plan.spare_experts
    if not isinstance(mlp, MoeMlp) or (mlp.experts + spare) % plan.ep == 0:
        return None
    what = f"{mlp.experts} experts" + (f" and {spare} spare ones" if spare else "")
    return Fault("", "ep", f"{plan.ep} does not divide the {what} of {model.name}.")


def fits_layout(model: ModelSpec, gpu: GpuCard, plan: ParallelPlan) -> bool:
    """Say whether `check_layout` accepts a plan."""
    try:
        check_layout(model, gpu, plan)
    except InputError:
        return False
    return True


def check_link(
    plan: ParallelPlan, gpu: GpuCard, link: LinkCard | None, scale_out: LinkCard | None
) -> None:
    """Raise if several GPUs have no link, or several nodes none between them.

    Raises
    ------
    InputError
    """
    if plan.gpus > 1 and link is None:
        fault = Fault("", "link", f"is needed between {plan.gpus} GPUs.")
        raise InputError(f"tp {plan.tp}", [fault])
    if plan.gpus > gpu.node_gpus and scale_out is None:
        raise InputError(f"tp {plan.tp}", [Fault("", "scale_out", "is needed beyond one node.")])


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
