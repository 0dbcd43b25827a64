"""Weights of unlike pools, from the shares that a planned fleet's router gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from llmsim.core.errors import Fault
from llmsim.deployment.line import Note
from llmsim.deployment.manifests import object_name
from llmsim.deployment.router import RouterPlan, divides
from llmsim.deployment.tables import load_facts
from llmsim.scenario import Scenario, build_workload

ROUTE: Final = "gateway/route.yaml"
"""Where the route is written."""

PARTS: Final = 1000
"""Weights add up to this, so that one is a tenth of a percent."""

MOST_REQUESTS: Final = 20_000
"""Requests of the scenario's traffic that are looked at for their prompt lengths."""


def pool_weights(scenario: Scenario) -> dict[str, int]:
    """Return the weight of each pool that the scenario's router gives a share to.

    Notes
    -----
    The router divides each range of prompt lengths on its own; a gateway does not look at lengths,
    so a pool gets its share of each range times the range's part of the scenario's requests.
    """
    rules = scenario.fleet.routing.params
    part = _parts_of_ranges(scenario, rules["edges_tokens"])
    exact = {
        name: sum(of * (share or 0.0) for of, share in zip(part, shares, strict=True))
        for name, shares in rules["shares"].items()
    }
    return _whole(exact)


def weight_faults(scenario: Scenario) -> list[Fault]:
    """Return what keeps weights from being written: several models behind a gateway."""
    if not divides(scenario.fleet) or len(scenario.models) == 1:
        return []
    message = f"weights of pools of {len(scenario.models)} models do not add up to one route."
    return [Fault("", "fleet.routing", message)]


def route(scenario: Scenario, plans: Sequence[RouterPlan]) -> dict[str, Any]:
    """Return a route of the Gateway API over the routers of the pools."""
    weights = pool_weights(scenario)
    backends = [
        {
            "name": object_name(scenario.name, plan.name),
            "port": plan.table.port,
            "weight": sum(weights.get(site.name, 0) for site in plan.sites),
        }
        for plan in plans
    ]
    return {
        "apiVersion": load_facts("stacks")["gateway"]["api"]["value"],
        "kind": "HTTPRoute",
        "metadata": {"name": object_name(scenario.name, "fleet")},
        "spec": {
            "parentRefs": [{"name": object_name(scenario.name, "gateway")}],
            "rules": [{"backendRefs": backends}],
        },
    }


def weight_notes(scenario: Scenario) -> list[Note]:
    """Return what weights do not say of a router that divides by length."""
    rules = scenario.fleet.routing.params
    found = []
    if rules["edges_tokens"]:
        edges = ", ".join(map(str, rules["edges_tokens"]))
        text = "weights are of all prompts alike: a pool gets lengths that it was not planned for"
        found.append(Note("", "routing.edges_tokens", edges, text))
    if rules["capacity"]:
        told = ", ".join(f"{name}: {most:g}" for name, most in rules["capacity"].items())
        text = "a gateway passes nothing on when a pool is full"
        found.append(Note("", "routing.capacity", told, text))
    return found


def shared_notes(plan: RouterPlan) -> list[Note]:
    """Return what one router of several pools of a role does not do of a planned division.

    Parameters
    ----------
    plan : RouterPlan
    """
    found = []
    asked = {"prefill": plan.fleet.routing, "decode": plan.fleet.handoff.routing}
    for role, routing in asked.items():
        pools = [site.name for site in plan.sites if site.pool.role == role]
        if len(pools) > 1 and routing.kind == "planned-split":
            key = "routing.shares" if role == "prefill" else "handoff.routing.shares"
            text = "one router has all of them, and goes by their load, not by planned shares"
            found.append(Note("", key, ", ".join(pools), text))
    return found


def _parts_of_ranges(scenario: Scenario, edges: Sequence[int]) -> list[float]:
    """Return the part of the scenario's requests whose prompts lie in each range."""
    if not edges:
        return [1.0]
    counts = np.zeros(len(edges) + 1, dtype=np.int64)
    for chunk in build_workload(scenario).chunks():
        place = np.searchsorted(np.asarray(edges), chunk.prompt_tokens, side="right")
        counts += np.bincount(place, minlength=len(counts))
        if counts.sum() >= MOST_REQUESTS:
            break
    parts: list[float] = (counts / counts.sum()).tolist()
    return parts


def _whole(exact: Mapping[str, float]) -> dict[str, int]:
    """Return whole numbers that add up to `PARTS`, by largest remainder."""
    total = sum(exact.values())
    scaled = {name: PARTS * value / total for name, value in exact.items()}
    found = {name: int(value) for name, value in scaled.items()}
    short = PARTS - sum(found.values())
    for name in sorted(scaled, key=lambda each: found[each] - scaled[each])[:short]:
        found[name] += 1
    return found
