"""Images in the worlds of the laws: who encodes them, and what that takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prices import COSTS

from llmsim.costmodel.images import ImageCost
from llmsim.results.facts import PoolFacts
from llmsim.serving.encoding import EncodingPlan
from llmsim.serving.simulate import PoolPlan

if TYPE_CHECKING:
    from worlds import World


def image_cost(world: World) -> ImageCost:
    """On the world's own terms; a token of an image is one patch."""
    return ImageCost(COSTS[world.cost], world.image_tokens, world.image_tokens)


def encoder_pool(world: World) -> list[PoolPlan]:
    """Replicas that encode, if there are any."""
    if not world.encoders:
        return []
    size = world.image_tokens
    budget = max(1, world.budget_tokens // size) * size
    config = replace(
        world.engine(True),
        max_num_batched_tokens=budget,
        kv_blocks=(world.max_model_len + budget) // world.block_tokens + world.max_num_seqs,
        prefix_caching=False,
        chunked_prefill=True,
        chunk_limit_tokens=0,
        watermark_blocks=0,
        lookahead=0,
        evict_rank=None,
    )
    facts = PoolFacts("encode", world.encoders, "h100-sxm", 1, 1, world.block_tokens, 2.0, "-")
    policy = type(world)(()).policy  # vLLM's
    return [PoolPlan(facts, image_cost(world), config, policy, role="encode")]


def seeing(world: World, plan: PoolPlan) -> PoolPlan:
    """Who computes prompts encodes their images, where nobody else does."""
    if not world.image_tokens or world.encoders or plan.role == "decode":
        return plan
    return replace(plan, images=image_cost(world))


def encoding_plan(world: World) -> EncodingPlan | None:
    """10 kB a token, over the ports of the world."""
    if not world.encoders:
        return None
    ports = (world.port_bytes_per_s,) * 3
    return EncodingPlan(world.image_tokens, 1e4, world.message_ns, ports)
