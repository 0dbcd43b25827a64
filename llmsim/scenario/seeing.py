"""Images in prompts, and who encodes them: keys of a scenario, and what they do not go with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from llmsim.scenario.component import registry
from llmsim.scenario.engine import Count, Frac
from llmsim.scenario.section import Section

if TYPE_CHECKING:
    from llmsim.scenario.fleet import Pool
    from llmsim.scenario.model import Scenario


class Images(Section):
    """Images in front of the text of synthetic prompts; no two of them are the same."""

    frac: Annotated[Frac, Gt(0)] = 1.0
    """[fraction] Requests that bring any."""
    mean: Annotated[float, Ge(1)] = 1.0
    """[images] How many those bring on average; geometric, from 1 on."""
    tokens: Count
    """[tokens] What an image adds to its prompt, beside `lengths`: all are of one size."""


def wrong_seeing(scenario: Scenario) -> dict[str, str]:
    """Return what is wrong with images and with who encodes them, by key."""
    traffic, fleet, asked = scenario.traffic, scenario.fleet, scenario.traffic.images
    encoders = [name for name, pool in fleet.pools.items() if pool.role == "encode"]
    if asked is None:
        told = "encode has nothing to do: no request brings images (traffic.images)"
        return {f"fleet.pools.{name}.role": told for name in encoders}
    wrong: dict[str, str] = {}
    given = [
        key for key in ("trace", "prompts", "programs") if getattr(traffic, key) is not None
    ] + (["samples"] if traffic.samples > 1 else [])
    if all(pool.role == "encode" for pool in fleet.pools.values()):
        wrong["fleet.pools"] = "all encode images; nobody computes prompts"
    other = {
        "several models": len(scenario.models) > 1,
        f"routing {fleet.routing.kind}": _looks_at_replicas(scenario),
        "fleet.gateway": fleet.gateway is not None,
        "fleet.boot": fleet.boot is not None,
        "fleet.flip": fleet.flip is not None,
        "fleet.migration": fleet.migration is not None,
        "fleet.control": bool(fleet.control),
        "fleet.report_period_s": fleet.report_period_s > 0,
        "record.tokens": scenario.record.tokens,
    }
    clashes = [f"traffic.{key}" for key in given]
    clashes += [what for what, there in other.items() if there]
    if clashes:
        wrong["traffic.images"] = f"does not go with {', '.join(clashes)} yet"
    for name, pool in fleet.pools.items():
        found = _pool_clashes(pool, not encoders)
        if found:
            told = f"does not go together with {', '.join(found)} yet"
            wrong[f"fleet.pools.{name}"] = f"traffic.images {told}"
        if pool.role == "encode" and pool.engine.max_num_batched_tokens is not None:
            most = pool.engine.max_num_batched_tokens
            if most < asked.tokens:
                at = f"fleet.pools.{name}.engine.max_num_batched_tokens"
                wrong[at] = f"{most} is less than one image of {asked.tokens} tokens"
    return wrong


def _looks_at_replicas(scenario: Scenario) -> bool:
    """Whether the router of arrivals asks what goes on in replicas, or moves who waits."""
    kind = registry("routing").get(scenario.fleet.routing.kind)
    return any(hasattr(kind, name) for name in ("forecasts", "reads_caches", "review"))


def _pool_clashes(pool: Pool, encodes_itself: bool) -> list[str]:
    """Return what of a pool does not go with encoding images."""
    if pool.role not in ("encode", "mixed", "prefill"):
        return []
    alone = pool.role == "encode"
    found = {
        "attention ranks (dp)": pool.dp > 1,
        "pipeline stages (pp)": pool.pp > 1,
        "pools that share GPUs (beside)": pool.beside is not None,
        "steps that stop (stop)": pool.stop is not None,
        "groups of layers": hasattr(registry("batching").get(pool.batching.kind), "layer_groups"),
        f"batching {pool.batching.kind}": alone and pool.batching.kind != "vllm",
        f"allocation {pool.allocation.kind}": alone and pool.allocation.kind != "paged",
        "tiers of KV (kv)": alone and pool.kv is not None,
        f"retention {pool.retention.kind}": alone and pool.retention.kind != "none",
        "spare_replicas": pool.spare_replicas > 0,
    }
    if not (alone or encodes_itself):  # images come to it as embeddings
        return []
    return [what for what, there in found.items() if there]
