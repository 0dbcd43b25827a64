"""What a router that foresees needs, and what it does not go with: fleets that cannot be forked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmsim.scenario.component import Component, registry

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet, Pool
    from llmsim.scenario.promises import Estimators

_KEEPS: Final = ("waiting_order", "victim", "admits", "ended", "layer_groups")
"""What batching policies have that keep or plan more than the next step."""


def _foresees(routing: Component) -> bool:
    return getattr(registry("routing").get(routing.kind), "forecasts", False)


def wrong_forecasts(fleet: Fleet, estimators: Estimators) -> dict[str, str]:
    """Return why a router cannot foresee what becomes of requests, if it cannot, by key."""
    wrong = {}
    if fleet.hands_over and _foresees(fleet.handoff.routing):
        kind = fleet.handoff.routing.kind
        wrong["fleet.handoff.routing"] = f"{kind} foresees whole requests, prompts included"
    if not _foresees(fleet.routing):
        return wrong
    kind = fleet.routing.kind
    told = []
    if estimators.output_length is None:
        told.append("foresees nothing without estimators.output_length")
    clashes = ["several models"] if any(pool.model for pool in fleet.pools.values()) else []
    clashes += [found for found in map(_pool_clash, fleet.pools.values()) if found]
    clashes += [
        f"fleet.{key}" for key in ("gateway", "boot", "migration", "control") if getattr(fleet, key)
    ]
    if clashes:
        told.append(f"cannot foresee yet with {', '.join(dict.fromkeys(clashes))}")
    if told:
        wrong["fleet.routing"] = f"{kind} {'; it '.join(told)}"
    return wrong


def _pool_clash(pool: Pool) -> str:
    """Return what of a pool cannot be forked; empty if everything can."""
    if pool.role != "mixed":
        return f"a pool of role {pool.role}"
    if pool.dp > 1:
        return "attention ranks"
    if pool.pp > 1:
        return "pipeline stages"
    if pool.stop is not None:
        return "steps that can be stopped"
    if pool.retention.kind != "none":
        return f"retention {pool.retention.kind}"
    if pool.kv is not None:
        return "KV below the GPU"
    if pool.allocation.kind != "paged":
        return f"allocation {pool.allocation.kind}"
    policy = registry("batching").get(pool.batching.kind)
    keeps = any(hasattr(policy, name) for name in _KEEPS)
    told = f"batching {pool.batching.kind}"
    return told if keeps or getattr(policy, "releases_together", False) else ""
