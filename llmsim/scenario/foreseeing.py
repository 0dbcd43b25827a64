"""What a router that foresees needs, and what it does not go with: fleets that cannot be forked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmsim.scenario.component import Component, registry

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet, Pool
    from llmsim.scenario.model import Scenario
    from llmsim.scenario.promises import Estimators

_KEEPS: Final = ("waiting_order", "victim", "admits", "ended")
"""What batching policies have that keep more than the next step."""


def _foresees(routing: Component) -> bool:
    return getattr(registry("routing").get(routing.kind), "forecasts", False)


def wrong_beliefs(fleet: Fleet, estimators: Estimators) -> dict[str, str]:
    """Return whose policy goes by believed output lengths where nothing is believed, by key."""
    if estimators.output_length is not None:
        return {}
    wrong = {}
    for name, pool in fleet.pools.items():
        for key in ("batching", "allocation"):
            part: Component = getattr(pool, key)
            if getattr(part.build(), "asks_lengths", False):
                told = f"{part.kind} goes by output lengths: set estimators.output_length"
                wrong[f"fleet.pools.{name}.{key}"] = told
    return wrong


def wrong_tool_times(scenario: Scenario) -> dict[str, str]:
    """Return why nobody would ask an estimator of tool times, if nobody would, by key."""
    asked = scenario.estimators.tool_time
    if asked is None:
        return {}
    pins = [pool.retention.kind for pool in scenario.fleet.pools.values()]
    asks = [kind for kind in pins if getattr(registry("retention").get(kind), "asks_pauses", False)]
    if asks:
        return {}
    told = ", ".join(dict.fromkeys(pins))
    return {"estimators.tool_time": f"is asked by nobody: retention {told} has no use for it"}


def wrong_caches(fleet: Fleet) -> dict[str, str]:
    """Return why a router cannot go by what is cached where, if it cannot, by key."""
    wrong = {}
    if fleet.hands_over and _reads_caches(fleet.handoff.routing):
        kind = fleet.handoff.routing.kind
        wrong["fleet.handoff.routing"] = f"{kind} looks at prompts that are still to be computed"
    if not _reads_caches(fleet.routing):
        return wrong
    pools = fleet.pools.values()
    told = []
    if any(pool.model for pool in pools):
        told.append("does not know several models yet")
    if not any(pool.engine.prefix_caching for pool in pools if pool.role != "decode"):
        told.append("goes by cached prefixes, and engine.prefix_caching is off")
    if told:
        wrong["fleet.routing"] = f"{fleet.routing.kind} {'; it '.join(told)}"
    return wrong


def _reads_caches(routing: Component) -> bool:
    return getattr(registry("routing").get(routing.kind), "reads_caches", False)


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
    hosts = {pool.beside for pool in fleet.pools.values()}
    for name, pool in fleet.pools.items():
        clash = _pool_clash(pool, lane=pool.beside is not None or name in hosts)
        clashes += [clash] if clash else []
    clashes += [
        f"fleet.{key}" for key in ("gateway", "boot", "migration", "control") if getattr(fleet, key)
    ]
    if clashes:
        told.append(f"cannot foresee yet with {', '.join(dict.fromkeys(clashes))}")
    if told:
        wrong["fleet.routing"] = f"{kind} {'; it '.join(told)}"
    return wrong


def _pool_clash(pool: Pool, lane: bool) -> str:
    """Return what of a pool cannot be forked; empty if everything can."""
    if pool.role != "mixed" and not lane:
        return f"a pool of role {pool.role}"
    waits = pool.kv is not None and (pool.kv.swap is not None or pool.kv.gate == "layer")
    if pool.pp > 1 and pool.dp > 1 and waits:
        return "KV that pipeline stages of attention ranks wait for"
    if pool.stop is not None:
        return "steps that can be stopped"
    if pool.retention.kind != "none":
        return f"retention {pool.retention.kind}"
    if pool.allocation.kind != "paged":
        return f"allocation {pool.allocation.kind}"
    policy = registry("batching").get(pool.batching.kind)
    more = pool.pp > 1 or pool.dp > 1 or lane or (pool.kv is not None and pool.kv.swap is not None)
    keeps = more and any(hasattr(policy, name) for name in _KEEPS)
    if keeps or hasattr(policy, "layer_groups") or getattr(policy, "releases_together", False):
        return f"batching {pool.batching.kind}"
    return ""
