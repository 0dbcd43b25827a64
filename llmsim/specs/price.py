"""Prices: `profiles/prices/catalog.csv` in SkyPilot's schema, each row dated and sourced."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from llmsim.core.errors import CardError, Fault, nearest
from llmsim.core.holding import held
from llmsim.core.paths import find_data
from llmsim.specs.cards import CardRow, find_card
from llmsim.specs.gpu import gpu_names

TERMS: Final = {"on-demand": "Price", "spot": "SpotPrice", "reserved": "ReservedPrice"}
"""Ways to pay, and the column of each: the first two are SkyPilot's, the third is ours; what is
reserved for long goes by how long (column ``ReservedFor``), as ``reserved-1y``."""

NEEDED: Final = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price")
"""Columns that a catalog must have (https://github.com/skypilot-org/skypilot-catalog)."""

ACCELERATORS: Final = {
    "A10": "a10",
    "A100": "a100-40gb-sxm",
    "A100-80GB": "a100-80gb-sxm",
    "A100-80G-PCIe": "a100-80gb-pcie",
    "A10G": "a10g",
    "B200": "b200",
    "B300": "b300",
    "GB200": "gb200",
    "GB300": "gb300",
    "GH200": "gh200-96gb",
    "H100": "h100-sxm",
    "H100-80G-PCIe": "h100-pcie",
    "H100-80G-SXM5": "h100-sxm",
    "H200": "h200-sxm",
    "L4": "l4",
    "L40S": "l40s",
    "MI300X": "mi300x",
    "MI325X": "mi325x",
    "MI355X": "mi355x",
    "RTX-PRO-6000": "rtx-pro-6000",
    "RTX4090": "rtx-4090",
    "RTXPRO6000": "rtx-pro-6000",
    "T4": "t4",
    "V100": "v100-16gb-sxm",
    "V100-32GB": "v100-32gb-sxm",
}
"""SkyPilot's names of accelerators -> cards. An A100 is the one with 40 GB there, an H100 without
more words is SXM, a V100 has 16 GB."""


@dataclass(frozen=True, slots=True)
class PriceCard:
    """One cloud's offer.

    Parameters
    ----------
    gpu : str
        Name of the GPU card, or the catalog's own where there is no card.
    cloud, instance : str
    usd_per_gpu_hour : float [USD/(GPU h)]
    date : str
        Day the price was read, ISO 8601.
    source : str
    term : str
        ``on-demand``, ``spot`` (may be taken away at any time), or ``reserved`` (paid beforehand
        or promised), with how long where the catalog says it: ``reserved-3y``.
    region : str
        Empty where it holds in all, or is not known.
    """

    gpu: str
    cloud: str
    instance: str
    usd_per_gpu_hour: float
    date: str
    source: str
    term: str = "on-demand"
    region: str = ""

    @property
    def whose(self) -> str:
        """What `pool.price` says to get it: the cloud, with the term unless it is on demand."""
        return self.cloud if self.term == "on-demand" else f"{self.cloud}/{self.term}"

    def rows(self) -> list[CardRow]:
        """Return the offer as (field, value, unit, source)."""
        field = f"{self.whose}.{self.instance}"
        place = f", {self.region}" if self.region else ""
        where = f"{self.source}{place}, read {self.date}"
        return [CardRow(field, self.usd_per_gpu_hour, "USD/(GPU h)", where)]


@held
def load_prices(path: Path | None = None) -> tuple[PriceCard, ...]:
    """Read a catalog of prices.

    Parameters
    ----------
    path : Path or None
        A CSV in SkyPilot's catalog schema; `Cloud`, `ReservedPrice`, `ReservedFor`, `Date` and
        `Source` may come beside. Without them the cloud is the file's folder, as SkyPilot lays its
        catalogs out, the day is that of the file, and the source its name. None for the shipped
        one, or yours in a folder of ``LLMSIM_PATH``.

    Raises
    ------
    CardError
        If the file is missing or malformed; all faults with their lines.

    Notes
    -----
    A row has the price of the whole instance. Rows without an accelerator are passed over.
    """
    table = path or find_data("profiles", "prices", "catalog.csv")
    if table is None or not table.is_file():
        raise CardError("prices", [Fault(str(table or ""), "", "no price table.")])
    cards: list[PriceCard] = []
    faults: list[Fault] = []
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        known = reader.fieldnames or []
        missing = [name for name in NEEDED if name not in known]
        if missing:
            found = [
                Fault(f"{table}:1", name, "no such column.", nearest(name, known))
                for name in missing
            ]
            raise CardError(table.name, found)
        for row in reader:
            where = f"{table}:{reader.line_num}"
            if (row.get("AcceleratorName") or "").strip():
                offers, wrong = _offers(row, where, table)
                cards += offers
                faults += wrong
    if faults:
        raise CardError(table.name, faults)
    return tuple(cards)


def _offers(row: dict[str, str], where: str, table: Path) -> tuple[list[PriceCard], list[Fault]]:
    """Return the offers of a row, one per way to pay, or what is wrong with it."""
    told = {key: (text or "").strip() for key, text in row.items() if key is not None}
    faults = [
        Fault(where, key, "is empty.")
        for key in ("Cloud", "Date", "Source", "InstanceType")
        if key in told and not told[key]
    ]
    count = _positive(told["AcceleratorCount"])
    if count is None:
        text = told["AcceleratorCount"]
        faults.append(
            Fault(where, "AcceleratorCount", f"must be a positive number (got {text!r}).")
        )
    day = told.get("Date") or f"{datetime.fromtimestamp(table.stat().st_mtime, UTC):%Y-%m-%d}"
    try:
        date.fromisoformat(day)
    except ValueError:
        faults.append(Fault(where, "Date", f"must be a day such as 2026-11-09 (got {day!r})."))
    length = told.get("ReservedFor", "")
    if length and not length.isalnum():
        faults.append(
            Fault(where, "ReservedFor", f"must be a length such as 1y or 30d (got {length!r}).")
        )
    cards = []
    for term, column in TERMS.items():
        text = told.get(column, "")
        price = _positive(text) if text else None
        if text and price is None:
            faults.append(Fault(where, column, f"must be a positive number (got {text!r})."))
        if price is None or count is None:
            continue
        name = told["AcceleratorName"]
        cards.append(
            PriceCard(
                gpu=ACCELERATORS.get(name, name),
                cloud=told.get("Cloud") or table.resolve().parent.name,
                instance=told["InstanceType"],
                usd_per_gpu_hour=price / count,
                date=day,
                source=told.get("Source") or str(table),
                term=f"{term}-{length}" if term == "reserved" and length else term,
                region=told.get("Region", ""),
            )
        )
    if not cards and not faults:
        faults.append(Fault(where, "Price", f"no price: one of {', '.join(TERMS.values())}."))
    return ([], faults) if faults else (cards, [])


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def price_of(
    gpu: str, whose: str | None = None, prices: tuple[PriceCard, ...] | None = None
) -> PriceCard:
    """Return the cheapest offer for a GPU.

    Parameters
    ----------
    gpu : str
        Name or alias of the GPU card.
    whose : str or None
        A cloud, ``cloud/spot``, ``cloud/reserved``, or ``spot`` or ``reserved`` of whichever cloud;
        None for all clouds. Without a term: on demand. ``reserved`` is for however long, and
        ``reserved-1y`` for a year.
    prices : tuple of PriceCard or None
        Offers to choose from; None for the shipped table.

    Raises
    ------
    CardError
        If nobody in the table offers it; the message gives the nearest name.
    """
    offers = offers_of(gpu, prices)
    cloud, _, term = (whose or "").partition("/")
    if not term and cloud in {word for card in offers for word in _words(card.term)}:
        cloud, term = "", cloud
    chosen = [
        card
        for card in offers
        if cloud in ("", card.cloud) and (term or "on-demand") in _words(card.term)
    ]
    if not chosen:
        words = {f"{card.cloud}/{word}" for card in offers for word in _words(card.term)}
        hint = nearest(str(whose), {card.whose for card in offers} | words)
        if whose is None:
            raise CardError("prices", [Fault("", gpu, "has no offer on demand.", hint)])
        raise CardError("prices", [Fault("", f"{gpu}.{whose}", "this cloud has no offer.", hint)])
    return min(chosen, key=lambda card: (card.usd_per_gpu_hour, card.cloud, card.instance))


def offers_of(gpu: str, prices: tuple[PriceCard, ...] | None = None) -> list[PriceCard]:
    """Return every offer for a GPU, on whichever terms.

    Parameters
    ----------
    gpu : str
        Name or alias of the GPU card.
    prices : tuple of PriceCard or None
        Offers to choose from; None for the shipped table.

    Raises
    ------
    CardError
        If there is none; the message gives the nearest name.
    """
    table = load_prices() if prices is None else prices
    offers = [card for card in table if card.gpu == gpu] or _offers_of_alias(gpu, table)
    if not offers:
        if gpu in gpu_names():
            hint = "Say what it costs: gpu_price_usd_per_hour of its pool."
        else:
            hint = nearest(gpu, {card.gpu for card in table})
        raise CardError("prices", [Fault("", gpu, "no offer for this GPU.", hint)])
    return offers


def _words(term: str) -> tuple[str, ...]:
    """Return what a scenario may say to get a term: itself, or ``reserved`` for any length."""
    return (term, "reserved") if term.startswith("reserved-") else (term,)


def _offers_of_alias(gpu: str, table: tuple[PriceCard, ...]) -> list[PriceCard]:
    try:
        name = find_card("profiles/gpus", gpu).stem
    except CardError:
        return []  # a price table may name GPUs that have no card
    return [card for card in table if card.gpu == name]
