"""How much memory a replica's rank holds, and how many KV blocks an engine would find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmsim.core.errors import Fault, InputError, ModelDoesNotFitError
from llmsim.core.units import GIB, MIB
from llmsim.costmodel.layout import check_layout, fits_layout
from llmsim.costmodel.operators import ACTIVATION_BYTES, expert_padding_bytes
from llmsim.specs import (
    DenseMlp,
    EngineLimits,
    GpuCard,
    LatentAttention,
    ModelSpec,
    MoeMlp,
    ParallelPlan,
    SoftmaxAttention,
    gpu_names,
    load_gpu,
    stage_of,
)
from llmsim.specs.model import attention_kv_bytes

CONTEXT_BYTES = 0.3 * GIB
"""Outside the allocator: low end of the 0.3-0.6 GiB seen with vLLM [bytes]."""

COLLECTIVE_BYTES = 375 * MIB
"""NCCL and custom all-reduce buffers of a group: 0.35-0.4 GiB seen with vLLM [bytes]."""

_LOGIT_BYTES = 2 + 4 + 4 + 8 + 4 + 4 + 4 + 2
"""Peak of vLLM's profiling run of the sampler per logit, top-k and top-p on [bytes]: 16-bit logits,
their fp32 copy, sorted values, int64 indices, softmax, cumulative sum, values scattered back and
masks. With 10 bytes for it, vLLM 0.11 found up to 3.8 GiB less KV than the plan."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of one rank.

    Parameters
    ----------
    total_bytes : float [bytes]
        What the runtime reports as the GPU's memory.
    budget_bytes : float [bytes]
        The part the engine may use.
    weights_bytes, activation_bytes, reserve_bytes : float [bytes]
        Weights with scales; peak of a full step, 0 where it lies outside the budget
        (`EngineLimits.static_memory`); context and communication buffers.
    sequence_bytes : float [bytes/request]
        Held by a running request whatever its length: recurrent state, and the KV inside the
        window where `windowed` says so.
    sequence_reserve_bytes : float [bytes]
        `sequence_bytes` for `max_num_seqs` requests, set aside.
    kv_bytes_per_token : float [bytes/token]
        KV that blocks hold per token of context.
    block_tokens : int [tokens]
    block_bytes : float [bytes]
    kv_blocks : int [blocks]
        2^31 for a model without attention: nothing grows with context.
    windowed : str
        How windowed layers are counted: ``none``, ``in blocks`` or ``per request``; see
        `plan_memory`.
    pinned : bool
        Whether `kv_blocks` was given, not found.
    """

    total_bytes: float
    budget_bytes: float
    weights_bytes: float
    activation_bytes: float
    reserve_bytes: float
    sequence_bytes: float
    sequence_reserve_bytes: float
    kv_bytes_per_token: float
    block_tokens: int
    block_bytes: float
    kv_blocks: int
    windowed: str
    pinned: bool

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that all blocks hold [tokens]."""
        return self.kv_blocks * self.block_tokens

    @property
    def kv_bytes(self) -> float:
        """All blocks [bytes]."""
        return self.kv_blocks * self.block_bytes


def plan_memory(
    model: ModelSpec,
    gpu: GpuCard,
    plan: ParallelPlan | None = None,
    limits: EngineLimits | None = None,
    gpu_memory_utilization_frac: float = 0.9,
    kv_dtype: str | None = None,
    kv_blocks: int | None = None,
) -> MemoryPlan:
    """Find the KV blocks as vLLM does: budget less weights, activation peak and reserve.

    Parameters
    ----------
    model : ModelSpec
    gpu : GpuCard
    plan : ParallelPlan or None
        None for one GPU.
    limits : EngineLimits or None
    gpu_memory_utilization_frac : float
        Share of the GPU's memory that the engine may use, in (0, 1].
    kv_dtype : str or None
        A key of `KV_BYTES`; None for what the checkpoint asks for.
    kv_blocks : int or None [blocks]
        The engine's own number, which pins the result.

    Raises
    ------
    ModelDoesNotFitError
        If weights, or the KV of one request of `max_model_len`, do not fit; says by how much and
        what would fit.
    InputError
        If the model does not split over the plan or a number is out of range.

    Notes
    -----
    ``blocks = floor((frac * total - weights - activations - reserve - requests) / block bytes)``.
    Activation peak ``T (4 H + 3 I / tp + k (H + 2 I_e / tp)) 2 + R V 10`` bytes with the step's
    largest T and R. Graph captures come on top of the budget, as in vLLM. Weights are those that
    kernels hold, padding included.

    Windowed layers need at most ``min(context, window + block)`` tokens per request. A pool of
    equal blocks cannot express that, so two counts that both never promise too much are made, and
    the one with more tokens is kept: all layers *in blocks*, as if unclipped; or windowed layers
    *per request*, a full window set aside for each of `max_num_seqs`. Recurrent state is always
    set aside per request. Of a pipeline, the stage that finds the fewest blocks decides for all.

    References
    ----------
    vLLM v1 `determine_available_memory` and `get_kv_cache_config`; constants from
    llm-d-planner's and inference-sim's public vLLM logs.
    """
    plan = plan or ParallelPlan()
    limits = limits or EngineLimits()
    if not 0 < gpu_memory_utilization_frac <= 1:
        fault = Fault("", "gpu_memory_utilization_frac", "must be in (0, 1].")
        raise InputError("plan_memory", [fault])
    check_layout(model, gpu, plan)
    chosen = kv_dtype or model.kv_dtype
    found = _count(model, gpu, plan, limits, gpu_memory_utilization_frac, chosen)
    if kv_blocks is not None:
        if kv_blocks < 1:
            raise InputError("plan_memory", [Fault("", "kv_blocks", "must be at least 1.")])
        found = replace(found, kv_blocks=kv_blocks, pinned=True)
    short = _shortfall_bytes(found, limits)
    if short > 0:
        if found.pinned:
            raise ModelDoesNotFitError(_pinned_message(model, gpu, plan, limits, found))
        ways = _ways_out(model, gpu, plan, limits, gpu_memory_utilization_frac, chosen)
        raise ModelDoesNotFitError(_message(model, gpu, plan, limits, found, short, list(ways)))
    return found


def _count(
    model: ModelSpec,
    gpu: GpuCard,
    plan: ParallelPlan,
    limits: EngineLimits,
    frac: float,
    kv_dtype: str,
) -> MemoryPlan:
    """Return the plan of the rank with the fewest KV blocks: all stages have as many."""
    if plan.pp == 1:
        return _count_stage(model, gpu, plan, limits, frac, kv_dtype)
    parts = (stage_of(model, stage, plan.pp) for stage in range(plan.pp))
    found = [_count_stage(part, gpu, plan, limits, frac, kv_dtype) for part in parts]
    return min(found, key=lambda one: (one.kv_blocks, -one.weights_bytes))


def _count_stage(
    model: ModelSpec,
    gpu: GpuCard,
    plan: ParallelPlan,
    limits: EngineLimits,
    frac: float,
    kv_dtype: str,
) -> MemoryPlan:
    tp = plan.tp
    budget = frac * gpu.memory_bytes
    weights = model.weight_bytes(tp, plan.expert_gpus, plan.spare_experts)
    weights += expert_padding_bytes(model, plan, gpu)
    # what a step needs lies beside a static share, in what the engine leaves free
    activation = 0.0 if limits.static_memory else activation_bytes(model, plan, limits)
    reserve = CONTEXT_BYTES + (COLLECTIVE_BYTES if plan.gpus > 1 else 0.0)
    state = model.state_bytes_per_sequence(tp)
    full, windowed = _kv_split(model, tp, kv_dtype)
    span = min(limits.max_model_len, model.window_tokens + limits.block_tokens)
    counts = [("in blocks" if windowed else "none", full + windowed, state)]
    if windowed:
        counts.append(("per request", full, state + windowed * span))
    plans = []
    for how, per_token, per_request in counts:
        free = budget - weights - activation - reserve - per_request * limits.max_num_seqs
        block = per_token * limits.block_tokens
        plans.append(
            MemoryPlan(
                total_bytes=gpu.memory_bytes,
                budget_bytes=budget,
                weights_bytes=weights,
                activation_bytes=activation,
                reserve_bytes=reserve,
                sequence_bytes=per_request,
                sequence_reserve_bytes=per_request * limits.max_num_seqs,
                kv_bytes_per_token=per_token,
                block_tokens=limits.block_tokens,
                block_bytes=block,
                kv_blocks=_blocks(free, block),
                windowed=how,
                pinned=False,
            )
        )
    return max(plans, key=lambda one: one.kv_blocks)


def _blocks(free: float, block: float) -> int:
    """Return how many blocks fit; without limit where contexts take nothing, if all else fits."""
    if block:
        return max(0, int(free // block))
    return 2**31 if free >= 0.0 else 0


def activation_bytes(model: ModelSpec, plan: ParallelPlan, limits: EngineLimits) -> float:
    """Return the activation peak of the largest step on one GPU [bytes].

    Parameters
    ----------
    model : ModelSpec
    plan : ParallelPlan
    limits : EngineLimits

    Notes
    -----
    Experts that are dealt out over several attention ranks get the tokens of all of them, each
    for its share of the experts: as many rows as a rank of its own would compute.
    """
    tp = plan.tp
    split = plan.expert_split if plan.dp > 1 else tp
    dense = expert = 0.0
    for layer in model.layers:
        if isinstance(layer.mlp, DenseMlp):
            dense = max(dense, 3.0 * layer.mlp.intermediate / tp)
        elif isinstance(layer.mlp, MoeMlp):
            moe = layer.mlp
            routed = moe.active_experts * (model.hidden + 2.0 * moe.intermediate / split)
            expert = max(expert, routed + 3.0 * moe.shared_intermediate / tp)
    per_token = 4.0 * model.hidden + max(dense, expert)
    tokens = ACTIVATION_BYTES * limits.max_num_batched_tokens * per_token
    if not model.has_head:
        return tokens
    return tokens + float(limits.max_num_seqs * model.vocab * _LOGIT_BYTES)


def _kv_split(model: ModelSpec, tp: int, kv_dtype: str) -> tuple[float, float]:
    """Return the KV of one token in the full and in the windowed layers of one rank [bytes].

    Sparse latent attention reads a window but keeps everything, so it counts as full.
    """
    full = windowed = 0.0
    for layer in model.layers:
        mixer = layer.mixer
        if isinstance(mixer, SoftmaxAttention) and mixer.window_tokens:
            windowed += layer.count * attention_kv_bytes(mixer, tp, kv_dtype)
        elif isinstance(mixer, SoftmaxAttention | LatentAttention):
            full += layer.count * attention_kv_bytes(mixer, tp, kv_dtype)
    return full, windowed


def _shortfall_bytes(found: MemoryPlan, limits: EngineLimits) -> float:
    """Return what is missing for one longest request, or for pinned blocks; 0 or less if none."""
    fixed = found.weights_bytes + found.activation_bytes + found.reserve_bytes
    fixed += found.sequence_reserve_bytes
    blocks = -(-limits.max_model_len // limits.block_tokens)
    need = fixed + blocks * found.block_bytes - found.budget_bytes
    if not found.pinned:
        return need
    if found.kv_blocks < blocks:
        return (blocks - found.kv_blocks) * found.block_bytes
    return found.weights_bytes + found.kv_bytes - found.total_bytes


def _ways_out(
    model: ModelSpec,
    gpu: GpuCard,
    plan: ParallelPlan,
    limits: EngineLimits,
    frac: float,
    kv_dtype: str,
) -> Iterator[str]:
    """Yield what would make the model fit."""

    def fits(on: GpuCard, how: ParallelPlan, kv: str = kv_dtype, saved_bytes: float = 0.0) -> bool:
        found = _count(model, on, how, limits, frac, kv)
        return _shortfall_bytes(found, limits) <= saved_bytes

    for tp in range(plan.tp + 1, gpu.node_gpus // plan.dp + 1):
        wider = replace(plan, tp=tp, ep=plan.ep if tp * plan.dp % plan.ep == 0 else 1)
        if fits_layout(model, gpu, wider) and fits(gpu, wider):
            yield f"tp: {tp} on {gpu.name}"
            break
    others = (load_gpu(name) for name in gpu_names() if name != gpu.name)
    larger = sorted(
        (card.memory_bytes, card.name)
        for card in others
        if fits_layout(model, card, plan) and fits(card, plan)
    )
    if larger:  # the three that are just large enough
        yield f"at {plan.words}, a {' or '.join(name for _, name in larger[:3])}"
    halved = sum(
        layer.count * part.parameters
        for layer in model.layers
        for part in layer.linears(model.hidden, plan.tp)
        if part.format.bytes_per_weight == 2.0
    )
    if halved and fits(gpu, plan, saved_bytes=float(halved)):
        yield "fp8 weights"
    if kv_dtype in ("bf16", "fp16") and fits(gpu, plan, kv="fp8"):
        yield "an fp8 KV cache"
    found = _count(model, gpu, plan, limits, frac, kv_dtype)
    if found.kv_blocks > 0:
        yield f"max_model_len: {found.kv_tokens}"


def _pinned_message(
    model: ModelSpec, gpu: GpuCard, plan: ParallelPlan, limits: EngineLimits, found: MemoryPlan
) -> str:
    """Say which end of the pinned number of blocks is wrong."""
    what = f"{model.name} on {plan.gpus} x {gpu.name}: kv_blocks {found.kv_blocks}"
    need = -(-limits.max_model_len // limits.block_tokens)
    if found.kv_blocks < need:
        holds = found.kv_blocks * limits.block_tokens
        return (
            f"{what} hold {holds} tokens, less than one request of max_model_len "
            f"{limits.max_model_len}: {need} blocks do, or max_model_len: {holds}."
        )
    room = int((found.total_bytes - found.weights_bytes) // found.block_bytes)
    return f"{what} do not fit beside the weights: at most {max(room, 0)} do."


def _message(
    model: ModelSpec,
    gpu: GpuCard,
    plan: ParallelPlan,
    limits: EngineLimits,
    found: MemoryPlan,
    short_bytes: float,
    ways: list[str],
) -> str:
    parts = (
        f"weights {found.weights_bytes / GIB:.1f}",
        f"activations {found.activation_bytes / GIB:.1f}",
        f"reserve {(found.reserve_bytes + found.sequence_reserve_bytes) / GIB:.1f}",
        f"KV of one request of {limits.max_model_len} tokens "
        f"{limits.max_model_len * found.kv_bytes_per_token / GIB:.1f}",
    )
    way = f"Would fit: {'; '.join(ways)}." if ways else "Nothing known here would make it fit."
    what = f"{model.name} on {plan.gpus} x {gpu.name}"
    return (
        f"{what} is {short_bytes / GIB:.1f} GiB per GPU too large: "
        f"{', '.join(parts)} GiB against {found.budget_bytes / GIB:.1f} GiB. {way}"
    )
