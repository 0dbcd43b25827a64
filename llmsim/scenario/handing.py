"""What ways of handing prompts over do not go together with how the pools work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet, Pool


def wrong_handing(fleet: Fleet) -> dict[str, str]:
    """Return what is wrong with how prompts are handed over, by key."""
    asked = fleet.handoff
    wrong: dict[str, str] = {}
    settings = {
        "transfer": (asked.transfer, asked.transfer == "layer"),
        "when_full": (asked.when_full, asked.when_full == "refuse"),
    }
    for key, (value, says) in settings.items():
        if says and not fleet.hands_over:
            text = f"{value} needs pools with role prefill and decode"
            wrong[f"handoff.{key}"] = text
        if says and any(pool.beside for pool in fleet.pools.values()):
            text = f"{value} does not go with pools that share GPUs: their KV stays where it is"
            wrong[f"handoff.{key}"] = text
    if asked.gather_bytes_per_s and asked.messages != "per-layer":
        wrong["handoff.gather_bytes_per_s"] = "needs messages: per-layer; blocks go as they lie"
    if wrong:
        return wrong
    if asked.when_full == "refuse" and fleet.flip is not None:
        wrong["handoff.when_full"] = "refuse does not go with flip: roles that change hold by it"
    if asked.when_full == "refuse" and any(p.dp > 1 or p.pp > 1 for p in _of(fleet, "decode")):
        text = "refuse does not go with attention ranks (dp) or stages (pp) of decode pools"
        wrong["handoff.when_full"] = text
    if asked.transfer == "layer":
        roles = ("prefill", "decode") if fleet.flip else ("prefill",)
        for pool in _of(fleet, *roles):
            clashes = _not_in_order(pool)
            if clashes:
                wrong["handoff.transfer"] = f"layer does not go with {' or '.join(clashes)}"
    return wrong


def _of(fleet: Fleet, *roles: str) -> list[Pool]:
    return [pool for pool in fleet.pools.values() if pool.role in roles]


def _not_in_order(pool: Pool) -> list[str]:
    """Return why the layers of a pool's steps do not end evenly, one after another."""
    found = {
        "attention ranks (dp)": pool.dp > 1,
        "steps that stop (stop)": pool.stop is not None,
    }
    return [what for what, there in found.items() if there]
