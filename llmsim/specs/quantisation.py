"""Which tensors of a checkpoint are quantised, and how, from its quantisation block.

Read in this order: ``quantization_config`` of the config, ``hf_quant_config.json`` beside it,
else 16 bits. Embedding, LM head and router stay at 16 bits, as engines keep them.

References
----------
Block formats: compressed-tensors and HuggingFace transformers (``quantizers``), NVIDIA ModelOpt
(``quant_algo``), AMD Quark, AutoGPTQ and AutoAWQ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod
from typing import Any, Final

from llmsim.core.errors import Fault
from llmsim.specs.layers import BF16, WeightFormat

_SCALE16_BYTES = 2.0
_HEADS = (
    "language_model.model.",
    "model.language_model.",
    "model.",
    "backbone.",
    "language_model.",
)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The quantisation of one checkpoint.

    Parameters
    ----------
    format : WeightFormat
        Of the linear layers that are quantised.
    kept : tuple of str
        Modules left at 16 bits: names, name tails, globs, or ``re:`` patterns.
    kv_dtype : str
        bf16 or fp8.
    special : tuple of (str, WeightFormat) pairs
        Modules with a format of their own, by the same kinds of pattern; the first match wins.
    """

    format: WeightFormat = BF16
    kept: tuple[str, ...] = ()
    kv_dtype: str = "bf16"
    special: tuple[tuple[str, WeightFormat], ...] = ()

    def of(self, layer: int, *modules: str) -> WeightFormat:
        """Return the format of a part of one layer.

        Parameters
        ----------
        layer : int
            Index of the layer.
        *modules : str
            Names its matrices go by in different checkpoints, such as ``self_attn.q_proj``; the
            part keeps 16 bits when any of them is listed.
        """
        if self.format is BF16 and not self.special:
            return BF16
        names = [f"layers.{layer}.{module}" for module in modules]
        if _listed(self.kept, layer, names):
            return BF16
        if self.special:
            pattern = _listed(tuple(pattern for pattern, _ in self.special), layer, names)
            if pattern:
                return next(form for own, form in self.special if own == pattern)
        return self.format


def _listed(patterns: tuple[str, ...], layer: int, names: Sequence[str]) -> str:
    """Return the first pattern that one of the names of a layer's part matches; empty if none."""
    everywhere, by_layer = _sorted_patterns(patterns)
    candidates = (*by_layer.get(layer, ()), *everywhere)
    return next((one for one in candidates if any(_matches(one, name) for name in names)), "")


@lru_cache(maxsize=64)
def _sorted_patterns(kept: tuple[str, ...]) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """Split patterns into those for any layer and those that name one.

    Checkpoints list up to a thousand modules; trying each on each layer would take seconds.
    """
    everywhere: list[str] = []
    by_layer: dict[int, tuple[str, ...]] = {}
    for pattern in kept:
        named = re.search(r"(?:^|\.)layers\.(\d+)(?:\.|$)", pattern)
        if named and not pattern.startswith("re:"):
            layer = int(named.group(1))
            by_layer[layer] = (*by_layer.get(layer, ()), pattern)
        else:
            everywhere.append(pattern)
    return tuple(everywhere), by_layer


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        heads = ("", "model.", "language_model.model.")
        return any(re.match(pattern[3:], head + name) for head in heads)
    head = next((head for head in _HEADS if pattern.startswith(head)), "")
    tail = pattern[len(head) :]  # another head, such as mtp., names no layer of the decoder
    words = name.split(".")
    parents = (".".join(words[: count + 1]) for count in range(len(words)))
    return any(fnmatchcase(parent, tail) or parent.endswith(f".{tail}") for parent in parents)


def read_quantisation(
    block: Mapping[str, Any] | None, beside: Mapping[str, Any] | None, where: str
) -> tuple[Quantisation, list[Fault]]:
    """Read the quantisation of a checkpoint.

    Parameters
    ----------
    block : mapping or None
        ``quantization_config`` of the config.
    beside : mapping or None
        Content of ``hf_quant_config.json``.
    where : str
        Name of the file, for faults.

    Returns
    -------
    Quantisation
    list of Fault
        A method that is not known is a fault, never a guess.
    """
    if not block and beside and isinstance(beside.get("quantization"), Mapping):
        block = beside["quantization"]
    if not block:
        return Quantisation(), []
    method = str(block.get("quant_algo") or block.get("quant_method") or "").lower()
    if not method:
        return Quantisation(), [Fault(where, "quantization_config.quant_method", "missing.")]
    kept = next((block[key] for key in _KEPT if block.get(key)), ())
    special: tuple[tuple[str, WeightFormat], ...] = ()
    if method == "mixed_precision":
        form, special, problem = _mixed(block.get("quantized_layers"))
    elif method == "compressed-tensors":
        form, special, problem = _compressed(block.get("config_groups"))
    else:
        form, problem = _format(method, block)
    faults = [Fault(where, "quantization_config", problem)] if problem else []
    kv_scheme = block.get("kv_cache_scheme") or block.get("kv_cache_quant_algo")
    kv_dtype = "fp8" if _is_8bit_float(kv_scheme) else "bf16"
    return Quantisation(form, tuple(kept), kv_dtype, special), faults


_KEPT = ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules", "exclude")


def _is_8bit_float(scheme: Any) -> bool:
    if isinstance(scheme, Mapping):
        return scheme.get("num_bits") == 8 and scheme.get("type") == "float"
    return str(scheme or "").upper() == "FP8"


def fp8(block_size: Sequence[int] | None = None) -> WeightFormat:
    """Return the 8-bit float format; scales of 32 bits per block, if there are blocks."""
    if not block_size:
        return WeightFormat("fp8", 1.0, "fp8")
    return WeightFormat(f"fp8-block{block_size[0]}", 1.0 + 4.0 / prod(block_size), "fp8")


def nvfp4(group: int = 16, compute: str = "fp4") -> WeightFormat:
    """Return NVIDIA's 4-bit float format: an 8-bit scale per group."""
    return WeightFormat("nvfp4", 0.5 + 1.0 / group, compute)


MXFP4_MARLIN: Final = "mxfp4-marlin"
"""Name of the OCP 4-bit format where Marlin multiplies it, which has prices of its own."""


TRITON: Final = "-triton"
"""What the name of a format ends with where Triton multiplies it, and others usually do."""


def mxfp4(compute: str = "bf16") -> WeightFormat:
    """Return the OCP 4-bit float format: an 8-bit scale per 32 weights."""
    return WeightFormat("mxfp4", 0.5 + 1.0 / 32, compute)


def integer(bits: int, group: int | None, zero_points: bool) -> WeightFormat:
    """Return a weight-only integer format: products run at 16 bits.

    Parameters
    ----------
    bits : int
    group : int or None [weights]
        Weights per 16-bit scale; None for one scale per row, which is not counted.
    zero_points : bool
        Whether each group has one, as wide as a weight.
    """
    size = bits / 8.0
    if group:
        size += (_SCALE16_BYTES + (bits / 8.0 if zero_points else 0.0)) / group
    return WeightFormat(f"int{bits}", size, "bf16")


INT8 = WeightFormat("int8", 1.0, "int8")
"""8-bit integer weights and activations, a scale per row."""

_AS_IS = {
    "fp8": "fp8",
    "fp8_per_channel_per_token": "fp8",
    "fbgemm_fp8": "fp8",
    "w8a8_fp8": "fp8",
    "w8a8_int8": "int8",
    "int8_sq": "int8",
    "w8a8_sq_per_channel": "int8",
    "mxfp4": "mxfp4",
}
_PACKED = ("gptq", "awq", "gptq_marlin", "awq_marlin", "marlin", "auto-round", "auto_round")
_FOUR_BIT = ("int4_awq", "w4a16_awq", "w4a16")


def _format(method: str, block: Mapping[str, Any]) -> tuple[WeightFormat, str]:
    """Return the weight format of a method, or BF16 and what is wrong."""
    known = _AS_IS.get(method)
    if known == "fp8" or method == "fp8_pb_wo":
        size = block.get("weight_block_size") or ([128, 128] if method == "fp8_pb_wo" else None)
        return fp8(size), ""
    if known == "int8":
        return INT8, ""
    if known == "mxfp4":
        return mxfp4(), ""
    group = block.get("group_size")
    if method in ("nvfp4", "nvfp4_awq"):
        return nvfp4(int(group or 16)), ""
    if method in _FOUR_BIT:
        return integer(4, int(group or 128), zero_points=False), ""
    if method in _PACKED:
        return _packed(block.get("bits", 4 if method == "marlin" else None), group)
    if method == "bitsandbytes":  # nf4: 32-bit scales of 64 weights; int8: mixed, run at 16 bits
        four = WeightFormat("nf4", 0.5 + 4.0 / 64, "bf16")
        return (four if block.get("load_in_4bit") else WeightFormat("int8", 1.0, "bf16")), ""
    if method == "quark":
        return _quark(block.get("global_quant_config"))
    return BF16, f"quantisation method '{method}' is not known."


def _packed(bits: Any, group: Any) -> tuple[WeightFormat, str]:
    if bits not in (4, 8):
        return BF16, f"weights of {bits!r} bits are not known (4 or 8)."
    size = group if isinstance(group, int) and group > 0 else None
    return integer(bits, size, zero_points=True), ""


def _quark(block: Any) -> tuple[WeightFormat, str]:
    """Read AMD Quark's weight scheme, of one or of two stages."""
    weight = block.get("weight") if isinstance(block, Mapping) else None
    weight = weight[-1] if isinstance(weight, list) and weight else weight
    dtype = str(weight.get("dtype")) if isinstance(weight, Mapping) else "missing"
    if dtype.startswith("fp8"):
        return fp8(), ""
    if dtype == "fp4":
        return mxfp4("fp4" if block.get("input_tensors") else "bf16"), ""
    if dtype == "int8":
        return INT8, ""
    return BF16, f"quark weights of dtype '{dtype}' are not known."


def _mixed(layers: Any) -> tuple[WeightFormat, tuple[tuple[str, WeightFormat], ...], str]:
    """Read ModelOpt's mixed precision: each quantised layer by name, the others at 16 bits."""
    if not isinstance(layers, Mapping) or not layers:
        return BF16, (), "mixed precision without quantized_layers."
    special: list[tuple[str, WeightFormat]] = []
    for name, block in layers.items():
        form, problem = _format(str(block.get("quant_algo") or "").lower(), block)
        if problem:
            return BF16, (), f"{name}: {problem}"
        special.append((str(name), form))
    return BF16, tuple(special), ""


def _compressed(groups: Any) -> tuple[WeightFormat, tuple[tuple[str, WeightFormat], ...], str]:
    """Read the groups of a compressed-tensors block.

    A group that targets ``Linear`` is for all that the others do not name.
    """
    if not isinstance(groups, Mapping) or not groups:
        return BF16, (), "compressed-tensors without config_groups."
    usual, special = BF16, []
    for group in groups.values():
        form, problem = _group(group)
        if problem:
            return BF16, (), problem
        for target in group.get("targets") or ("Linear",):
            if target == "Linear":
                usual = form
            else:
                special.append((target, form))
    return usual, tuple(special), ""


def _group(group: Mapping[str, Any]) -> tuple[WeightFormat, str]:
    weights = group.get("weights") or {}
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    activations = group.get("input_activations")
    if kind == "float" and bits == 8:
        return fp8(weights.get("block_structure")), ""
    if kind == "float" and bits == 4 and size == 32:
        return mxfp4("fp4" if activations else "bf16"), ""
    if kind == "float" and bits == 4:
        return nvfp4(size or 16, "fp4" if activations else "bf16"), ""
    if kind == "int" and bits == 8 and activations:
        return INT8, ""
    if kind == "int" and bits in (4, 8):
        return integer(bits, size, zero_points=not weights.get("symmetric", True)), ""
    return BF16, f"weights of type {kind!r} with {bits!r} bits are not known."
