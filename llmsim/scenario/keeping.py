"""Which policies of a pool keep its requests where they are, and what that does not go with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.scenario.component import registry

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet, Pool


def _keeper(pool: Pool) -> str:
    """Return the policy that keeps a pool's requests on one replica; empty if there is none."""
    if pool.allocation.kind != "paged":
        return f"allocation {pool.allocation.kind}"
    policy = registry("batching").get(pool.batching.kind)
    return f"batching {pool.batching.kind}" if getattr(policy, "releases_together", False) else ""


def wrong_promises(pool: Pool) -> dict[str, str]:
    """Return what does not go together in a pool, by key."""
    wrong = {}
    if pool.allocation.kind != "paged" and pool.engine.prefix_caching:
        wrong["engine"] = f"prefix_caching does not go with allocation {pool.allocation.kind}"
    if pool.role != "mixed" and _keeper(pool):
        wrong["role"] = f"{pool.role} does not go with {_keeper(pool)}"
    if pool.kv is not None and _keeper(pool):
        wrong["kv"] = f"does not go with {_keeper(pool)}"
    swap = None if pool.kv is None else pool.kv.swap
    if swap is not None and swap.overlaps and pool.engine.prefix_caching:
        wrong["kv"] = "swap.overlaps does not go with engine.prefix_caching"
    if pool.dp > 1 and pool.allocation.kind != "paged":
        wrong["allocation"] = f"{pool.allocation.kind} does not go with attention ranks (dp)"
    if pool.pp > 1 and pool.allocation.params.get("ahead") is False:
        wrong["allocation"] = f"granules are mapped ahead with pipeline stages (pp {pool.pp})"
    if pool.retention.kind != "none":
        wrong |= _wrong_pins(pool)
    if pool.eviction.kind != "lru":
        wrong |= _wrong_order(pool)
    if pool.segments is not None:
        wrong |= _wrong_segments(pool)
    return wrong


def _wrong_segments(pool: Pool) -> dict[str, str]:
    """Return why a pool cannot reuse KV away from the front, if it cannot, by key."""
    against = [
        (not pool.engine.prefix_caching, "need engine.prefix_caching: else nothing is cached"),
        (pool.role == "decode", "are reused where prompts are computed, not with role decode"),
        (pool.kv is not None and bool(pool.kv.tiers), "do not go with kv.tiers yet"),
    ]
    for holds, text in against:
        if holds:
            return {"segments": text}
    return {}


def _wrong_pins(pool: Pool) -> dict[str, str]:
    """Return why a pool cannot pin KV, if it cannot, by key."""
    against = [
        (not pool.engine.prefix_caching, "needs engine.prefix_caching"),
        (pool.role != "mixed", f"does not go with role {pool.role}"),
        (pool.kv is not None and pool.kv.swap is not None, "does not go with kv.swap"),
        (bool(_keeper(pool)), f"does not go with {_keeper(pool)}"),
    ]
    for holds, text in against:
        if holds:
            return {"retention": f"{pool.retention.kind} {text}"}
    return {}


def _wrong_order(pool: Pool) -> dict[str, str]:
    """Return why a pool cannot have an order of eviction of its own, if it cannot, by key."""
    kind = pool.eviction.kind
    if not pool.engine.prefix_caching:
        return {"eviction": f"{kind} needs engine.prefix_caching: else nothing is cached"}
    if pool.role != "mixed":
        return {"eviction": f"{kind} does not go with role {pool.role}"}
    return {}


def wrong_retention(fleet: Fleet, programs: bool) -> dict[str, str]:
    """Return what is wrong with pinned KV where nobody comes back, by key."""
    for name, pool in fleet.pools.items():
        if pool.retention.kind != "none" and not programs:
            text = f"{pool.retention.kind} needs traffic.programs: only their calls come back"
            return {f"fleet.pools.{name}.retention": text}
    return {}


def wrong_moves(fleet: Fleet) -> dict[str, str]:
    """Return why requests cannot change replicas, if they cannot, by key."""
    keepers = [found for found in map(_keeper, fleet.pools.values()) if found]
    movers = [key for key in ("migration", "boot", "gateway", "flip") if getattr(fleet, key)]
    return {key: f"does not go with {keepers[0]}" for key in movers[:1] if keepers}


def wrong_record(fleet: Fleet) -> dict[str, str]:
    """Return why token times cannot be taken down, if they cannot."""
    for pool in fleet.pools.values():
        if pool.dp > 1 or pool.pp > 1:
            return {"record": "tokens do not go with attention ranks (dp) or stages (pp) yet"}
        if getattr(registry("batching").get(pool.batching.kind), "releases_together", False):
            return {  # results leave whole
                "record": f"tokens have no times of their own with batching {pool.batching.kind}"
            }
    return {}
