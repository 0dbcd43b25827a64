"""Engine cards: what the host of one engine version does for a step, and which rules it follows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmsim.core.holding import held
from llmsim.core.paths import list_data
from llmsim.specs.cards import CardRow, Sheet, find_card
from llmsim.specs.engine import HostTerms


@dataclass(frozen=True, slots=True)
class EngineCard:
    """One version of a serving engine; it stands for the releases up to the next card.

    Parameters
    ----------
    name : str
        Engine and first release, such as ``vllm-0.12``.
    rules : str
        The recorded version whose scheduling rules come nearest.
    lookahead : int [steps]
        1 where scheduling runs beside the GPU by default, else 0.
    host : HostTerms
    fused_norm : bool
        Whether the all-reduces of tensor parallelism do the residual and norm behind them.
    static_memory : bool
        Whether the share of the GPU's memory that the engine may use is for weights and KV alone.
    sources : tuple of CardRow
    """

    name: str
    rules: str
    lookahead: int
    host: HostTerms
    fused_norm: bool
    static_memory: bool
    sources: tuple[CardRow, ...]

    @property
    def family(self) -> str:
        """The engine without its version: whose kernels a GPU runs."""
        return self.name.partition("-")[0]

    def rows(self) -> list[CardRow]:
        """Return (field, value, unit, source) of every number."""
        return list(self.sources)


def engine_names() -> tuple[str, ...]:
    """Return the names of all engine cards, sorted."""
    return tuple(sorted(list_data("profiles/engines", ".yaml")))


def newest_engine(family: str) -> str:
    """Return the card of a family's newest version; empty where it has none.

    Parameters
    ----------
    family : str
        Such as ``vllm``.
    """
    cards = [name for name in engine_names() if name.partition("-")[0] == family]
    return max(cards, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default="")


@held
def load_engine(name: str) -> EngineCard:
    """Read an engine card.

    Parameters
    ----------
    name : str
        Such as ``vllm-0.12``.

    Raises
    ------
    CardError
        With every fault of the card, or the nearest name when there is none of this name.
    """
    sheet = Sheet(find_card("profiles/engines", name))
    card = sheet.text("name")
    rules = sheet.text("rules")
    lookahead = sheet.number("lookahead", "steps", 0, 1)
    host = HostTerms(
        base_s=sheet.number("host.base_s", "s"),
        per_request_s=sheet.number("host.per_request_s", "s/request"),
        eager_layer_s=sheet.number("host.eager_layer_s", "s/layer"),
        prefill_layer_s=sheet.number("host.prefill_layer_s", "s/layer"),
        gap_s=sheet.number("host.gap_s", "s"),
        gap_per_chunk_s=sheet.number("host.gap_per_chunk_s", "s/chunk"),
    )
    fused = sheet.number("fused_norm", "1", 0, 1)
    static = sheet.number("static_memory", "1", 0, 1)
    return EngineCard(card, rules, int(lookahead), host, bool(fused), bool(static), sheet.finish())
