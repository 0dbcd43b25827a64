"""`llmsim list prices`: who lets which GPU for how much, with the day on which it was read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmsim.specs import PriceCard, gpu_names, load_prices

HEAD = ("gpu", "price", "USD/(GPU h)", "read", "region")
"""Under ``price`` stands what `pool.price` says to get it."""


def price_table() -> list[tuple[str, ...]]:
    """Return the offers by GPU, the cheapest first, below their head."""
    offers = sorted(load_prices(), key=lambda offer: (offer.gpu, offer.usd_per_gpu_hour))
    return [
        HEAD,
        *(
            (each.gpu, each.whose, f"{each.usd_per_gpu_hour:.3f}", each.date, each.region)
            for each in offers
        ),
    ]


def price_records() -> list[dict[str, object]]:
    """Return all that is known of each offer, in the order of the table."""
    return [
        {
            "gpu": each.gpu,
            "cloud": each.cloud,
            "term": each.term,
            "price": each.whose,
            "usd_per_gpu_hour": each.usd_per_gpu_hour,
            "date": each.date,
            "region": each.region,
            "instance": each.instance,
            "source": each.source,
        }
        for each in sorted(load_prices(), key=lambda offer: (offer.gpu, offer.usd_per_gpu_hour))
    ]


def reach_of_prices() -> Iterator[str]:
    """Yield what the table must not be taken for: how old it is, and what it does not have."""
    offers = load_prices()
    if not offers:
        yield "the table of prices is empty."
        return
    days = sorted(each.date for each in offers)
    yield f"read {days[0]} to {days[-1]}: prices change, set your own before you decide."
    without = sorted(set(gpu_names()) - {each.gpu for each in offers})
    if without:
        yield f"no price: {', '.join(without)}."
    for term in ("reserved", "spot"):
        found = [each for each in offers if each.term.split("-")[0] == term]
        others = sorted({each.cloud for each in offers} - {each.cloud for each in found})
        if not found:
            yield f"{term}: of no cloud in this table."
        elif others:
            yield f"{term}: of {_named(found)} only, not of {', '.join(others)}."


def _named(offers: Iterable[PriceCard]) -> str:
    """Return the clouds with the lengths that they were read for, such as ``gcp (1y, 3y)``."""
    lengths: dict[str, set[str]] = {}
    for each in offers:
        lengths.setdefault(each.cloud, set()).add(each.term.partition("-")[2])
    told = []
    for cloud in sorted(lengths):
        known = [_LENGTHS.get(length, length) for length in sorted(lengths[cloud]) if length]
        told.append(f"{cloud} ({', '.join(known)})" if known else cloud)
    return " and ".join([*([", ".join(told[:-1])] if told[1:] else []), told[-1]])


_LENGTHS = {"block": "capacity blocks", "1y": "for 1 year", "3y": "for 3 years"}
