"""What must hold between pools that share GPUs, and for pools with attention ranks or stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmsim.core.errors import nearest
from llmsim.scenario.component import registry

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Fleet, Pool


def wrong_lanes(pools: Mapping[str, Pool]) -> dict[str, str]:
    """Return what is wrong with pools that share GPUs, by pool and key."""
    wrong: dict[str, str] = {}
    hosts = {pool.beside for pool in pools.values() if pool.beside is not None}
    for name, pool in pools.items():
        if pool.beside is not None and pool.beside not in pools:
            wrong[f"{name}.beside"] = f"no pool '{pool.beside}'. {nearest(pool.beside, pools)}"
    if wrong:
        return wrong
    for name, pool in pools.items():
        shares = pool.beside is not None or name in hosts
        if not hosts and pool.share_frac != 1.0:
            wrong[f"{name}.share_frac"] = (
                "is for pools that share GPUs: say `beside` in one of them"
            )
        if hosts and not shares and pool.role != "mixed":
            wrong[f"{name}.role"] = f"{pool.role}: where some pools share GPUs, all such pools do"
        if shares and pool.cost.kind != "roofline":
            wrong[f"{name}.cost"] = f"{pool.cost.kind} has no prices for a share of a GPU"
        if shares and pool.kv is not None:
            wrong[f"{name}.kv"] = "tiers and swapping do not go with pools that share GPUs yet"
        if shares and pool.engine.lookahead != 0:
            wrong[f"{name}.engine.lookahead"] = "must be 0: lanes plan a step when one has ended"
        kind = pool.batching.kind
        if shares and hasattr(registry("batching").get(kind), "admits"):
            wrong[f"{name}.batching"] = f"{kind} keeps memory as if no other pool shared its GPUs"
        if pool.beside is None:
            if pool.sharing.kind != "fixed":
                wrong[f"{name}.sharing"] = "is said by the pool that has `beside`"
            continue
        host = pools[pool.beside]
        if (host.role, pool.role) != ("prefill", "decode"):
            wrong[f"{name}.beside"] = (
                f"a {pool.role} pool on a {host.role} one: must be decode on prefill"
            )
        elif [other.beside for other in pools.values()].count(pool.beside) > 1:
            wrong[f"{name}.beside"] = f"{pool.beside} is shared with two pools"
        else:
            if pool.engine.block_tokens != host.engine.block_tokens:
                wrong[f"{name}.engine.block_tokens"] = f"must be that of {pool.beside}"
            same = ("replicas", "gpu", "tp", "ep", "spare_experts", "expert_balancing", "model")
            for key in same:
                if getattr(pool, key) != getattr(host, key):
                    wrong[f"{name}.{key}"] = (
                        f"is {getattr(host, key)} in {pool.beside}, which it runs on"
                    )
    return wrong


def wrong_ranks(fleet: Fleet) -> dict[str, str]:
    """Return what does not go together with attention ranks, by pool and key."""
    wrong: dict[str, str] = {}
    hosts = {pool.beside for pool in fleet.pools.values()}
    for name, pool in fleet.pools.items():
        shares = pool.beside is not None or name in hosts
        if pool.dp > 1 and pool.pp == 1 and shares:  # of stages, too, they say it
            told = f"{pool.dp} does not go together with pools that share GPUs (beside) yet"
            wrong[f"{name}.dp"] = told
    return wrong


def wrong_pipelines(fleet: Fleet) -> dict[str, str]:
    """Return what does not go together with pipeline stages, by pool and key."""
    wrong: dict[str, str] = {}
    hosts = {pool.beside for pool in fleet.pools.values()}
    for name, pool in fleet.pools.items():
        if pool.pp == 1:
            if pool.stage_link is not None:
                wrong[f"{name}.stage_link"] = "is for pools with several stages: say `pp`"
            continue
        if pool.engine.lookahead == 1:
            wrong[f"{name}.engine.lookahead"] = (
                "must be 0 or absent with pp: micro-batches in flight take its place"
            )
        if pool.beside is not None or name in hosts:
            told = f"{pool.pp} does not go together with pools that share GPUs (beside) yet"
            wrong[f"{name}.pp"] = told
    return wrong
