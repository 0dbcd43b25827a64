"""From a scenario's images to what encoding them takes, and bringing their embeddings along."""

from __future__ import annotations

from dataclasses import replace

from llmsim.core.errors import Fault, InputError, InvariantError
from llmsim.core.units import seconds_to_ns
from llmsim.costmodel import RooflineCost
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.images import ImageCost
from llmsim.policies.rules import engine_rules
from llmsim.results.facts import PoolFacts
from llmsim.scenario import Scenario
from llmsim.scenario.costs import Placement, Roofline
from llmsim.scenario.fleet import Pool
from llmsim.serving.config import EngineConfig
from llmsim.serving.encoding import EncodingPlan
from llmsim.serving.simulate import PoolPlan
from llmsim.serving.transfers import port_bytes_per_s
from llmsim.specs import EngineLimits, load_engine, load_model

_EMBEDDING_BYTES = 2
"""Of one element of an embedding, which is kept at 16 bits [bytes]."""


def image_cost(pool: Pool, place: Placement, tokens: int) -> tuple[ImageCost, ActiveEnergy]:
    """Return what a pool's encoding of images takes: a roofline of the encoder's layers.

    Parameters
    ----------
    pool : Pool
        Whose host counts where it does nothing else; elsewhere a step has paid for it.
    place : Placement
        Of its language model.
    tokens : int [tokens]
        What an image becomes.

    Raises
    ------
    InputError
        If the model has no encoder, or that does not split over the pool's GPUs.
    """
    encoder = place.model.encoder
    if encoder is None:
        told = f"{place.model.name} has no vision encoder that its card tells of."
        raise InputError("traffic", [Fault("", "images", told)])
    asked = pool.cost.build()
    kind = asked if isinstance(asked, Roofline) else Roofline()
    if pool.role != "encode":
        kind = replace(kind, host_base_s=0.0, host_per_request_s=0.0)
        kind = replace(kind, host_gap_s=0.0, host_gap_per_chunk_s=0.0)
    most = place.limits.max_num_batched_tokens * encoder.patches_per_token
    limits = EngineLimits(
        max_num_seqs=place.limits.max_num_seqs,
        max_num_batched_tokens=most,
        max_model_len=most,
        block_tokens=place.limits.block_tokens,
        cuda_graphs=False,
    )
    model = encoder.as_model(place.model)
    cost = kind.bind(replace(place, model=model, limits=limits, kv_dtype=None, lookahead=0))
    if not isinstance(cost, RooflineCost):
        raise InputError("pool", [Fault("", "cost", "has no price of an encoder.")])
    return ImageCost(cost, tokens, tokens * encoder.patches_per_token), ActiveEnergy(cost)


def encoder_config(pool: Pool, limits: EngineLimits, tokens: int) -> EngineConfig:
    """Return the settings of a replica that encodes, with room for all that it could be doing.

    Parameters
    ----------
    pool : Pool
    limits : EngineLimits
    tokens : int [tokens]
        What an image becomes. Budgets are whole images, and so is every part of a request then.
    """
    size, most = limits.block_tokens, limits.max_num_batched_tokens // tokens * tokens
    return EngineConfig(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=most,
        max_model_len=limits.max_model_len,
        block_tokens=size,
        kv_blocks=(limits.max_model_len + most) // size + limits.max_num_seqs,
        prefix_caching=False,
        chunked_prefill=True,
        chunk_limit_tokens=0,
        watermark_blocks=0,
        reserve_prompt=True,
        lookahead=0,
        fast_forward=pool.engine.fast_forward,
        rules=engine_rules(load_engine(pool.engine.version).rules),
    )


def encodes_itself(scenario: Scenario, pool: Pool) -> bool:
    """Whether a pool's replicas encode the images of the prompts that they compute."""
    if scenario.traffic.images is None or pool.role == "decode":
        return False
    return all(each.role != "encode" for each in scenario.fleet.pools.values())


def seeing(scenario: Scenario, plan: PoolPlan, pool: Pool, place: Placement) -> PoolPlan:
    """Return the plan of a pool with what it takes to encode the images of its prompts."""
    cost, energy = image_cost(pool, place, _tokens(scenario))
    return replace(plan, images=cost, image_energy=energy)


def encoder_pool(
    scenario: Scenario, name: str, pool: Pool, place: Placement, price: tuple[float, str]
) -> PoolPlan:
    """Return a pool of replicas that encode images for others.

    Parameters
    ----------
    scenario : Scenario
    name : str
    pool : Pool
    place : Placement
        Of the language model whose encoder it is.
    price : (float, str)
        Of a GPU [USD/h], and where that is from.
    """
    cost, energy = image_cost(pool, place, _tokens(scenario))
    config = encoder_config(pool, place.limits, _tokens(scenario))
    facts = PoolFacts(
        name=name,
        replicas=pool.replicas,
        gpu=pool.gpu,
        gpus_per_replica=place.plan.gpus,
        kv_blocks=0,
        block_tokens=config.block_tokens,
        usd_per_gpu_hour=price[0],
        price_source=price[1],
        idle_w=energy.idle_w,
    )
    return PoolPlan(facts, cost, config, pool.batching.build, energy, pool.role)


def _tokens(scenario: Scenario) -> int:
    if scenario.traffic.images is None:
        raise InvariantError("nobody encodes images where no request brings any")
    return scenario.traffic.images.tokens


def build_encoding(scenario: Scenario) -> EncodingPlan | None:
    """Return how embeddings get to who computes prompts; None where nobody encodes for others.

    Raises
    ------
    CardError
        If the link card is wrong.
    """
    fleet, images = scenario.fleet, scenario.traffic.images
    pools = list(fleet.pools.values())
    if images is None or all(pool.role != "encode" for pool in pools):
        return None
    model = load_model(scenario.models[0], scenario.folder)
    return EncodingPlan(
        images.tokens,
        float(_EMBEDDING_BYTES * model.hidden),
        seconds_to_ns(fleet.handoff.message_s),
        tuple(port_bytes_per_s(fleet.handoff, pool, scenario.folder) for pool in pools),
    )
