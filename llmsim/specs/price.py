"""On-demand prices: `profiles/prices/on_demand.csv`, one dated and sourced row per offer."""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path

from llmsim.core.errors import CardError, Fault, nearest
from llmsim.core.paths import find_data
from llmsim.specs.cards import CardRow, find_card


@dataclass(frozen=True, slots=True)
class PriceCard:
    """One cloud's on-demand offer.

    Parameters
    ----------
    gpu : str
        Name of the GPU card.
    cloud, instance : str
    usd_per_gpu_hour : float [USD/(GPU h)]
    date : str
        Day the price was read, ISO 8601.
    source : str
    """

    gpu: str
    cloud: str
    instance: str
    usd_per_gpu_hour: float
    date: str
    source: str

    def rows(self) -> list[CardRow]:
        """Return the offer as (field, value, unit, source)."""
        field = f"{self.gpu}.{self.cloud}.{self.instance}"
        where = f"{self.source}, read {self.date}"
        return [CardRow(field, self.usd_per_gpu_hour, "USD/(GPU h)", where)]


def load_prices(path: Path | None = None) -> tuple[PriceCard, ...]:
    """Read a price table.

    Parameters
    ----------
    path : Path or None
        A CSV with the columns of `PriceCard`; None for the shipped one.

    Raises
    ------
    CardError
        If the file is missing or malformed; all faults with their lines.
    """
    table = path or find_data("profiles", "prices", "on_demand.csv")
    if table is None or not table.is_file():
        raise CardError("prices", [Fault(str(table or ""), "", "no price table.")])
    names = [field.name for field in fields(PriceCard)]
    cards: list[PriceCard] = []
    faults: list[Fault] = []
    with table.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames != names:
            fault = Fault(f"{table}:1", "", f"columns are {reader.fieldnames}, must be {names}.")
            raise CardError(table.name, [fault])
        for row in reader:
            where = f"{table}:{reader.line_num}"
            bad = _row_faults(row, where)
            faults += bad
            if not bad:
                price = float(row["usd_per_gpu_hour"])
                cards.append(
                    PriceCard(
                        row["gpu"], row["cloud"], row["instance"], price, row["date"], row["source"]
                    )
                )
    if faults:
        raise CardError(table.name, faults)
    return tuple(cards)


def _row_faults(row: dict[str, str], where: str) -> list[Fault]:
    found = [
        Fault(where, key, "is empty.") for key, text in row.items() if not (text or "").strip()
    ]
    if found:
        return found
    try:
        if not float(row["usd_per_gpu_hour"]) > 0:
            raise ValueError
    except ValueError:
        text = row["usd_per_gpu_hour"]
        found.append(Fault(where, "usd_per_gpu_hour", f"must be a positive number (got {text!r})."))
    try:
        date.fromisoformat(row["date"])
    except ValueError:
        found.append(
            Fault(where, "date", f"must be a day such as 2026-11-09 (got {row['date']!r}).")
        )
    return found


def price_of(
    gpu: str, cloud: str | None = None, prices: tuple[PriceCard, ...] | None = None
) -> PriceCard:
    """Return the cheapest offer for a GPU.

    Parameters
    ----------
    gpu : str
        Name or alias of the GPU card.
    cloud : str or None
        Look at this cloud alone; None for all.
    prices : tuple of PriceCard or None
        Offers to choose from; None for the shipped table.

    Raises
    ------
    CardError
        If nobody in the table offers it; the message gives the nearest name.
    """
    table = load_prices() if prices is None else prices
    offers = [card for card in table if card.gpu == gpu] or _offers_of_alias(gpu, table)
    if not offers:
        hint = nearest(gpu, {card.gpu for card in table})
        raise CardError("prices", [Fault("", gpu, "no offer for this GPU.", hint)])
    chosen = [card for card in offers if cloud in (None, card.cloud)]
    if not chosen:
        hint = nearest(str(cloud), {card.cloud for card in offers})
        raise CardError("prices", [Fault("", f"{gpu}.{cloud}", "this cloud has no offer.", hint)])
    return min(chosen, key=lambda card: (card.usd_per_gpu_hour, card.cloud, card.instance))


def _offers_of_alias(gpu: str, table: tuple[PriceCard, ...]) -> list[PriceCard]:
    try:
        name = find_card("profiles/gpus", gpu).stem
    except CardError:
        return []  # a price table may name GPUs that have no card
    return [card for card in table if card.gpu == name]
