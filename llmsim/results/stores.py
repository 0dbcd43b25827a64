"""Where KV lay besides in use: tiers below the GPUs, and pins between two calls of a program."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from llmsim.core.units import NS_PER_S
from llmsim.results.facts import LinkFacts, PinFacts, RunFacts, TierFacts

if TYPE_CHECKING:
    import pandas as pd


def tier_frame(facts: RunFacts) -> pd.DataFrame:
    """Return one row per store below the GPUs: the columns of `TierFacts`, and `hit_frac`.

    `hit_frac` is what was loaded from it over the prompt tokens that were looked up by the replicas
    that reach it.
    """
    import pandas as pd

    rows = [asdict(tier) | {"hit_frac": _hit_frac(facts, tier)} for tier in facts.tiers]
    return pd.DataFrame(rows, columns=[*(f.name for f in fields(TierFacts)), "hit_frac"])


def link_frame(facts: RunFacts) -> pd.DataFrame:
    """Return one row per way to a store: the columns of `LinkFacts`, and how busy it was.

    `used_frac` is what it carried over what it could have carried in the whole run.
    """
    import pandas as pd

    whole_s = facts.end_ns / NS_PER_S
    rows = [
        asdict(link) | {"used_frac": link.moved_bytes / (link.bytes_per_s * whole_s)}
        for link in facts.links
        if whole_s > 0
    ]
    return pd.DataFrame(rows, columns=[*(f.name for f in fields(LinkFacts)), "used_frac"])


def pin_frame(facts: RunFacts) -> pd.DataFrame:
    """Return one row per replica that pins KV: pool, replica, and the columns of `PinFacts`."""
    import pandas as pd

    rows = [
        {"pool": replica.pool, "replica": replica.index} | asdict(replica.pins)
        for replica in facts.replicas
        if replica.pins is not None
    ]
    return pd.DataFrame(rows, columns=["pool", "replica", *(f.name for f in fields(PinFacts))])


def _hit_frac(facts: RunFacts, tier: TierFacts) -> float:
    looked = sum(
        replica.lookup_tokens
        for replica in facts.replicas
        if tier.replica in (-1, replica.index) and tier.pool in ("", replica.pool)
    )
    return tier.loaded_tokens / looked if looked else float("nan")


def told(facts: RunFacts) -> list[tuple[str, str]]:
    """Return what a summary says of tiers and pins, as (name, text); empty without any."""
    rows = []
    for name in dict.fromkeys(tier.name for tier in facts.tiers):
        stores = [tier for tier in facts.tiers if tier.name == name]
        loaded = sum(tier.loaded_tokens for tier in stores)
        read, written = (
            sum(getattr(tier, f"{way}_bytes") for tier in stores) / 1e9
            for way in ("read", "written")
        )
        text = f"{loaded:,} tokens loaded; {read:,.1f} GB read, {written:,.1f} GB written"
        gone = sum(tier.evicted_tokens for tier in stores)
        refused = sum(tier.refused_tokens for tier in stores)
        text += f"; {gone:,} tokens forgotten" if gone else ""
        text += f", {refused:,} turned away" if refused else ""
        rows.append((f"KV in {name}", text))
    ways = {
        name: sum(link.moved_bytes for link in facts.links if link.name == name) / 1e9
        for name in dict.fromkeys(link.name for link in facts.links)
    }
    if any(ways.values()):
        text = ", ".join(f"{moved:,.1f} GB {name}" for name, moved in ways.items() if moved)
        rows.append(("KV over links", text))
    pins = [replica.pins for replica in facts.replicas if replica.pins is not None]
    if pins:
        ends = ", ".join(
            f"{sum(getattr(pin, name) for pin in pins):,} {text}"
            for name, text in (
                ("kept", "until the next call"),
                ("expired", "expired"),
                ("gave_way", "gave way"),
                ("left", "of who left"),
            )
            if any(getattr(pin, name) for pin in pins)
        )
        rows.append(("KV pinned", f"{sum(pin.pins for pin in pins):,} times: {ends or 'never'}"))
    return rows
