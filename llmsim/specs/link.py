"""Link cards: what connects GPUs to each other, to the host, or node to node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmsim.core.holding import held
from llmsim.core.paths import list_data
from llmsim.specs.cards import CardRow, Sheet, find_card, is_path, resolve_path

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
"""Collectives that a link card may have measured lines of."""


@dataclass(frozen=True, slots=True)
class CollectiveLine:
    """Measured time of one library's collective at one group size.

    ``t = (alpha_s^norm + (bus bytes / bus_bytes_per_s)^norm)^(1 / norm)``.

    Parameters
    ----------
    algorithm : str
        Such as ``nccl`` or ``custom``.
    gpus : int [GPUs]
    alpha_s : float [s]
    bus_bytes_per_s : float [bytes/s]
        Bus bandwidth as nccl-tests define it.
    norm : float
        1 for a straight line. Below 1 the two parts hinder each other: between its latency and
        its bandwidth a library changes protocols, and is slower than either alone says.
    """

    algorithm: str
    gpus: int
    alpha_s: float
    bus_bytes_per_s: float
    norm: float = 1.0


@dataclass(frozen=True, slots=True)
class LinkCard:
    """One kind of link.

    Parameters
    ----------
    name : str
    bytes_per_s : float [bytes/s]
        Datasheet bandwidth per GPU (or per NIC), one direction.
    p2p_alpha_s : float [s]
        Latency of one point-to-point message.
    p2p_bytes_per_s : float [bytes/s]
        Reached by one large point-to-point message.
    all_reduce, all_gather, reduce_scatter, all_to_all : tuple of CollectiveLine
        Empty where nothing was measured.
    sources : tuple of CardRow
    """

    name: str
    bytes_per_s: float
    p2p_alpha_s: float
    p2p_bytes_per_s: float
    all_reduce: tuple[CollectiveLine, ...]
    all_gather: tuple[CollectiveLine, ...]
    reduce_scatter: tuple[CollectiveLine, ...]
    all_to_all: tuple[CollectiveLine, ...]
    sources: tuple[CardRow, ...]

    def rows(self) -> list[CardRow]:
        """Return (field, value, unit, source) of every number."""
        return list(self.sources)


def link_names() -> tuple[str, ...]:
    """Return the names of all link cards, sorted."""
    return tuple(sorted(list_data("profiles/links", ".yaml")))


@held
def load_link(name_or_path: str, near: Path | None = None, engine: str = "") -> LinkCard:
    """Read a link card.

    Parameters
    ----------
    name_or_path : str
        Card name or alias, or a path to a card file.
    near : Path or None
        Folder that a relative path starts from.
    engine : str
        Family of the serving engine, such as ``trtllm``: whose collectives to price where they
        were measured apart; empty for the median of those that were.

    Raises
    ------
    CardError
        With every fault of the card, or the nearest name when there is none of this name.
    """
    by_path = is_path(name_or_path)
    path = (
        resolve_path(name_or_path, near) if by_path else find_card("profiles/links", name_or_path)
    )
    sheet = Sheet(path)
    name = sheet.text("name", path.stem)
    sheet.words("aliases")
    peak = sheet.number("bytes_per_s", "bytes/s", 1)
    p2p_alpha_s = sheet.number("p2p.alpha_s", "s")
    p2p = sheet.number("p2p.bytes_per_s", "bytes/s", 1, peak)
    of_engine = {
        family: {kind: _lines(sheet, f"engines.{family}.{kind}", peak) for kind in COLLECTIVES}
        for family in sheet.under("engines")
    }
    own = of_engine.get(engine, {})
    lines = {kind: _over(own.get(kind, ()), _lines(sheet, kind, peak)) for kind in COLLECTIVES}
    return LinkCard(name, peak, p2p_alpha_s, p2p, **lines, sources=sheet.finish())


def _over(
    own: tuple[CollectiveLine, ...], usual: tuple[CollectiveLine, ...]
) -> tuple[CollectiveLine, ...]:
    """Return an engine's own lines, and the usual ones of other algorithms and group sizes."""
    known = {(line.algorithm, line.gpus) for line in own}
    return (*(line for line in usual if (line.algorithm, line.gpus) not in known), *own)


def _lines(sheet: Sheet, kind: str, peak: float) -> tuple[CollectiveLine, ...]:
    """Read what a card knows of one collective."""
    found = []
    for algorithm in sheet.under(kind):
        for group in sheet.under(f"{kind}.{algorithm}"):
            if not group.isdigit():
                continue
            at = f"{kind}.{algorithm}.{group}"
            norm = sheet.number(f"{at}.norm", "1", 0.3, 4.0) if sheet.has(f"{at}.norm") else 1.0
            found.append(
                CollectiveLine(
                    algorithm,
                    int(group),
                    sheet.number(f"{at}.alpha_s", "s"),
                    sheet.number(f"{at}.bus_bytes_per_s", "bytes/s", 1, peak),
                    norm,
                )
            )
    return tuple(found)
