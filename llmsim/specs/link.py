"""Link cards: what connects GPUs to each other, to the host, or node to node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmsim.core.paths import list_data
from llmsim.specs.cards import CardRow, Sheet, find_card, is_path, resolve_path


@dataclass(frozen=True, slots=True)
class AllReducePrior:
    """Measured two-parameter line of one all-reduce algorithm at one group size.

    ``t = alpha_s + 2 (n - 1) / n * bytes / bus_bytes_per_s``.

    Parameters
    ----------
    algorithm : str
        Such as ``nccl`` or ``custom``.
    gpus : int [GPUs]
    alpha_s : float [s]
    bus_bytes_per_s : float [bytes/s]
        Bus bandwidth as nccl-tests define it.
    """

    algorithm: str
    gpus: int
    alpha_s: float
    bus_bytes_per_s: float


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
    all_reduce : tuple of AllReducePrior
    sources : tuple of CardRow
    """

    name: str
    bytes_per_s: float
    p2p_alpha_s: float
    p2p_bytes_per_s: float
    all_reduce: tuple[AllReducePrior, ...]
    sources: tuple[CardRow, ...]

    def rows(self) -> list[CardRow]:
        """Return (field, value, unit, source) of every number."""
        return list(self.sources)


def link_names() -> tuple[str, ...]:
    """Return the names of all link cards, sorted."""
    return tuple(sorted(list_data("profiles/links", ".yaml")))


def load_link(name_or_path: str, near: Path | None = None) -> LinkCard:
    """Read a link card.

    Parameters
    ----------
    name_or_path : str
        Card name or alias, or a path to a card file.
    near : Path or None
        Folder that a relative path starts from.

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
    priors = tuple(
        AllReducePrior(
            algorithm,
            int(group),
            sheet.number(f"all_reduce.{algorithm}.{group}.alpha_s", "s"),
            sheet.number(f"all_reduce.{algorithm}.{group}.bus_bytes_per_s", "bytes/s", 1, peak),
        )
        for algorithm in sheet.under("all_reduce")
        for group in sheet.under(f"all_reduce.{algorithm}")
        if group.isdigit()
    )
    return LinkCard(name, peak, p2p_alpha_s, p2p, priors, sheet.finish())
