"""Which tensors of a checkpoint are quantised, and how, from its quantisation block.

Read in this order: ``quantization_config`` of the config, ``hf_quant_config.json`` beside it,
else 16 bits. Embedding, LM head and router stay at 16 bits, as engines keep them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from math import prod
from typing import Any

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
    """

    format: WeightFormat = BF16
    kept: tuple[str, ...] = ()
    kv_dtype: str = "bf16"

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
        if self.format is BF16:
            return BF16
        everywhere, by_layer = _sorted_patterns(self.kept)
        patterns = (*everywhere, *by_layer.get(layer, ()))
        names = [f"layers.{layer}.{module}" for module in modules]
        held = any(_matches(pattern, name) for pattern in patterns for name in names)
        return BF16 if held else self.format


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
    if block:
        method = str(block.get("quant_algo") or block.get("quant_method") or "").lower()
        kept = (
            block.get("ignore")
            or block.get("ignored_layers")
            or block.get("modules_to_not_convert")
        )
        kv_scheme = block.get("kv_cache_scheme")
    elif beside and isinstance(beside.get("quantization"), Mapping):
        block = beside["quantization"]
        method = str(block.get("quant_algo") or "").lower()
        kept = block.get("exclude_modules")
        kv_scheme = block.get("kv_cache_quant_algo")
    else:
        return Quantisation(), []
    faults: list[Fault] = []
    if not method:
        faults.append(Fault(where, "quantization_config.quant_method", "missing."))
        return Quantisation(), faults
    form, problem = _format(method, block)
    if problem:
        faults.append(Fault(where, "quantization_config", problem))
    kv_dtype = "fp8" if _is_8bit_float(kv_scheme) else "bf16"
    return Quantisation(form, tuple(kept or ()), kv_dtype), faults


def _is_8bit_float(scheme: Any) -> bool:
    if isinstance(scheme, Mapping):
        return scheme.get("num_bits") == 8 and scheme.get("type") == "float"
    return str(scheme or "").upper() == "FP8"


def _format(method: str, block: Mapping[str, Any]) -> tuple[WeightFormat, str]:
    """Return the weight format of a method, or BF16 and what is wrong."""
    if method in ("fp8", "fbgemm_fp8"):
        return _fp8(block.get("weight_block_size")), ""
    if method == "nvfp4":
        group = int(block.get("group_size") or 16)
        return WeightFormat("nvfp4", 0.5 + 1.0 / group, "fp4"), ""
    if method == "mxfp4":
        return WeightFormat("mxfp4", 0.5 + 1.0 / 32, "bf16"), ""
    if method == "compressed-tensors":
        return _compressed(block.get("config_groups"))
    if method in ("gptq", "awq"):
        return _integer(block.get("bits"), block.get("group_size"), zero_points=True)
    return BF16, f"quantisation method '{method}' is not known."


def _fp8(block_size: Sequence[int] | None) -> WeightFormat:
    if not block_size:
        return WeightFormat("fp8", 1.0, "fp8")
    return WeightFormat(f"fp8-block{block_size[0]}", 1.0 + 4.0 / prod(block_size), "fp8")


def _integer(bits: Any, group: Any, zero_points: bool) -> tuple[WeightFormat, str]:
    """Return a weight-only integer format: products run at 16 bits."""
    if bits not in (4, 8):
        return BF16, f"weights of {bits!r} bits are not known (4 or 8)."
    size = bits / 8.0
    if isinstance(group, int) and group > 0:
        size += (_SCALE16_BYTES + (bits / 8.0 if zero_points else 0.0)) / group
    return WeightFormat(f"int{bits}", size, "bf16"), ""


def _compressed(groups: Any) -> tuple[WeightFormat, str]:
    """Read the first weight group of a compressed-tensors block."""
    if not isinstance(groups, Mapping) or not groups:
        return BF16, "compressed-tensors without config_groups."
    if len(groups) > 1:
        return BF16, f"{len(groups)} config_groups; one is known."
    group = next(iter(groups.values()))
    weights = group.get("weights") or {}
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    activations = group.get("input_activations")
    if kind == "float" and bits == 8:
        return _fp8(weights.get("block_structure")), ""
    if kind == "float" and bits == 4:
        dtype = "fp4" if activations else "bf16"
        return WeightFormat("nvfp4", 0.5 + 1.0 / (size or 16), dtype), ""
    if kind == "int" and bits == 8 and activations:
        return WeightFormat("int8", 1.0, "int8"), ""
    if kind == "int":
        return _integer(bits, size, zero_points=not weights.get("symmetric", True))
    return BF16, f"weights of type {kind!r} with {bits!r} bits are not known."
