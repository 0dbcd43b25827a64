"""A model as another public checkpoint of the same architecture would hold it.

Model cards describe one checkpoint each. Most models are served in several: this says which of
their tensors each usual scheme touches, following what NVIDIA, Qwen, OpenAI, AMD and the authors
of AWQ and GPTQ publish. Embedding, LM head, router, norms, convolutions and the indexer of sparse
attention stay at 16 bits in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.specs.cards import CardRow
from llmsim.specs.layers import (
    BF16,
    DenseMlp,
    LatentAttention,
    LayerSpec,
    Mixer,
    Mlp,
    MoeMlp,
    SoftmaxAttention,
    WeightFormat,
)
from llmsim.specs.model import ModelSpec
from llmsim.specs.quantisation import INT8, MXFP4_MARLIN, TRITON, fp8, integer, mxfp4, nvfp4


@dataclass(frozen=True, slots=True)
class Scheme:
    """What one scheme does to each class of tensors.

    Parameters
    ----------
    attention, latent, recurrent, dense, experts, shared : WeightFormat
        Projections of softmax attention, of latent attention and of recurrent mixers; dense MLPs;
        routed and shared experts.
    kv_dtype : str
        KV cache type that such checkpoints ask for.
    source : str
        Checkpoints that this follows.
    """

    attention: WeightFormat
    latent: WeightFormat
    recurrent: WeightFormat
    dense: WeightFormat
    experts: WeightFormat
    shared: WeightFormat
    kv_dtype: str
    source: str


def _all(form: WeightFormat, kv_dtype: str, source: str) -> Scheme:
    return Scheme(form, form, form, form, form, form, kv_dtype, source)


_FP4 = nvfp4()

SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "bf16": _all(BF16, "bf16", "16-bit checkpoints"),
        "fp8": _all(fp8(), "fp8", "nvidia/Llama-3.1-70B-Instruct-FP8: all but lm_head, fp8 KV"),
        "fp8_block": _all(
            fp8((128, 128)), "bf16", "Qwen/Qwen3-32B-FP8, deepseek-ai/DeepSeek-V3: 128 x 128 blocks"
        ),
        "nvfp4": Scheme(
            attention=_FP4,
            latent=BF16,
            recurrent=BF16,
            dense=_FP4,
            experts=_FP4,
            shared=_FP4,
            kv_dtype="fp8",
            source="nvidia/Llama-3.1-405B-Instruct-FP4 and Qwen3-235B-A22B-NVFP4: all but lm_head "
            "and router; GLM-5-NVFP4, Kimi-K2.5-NVFP4: latent attention kept",
        ),
        "mxfp4": Scheme(
            attention=BF16,
            latent=BF16,
            recurrent=BF16,
            dense=BF16,
            experts=mxfp4(),
            shared=BF16,
            kv_dtype="bf16",
            source="openai/gpt-oss-120b: routed experts alone, multiplied at 16 bits",
        ),
        "int4_awq": _all(
            integer(4, 128, zero_points=True), "bf16", "AutoAWQ's default: groups of 128"
        ),
        "int4_gptq": _all(
            integer(4, 128, zero_points=True), "bf16", "AutoGPTQ's usual: groups of 128"
        ),
        "int8": _all(INT8, "bf16", "RedHatAI quantized.w8a8: all but lm_head, scales per row"),
    }
)
"""Schemes by the word that a scenario uses."""

_HYBRID_FP4 = replace(
    SCHEMES["nvfp4"],
    attention=BF16,
    shared=BF16,
    source="nvidia/Qwen3.5-397B-A17B-NVFP4: routed experts alone, fp8 KV",
)
_DENSE_MX = _all(mxfp4("fp4"), "fp8", "amd/Llama-3.1-405B-Instruct-MXFP4: all but lm_head, fp8 KV")


def requantise(model: ModelSpec, scheme: str) -> ModelSpec:
    """Return a model with its weights in another format.

    Parameters
    ----------
    model : ModelSpec
    scheme : str
        A key of `SCHEMES`.

    Returns
    -------
    ModelSpec
        Of the same name; its KV type is the one that such checkpoints ask for.

    Raises
    ------
    InputError
        If there is no such scheme; gives the nearest.

    Notes
    -----
    Two schemes depend on the architecture. ``nvfp4`` of a hybrid model keeps attention and shared
    experts at 16 bits, ``mxfp4`` of a model without experts quantises everything and multiplies
    4-bit activations, as AMD's checkpoints do.
    """
    if scheme not in SCHEMES:
        fault = Fault("", scheme, "no scheme of this name.", nearest(scheme, SCHEMES))
        raise InputError("quantisation", [fault])
    chosen = SCHEMES[scheme]
    mixers = [layer.mixer for layer in model.layers if layer.mixer]
    hybrid = not all(isinstance(mixer, SoftmaxAttention | LatentAttention) for mixer in mixers)
    sparse = any(isinstance(layer.mlp, MoeMlp) for layer in model.layers)
    if scheme == "nvfp4" and hybrid:
        chosen = _HYBRID_FP4
    if scheme == "mxfp4" and not sparse:
        chosen = _DENSE_MX
    layers = [
        LayerSpec(_mixer(layer.mixer, chosen), _mlp(layer.mlp, chosen), layer.count)
        for layer in model.layers
    ]
    merged = _merged(layers)
    kinds = {(layer.mixer, layer.mlp): number for number, layer in enumerate(merged)}
    numbers = [kinds[layer.mixer, layer.mlp] for layer in layers]
    return replace(
        model,
        layers=merged,
        order=tuple(numbers[number] for number in model.order),
        kv_dtype=chosen.kv_dtype,
        sources=(*model.sources, CardRow("quantisation", scheme, "", chosen.source)),
    )


def by_marlin(model: ModelSpec) -> ModelSpec:
    """Return a model whose 4-bit experts are multiplied, and held, by Marlin.

    Parameters
    ----------
    model : ModelSpec

    Notes
    -----
    Marlin unpacks 4-bit weights of any kind in registers and multiplies at 16 bits. Its kernels
    were measured with integers (``int4``) everywhere, with MXFP4 on some GPUs, where it is slower:
    a scale per 32 weights, and matrices padded to its tiles. Bytes of the checkpoint stay.
    """
    layers = [
        replace(layer, mlp=replace(layer.mlp, format=_unpacked(layer.mlp.format)))
        if isinstance(layer.mlp, MoeMlp) and layer.mlp.format.bytes_per_weight < 1.0
        else layer
        for layer in model.layers
    ]
    return replace(model, layers=tuple(layers))


def by_triton(model: ModelSpec) -> ModelSpec:
    """Return a model whose experts in 8-bit blocks are multiplied by Triton's kernel.

    Parameters
    ----------
    model : ModelSpec

    Notes
    -----
    It is what vLLM takes on Hopper, so that GPU cards have it as the format's own; on Blackwell,
    where TensorRT-LLM's kernel is, Triton's takes twice as long with a hundred tokens.
    """
    layers = [
        replace(layer, mlp=replace(layer.mlp, format=_by_triton(layer.mlp.format)))
        if isinstance(layer.mlp, MoeMlp) and layer.mlp.format.name.startswith("fp8-block")
        else layer
        for layer in model.layers
    ]
    return replace(model, layers=tuple(layers))


def _by_triton(form: WeightFormat) -> WeightFormat:
    return replace(form, name=f"{form.name.removesuffix(TRITON)}{TRITON}")


def skewed(model: ModelSpec, skew: float) -> ModelSpec:
    """Return a model some of whose experts are chosen more often than others, for prices alone.

    Parameters
    ----------
    model : ModelSpec
    skew : float
        See `MoeMlp`.
    """
    layers = [
        replace(layer, mlp=replace(layer.mlp, skew=skew))
        if isinstance(layer.mlp, MoeMlp)
        else layer
        for layer in model.layers
    ]
    return replace(model, layers=tuple(layers))


def _unpacked(form: WeightFormat) -> WeightFormat:
    name = MXFP4_MARLIN if form.name == "mxfp4" else "int4"
    return WeightFormat(name, form.bytes_per_weight, "bf16")


def _mixer(mixer: Mixer | None, scheme: Scheme) -> Mixer | None:
    if mixer is None:
        return None
    if isinstance(mixer, SoftmaxAttention):
        return replace(mixer, format=scheme.attention)
    if isinstance(mixer, LatentAttention):
        return replace(mixer, format=scheme.latent)
    return replace(mixer, format=scheme.recurrent)


def _mlp(mlp: Mlp | None, scheme: Scheme) -> Mlp | None:
    if mlp is None:
        return None
    if isinstance(mlp, DenseMlp):
        return replace(mlp, format=scheme.dense)
    return replace(mlp, format=scheme.experts, shared_format=scheme.shared)


def _merged(layers: Iterable[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Join kinds that differed by their old formats alone."""
    kinds: dict[tuple[Mixer | None, Mlp | None], int] = {}
    for layer in layers:
        kind = (layer.mixer, layer.mlp)
        kinds[kind] = kinds.get(kind, 0) + layer.count
    return tuple(LayerSpec(mixer, mlp, count) for (mixer, mlp), count in kinds.items())
