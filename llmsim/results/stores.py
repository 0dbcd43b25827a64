"""Where KV lay besides in use: tiers below the GPUs, and pins between two calls of a program."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from llmsim.results.facts import PinFacts, RunFacts, TierFacts

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
