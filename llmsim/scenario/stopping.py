"""Keys of a pool's `stop`: where a step under way can be stopped, and whose prompt goes first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from llmsim.scenario.component import Component, Seam, registry
from llmsim.scenario.section import Section

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet, Pool


class Stop(Section):
    """How steps that compute prompts are stopped for a more urgent one, and go on later."""

    at: Literal["operator", "layer", "step"] = "operator"
    """Where a step can be stopped: behind each operator, behind each layer, or not inside at all.
    A prompt that has been begun keeps its KV, and `engine.max_num_seqs` may be begun at a time."""
    precedence: Annotated[Component, Seam("precedence")] = Component("precedence", "arrival")
    """Whose prompt goes first; asked when a request arrives and when a step ends."""
    check_s: Annotated[float, Ge(0)] = 0.0
    """[s] What a look at the flag costs, at every boundary of every step. Assumed."""
    agree_s: Annotated[float, Ge(0)] = 0.0
    """[s] From the boundary until all tensor-parallel ranks have agreed to stop there. Assumed."""


_COSTS = ("roofline", "measured")


def wrong_stops(fleet: Fleet) -> dict[str, str]:
    """Return what does not go together with steps that can be stopped, by pool and key."""
    wrong: dict[str, str] = {}
    for name, pool in fleet.pools.items():
        if pool.stop is None:
            continue
        there = [what for what, found in _others(fleet, pool, fleet.pools).items() if found]
        if there:
            wrong[f"{name}.stop"] = f"does not go together with {', '.join(there)} yet"
        elif pool.role != "prefill":
            wrong[f"{name}.stop"] = f"is for role prefill (this pool is {pool.role})"
        elif pool.engine.lookahead != 0:
            wrong[f"{name}.engine.lookahead"] = (
                "must be 0 with `stop`: the next step is planned when the one before has stopped"
            )
        elif pool.engine.prefix_caching:
            wrong[f"{name}.engine.prefix_caching"] = (
                "must be false with `stop`: a prefix in a stopped step is not there yet"
            )
    return wrong


def groups_layers(pool: Pool) -> bool:
    """Whether a pool's prompts go through the model in groups of layers."""
    return hasattr(registry("batching").get(pool.batching.kind), "layer_groups")


def wrong_layers(fleet: Fleet) -> dict[str, str]:
    """Return what does not go together with groups of layers, by pool and key."""
    wrong: dict[str, str] = {}
    for name, pool in fleet.pools.items():
        if not groups_layers(pool):
            continue
        others = _others(fleet, pool, fleet.pools) | {
            f"role {pool.role}": pool.role != "mixed",
            f"cost {pool.cost.kind}": pool.cost.kind != "roofline",
            "stop": pool.stop is not None,
        }
        there = [what for what, found in others.items() if found and what[:9] != "batching "]
        if there:
            text = f"{pool.batching.kind} does not go together with {', '.join(there)} yet"
            wrong[f"{name}.batching"] = text
    return wrong


def _others(fleet: Fleet, pool: Pool, pools: Mapping[str, Pool]) -> dict[str, bool]:
    """Return what stops do not know of, and whether a pool has it."""
    return {
        "pools that share GPUs (beside)": any(other.beside for other in pools.values()),
        "attention ranks (dp)": pool.dp > 1,
        "pipeline stages (pp)": pool.pp > 1,
        "tiers of KV (kv)": pool.kv is not None,
        "spare_replicas": pool.spare_replicas > 0,
        f"batching {pool.batching.kind}: order is a matter of `stop.precedence`": (
            pool.batching.kind != "vllm"
            or bool(pool.batching.params.get("order", "fcfs") != "fcfs")
        ),
        f"allocation {pool.allocation.kind}": pool.allocation.kind != "paged",
        f"retention {pool.retention.kind}": pool.retention.kind != "none",
        f"cost {pool.cost.kind}": pool.stop is not None
        and pool.stop.at != "step"
        and pool.cost.kind not in _COSTS,
        "fleet.gateway": fleet.gateway is not None,
        "fleet.boot": fleet.boot is not None,
        "fleet.migration": fleet.migration is not None,
        "fleet.control": bool(fleet.control),
    }
