"""The text part of a HuggingFace config under reading: keys by several names, faults collected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llmsim.core.errors import Fault
from llmsim.specs.decoders import DECODERS, Decoder
from llmsim.specs.quantisation import Quantisation

_INNER = ("text_config", "llm_config", "language_config", "thinker_config")


LARGEST: Final = {
    "num_hidden_layers": 10_000,
    "hidden_size": 10**7,
    "num_attention_heads": 10**5,
    "vocab_size": 10**8,
}
"""What no model is without, and the most that is taken for a model: far beyond any published."""

MOST: Final = 10**12
"""The most of anything else."""


@dataclass
class ConfigReader:
    """Hands out keys, by the first of several names that is there.

    Parameters
    ----------
    keys : mapping
        Of the text model; see `text_keys`.
    where : str
        File named in faults.
    quant : Quantisation
    faults : list of Fault
    warnings : list of str
    """

    keys: Mapping[str, Any]
    where: str
    quant: Quantisation
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def model_type(self) -> str:
        """``model_type``; empty when the config has none."""
        return str(self.keys.get("model_type") or "")

    @property
    def decoder(self) -> Decoder:
        """What the class of this type defines; nothing but the usual for an unknown type."""
        return DECODERS.get(self.model_type, Decoder())

    def get(self, *names: str) -> Any:
        """Return the first of these keys that is there and not null, else None."""
        return next((self.keys[name] for name in names if self.keys.get(name) is not None), None)

    def fault(self, key: str, message: str, hint: str = "") -> None:
        """Note that something is wrong with a key; the same fault is noted once."""
        fault = Fault(self.where, key, message, hint)
        if fault not in self.faults:
            self.faults.append(fault)

    def count(self, *names: str, default: int | None = None) -> int:
        """Return a whole number; without default it must be there.

        Parameters
        ----------
        *names : str
            Words of different model classes for the same thing.
        default : int or None
            None if the model cannot do without.
        """
        value = self.get(*names)
        if value is None:
            if default is None:
                self.fault(" or ".join(names), "missing.")
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            told = f"{value!r}"
            told = told if len(told) <= 60 else f"{told[:57]}..."
            self.fault(names[0], f"must be a whole number (got {told}).")
            return 0
        most = LARGEST.get(names[0], MOST)
        least = 1 if names[0] in LARGEST else 0
        if not least <= value <= most:
            told = f"{value:,}" if value < 10**18 else "more than 10^18"
            self.fault(names[0], f"must be from {least} to {most:,} (got {told}).")
            return least
        return value

    def per_layer(self, index: int, *names: str) -> Any:
        """Return one layer's entry of a list with one entry per layer; None without the list."""
        listed = self.get(*names)
        if not isinstance(listed, list | tuple | str):
            return None
        if index >= len(listed):
            self.fault(names[0], "has fewer entries than there are layers.")
            return None
        return listed[index]


def text_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the language model inside a config, in standard words.

    Parameters
    ----------
    config : mapping
        The parsed ``config.json``; ``text_config``, ``llm_config`` and the like are looked into,
        two deep at most, and win over the outer keys.

    Returns
    -------
    dict
        Where the model class has other words or its own defaults, the standard words are there
        too.
    """
    keys = dict(config)
    for _ in range(2):
        inner = next((keys[name] for name in _INNER if isinstance(keys.get(name), Mapping)), None)
        if inner is None:
            break
        keys = {name: value for name, value in keys.items() if name not in _INNER}
        keys.update({name: value for name, value in inner.items() if value is not None})
    known = DECODERS.get(str(keys.get("model_type") or ""))
    if known is None:
        return keys
    for own, standard in known.renamed.items():
        if keys.get(standard) is None and keys.get(own) is not None:
            keys[standard] = keys[own]
    for name, value in known.defaults.items():
        if keys.get(name) is None:
            keys[name] = value
    width = keys.get("hidden_size")
    if known.mlp_ratio and keys.get("intermediate_size") is None and isinstance(width, int):
        keys["intermediate_size"] = known.mlp_ratio * width
    return keys
