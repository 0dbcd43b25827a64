"""From a scenario to what `simulate` takes: cards loaded, memory planned, policies bound."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llmsim.core.errors import CardError, Fault, InputError
from llmsim.core.units import seconds_to_ns
from llmsim.costmodel import RooflineCost, StepCost, plan_memory
from llmsim.costmodel.boundaries import RooflineStopPoints, StopPoints
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.lanes import RooflineUse
from llmsim.costmodel.layer_ranges import LayerCost, RooflineLayers
from llmsim.costmodel.measured import MeasuredCost
from llmsim.costmodel.pipeline import PipelineCost, stage_links
from llmsim.costmodel.ranked_pipeline import RankedPipelineCost
from llmsim.costmodel.ranks import RankedCost
from llmsim.policies.allocation import Allocator
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.estimation import TRUE_TIMES, TRUTH
from llmsim.policies.models import ByModel
from llmsim.policies.retention import RetentionPolicy
from llmsim.policies.routing import RoutingPolicy
from llmsim.policies.rules import engine_rules
from llmsim.results.facts import PoolFacts
from llmsim.scenario import Scenario
from llmsim.scenario.component import Component
from llmsim.scenario.costs import Measured, Placement, Roofline, held_model
from llmsim.scenario.fleet import Pool
from llmsim.scenario.operations import Gateway
from llmsim.scenario.owncode import own_code
from llmsim.scenario.stopping import groups_layers
from llmsim.serving.beliefs import BeliefPlan
from llmsim.serving.config import EngineConfig
from llmsim.serving.control import ControlPlan
from llmsim.serving.gateway import GatewayPlan
from llmsim.serving.handoff import HandoffPlan
from llmsim.serving.heartbeats import Heartbeats
from llmsim.serving.lanes import LaneLevel, LanePlan
from llmsim.serving.life import BootPlan
from llmsim.serving.migration import MigrationPlan
from llmsim.serving.roles import FlipPlan
from llmsim.serving.seeing import encoder_pool, encodes_itself, seeing
from llmsim.serving.simulate import PoolPlan
from llmsim.serving.stops import Planner, StopPlan
from llmsim.serving.storeplan import kv_plan
from llmsim.serving.transfers import port_bytes_per_s, transfer_price
from llmsim.specs import (
    ModelSpec,
    load_engine,
    load_gpu,
    load_link,
    load_model,
    price_of,
    stage_of,
)


def build_pools(scenario: Scenario) -> tuple[list[PoolPlan], list[str]]:
    """Return a scenario's pools, ready to be simulated, and what the reader must know of them.

    Raises
    ------
    ModelDoesNotFitError
        If weights or KV do not fit a pool's GPUs.
    InputError
        If a card or a layout is wrong.
    """
    warnings: list[str] = []
    plans = []
    several = len(scenario.models) > 1
    for name, pool in scenario.fleet.pools.items():
        model = load_model(scenario.model_of(pool), scenario.folder)
        if pool.role == "encode":
            place = placement(pool, model, scenario.folder)
            plans.append(encoder_pool(scenario, name, pool, place, _price(pool)))
            continue
        plan, told = _build_pool(name, pool, model, scenario.folder)
        if encodes_itself(scenario, pool):
            plan = seeing(scenario, plan, pool, placement(pool, model, scenario.folder))
            told = [*told, "images: weights of the encoder are not counted in memory"]
        if several:
            plan = replace(plan, facts=replace(plan.facts, model=scenario.model_of(pool)))
        spare = scenario.fleet.spares(pool)
        plans.append(replace(plan, lane=_lane(scenario, name, model), spare=spare))
        warnings = list(dict.fromkeys((*warnings, *model.warnings, *told)))
    return plans, warnings


def build_router(scenario: Scenario) -> RoutingPolicy:
    """Return a fresh router of arrivals; one for each model where there are several."""
    return _router(scenario, scenario.fleet.routing, ("mixed", "prefill"))


def _router(scenario: Scenario, asked: Component, roles: tuple[str, ...]) -> RoutingPolicy:
    """Return a router over the replicas that have one of the roles, in the order of the pools."""
    models = scenario.models
    if len(models) == 1:
        only: RoutingPolicy = asked.build()
        meet = getattr(only, "meet", None)
        if meet is not None:
            fleet = scenario.fleet
            pools = fleet.pools.items()
            meet({name: p.replicas + fleet.spares(p) for name, p in pools if p.role in roles})
        return only
    places: list[list[int]] = [[] for _ in models]
    place = 0
    for pool in scenario.fleet.pools.values():
        if pool.role in roles:
            count = pool.replicas + scenario.fleet.spares(pool)
            places[models.index(scenario.model_of(pool))] += range(place, place + count)
            place += count
    return ByModel([asked.build() for _ in models], places)


def _lane(scenario: Scenario, name: str, model: ModelSpec) -> LanePlan | None:
    """Return how a pool's replicas share GPUs; None where they have their own."""
    pools, slo = scenario.fleet.pools, scenario.slo
    pool = pools[name]
    if pool.beside is None and name not in {other.beside for other in pools.values()}:
        return None
    place = placement(pool, model, scenario.folder)
    kind = pool.cost.build()

    def level(share_frac: float) -> LaneLevel:
        cost = kind.bind(replace(place, gpu=place.gpu.shared(share_frac)))
        return LaneLevel(cost, RooflineUse(cost, share_frac), _energy(cost))

    return LanePlan(
        on=None if pool.beside is None else list(pools).index(pool.beside),
        level=level,
        share_frac=pool.share_frac,
        sharing=None if pool.beside is None else pool.sharing.build,
        ttft_slo_s=math.inf if slo.ttft_s is None else slo.ttft_s,
        tpot_slo_s=math.inf if slo.tpot_s is None else slo.tpot_s,
    )


def _build_pool(
    name: str, pool: Pool, model: ModelSpec, folder: Path | None
) -> tuple[PoolPlan, list[str]]:
    engine = pool.engine
    place = placement(pool, model, folder)
    limits, kind = place.limits, pool.cost.build()
    memory = plan_memory(
        held_model(kind, place.model),
        place.gpu,
        place.plan,
        limits,
        engine.gpu_memory_utilization_frac,
        engine.kv_dtype,
        engine.kv_blocks,
    )
    staged = staged_cost(pool, place) if place.plan.pp > 1 else None
    cost = kind.bind(place) if staged is None else staged
    joint = _joint(name, pool, cost)
    energy = _energy(cost) if joint is None else None
    parts = () if staged is None or joint is not None else staged.parts
    stage_energy = tuple(map(_of_stage, parts))
    config = _engine_config(pool, place, memory.kv_blocks)
    usd_per_hour, source = _price(pool)
    facts = PoolFacts(
        name=name,
        replicas=pool.replicas,
        gpu=pool.gpu,
        gpus_per_replica=0 if pool.beside else place.plan.gpus,
        kv_blocks=memory.kv_blocks,
        block_tokens=limits.block_tokens,
        usd_per_gpu_hour=usd_per_hour,
        price_source=source,
        idle_w=_idle_w(pool, (energy, *stage_energy)),
        ranks=pool.dp,
    )
    batching: Callable[[], BatchingPolicy] = pool.batching.build if pool.stop is None else Planner
    kv = None if pool.kv is None else kv_plan(pool, place.model, folder)
    allocator: Allocator = pool.allocation.build()
    retention: Callable[[], RetentionPolicy] = pool.retention.build
    return PoolPlan(
        facts,
        cost,
        config,
        batching,
        energy,
        pool.role,
        kv,
        allocator=allocator,
        retention=None if pool.retention.kind == "none" else retention,
        weights_bytes=memory.weights_bytes * place.plan.gpus,
        joint=joint,
        ranks_in_turn=pool.rank_routing == "round-robin",
        staged=staged,
        stage_energy=stage_energy,
        staged_joint=joint if isinstance(joint, RankedPipelineCost) else None,
        stop=_stop(pool, cost),
        by_layers=_by_layers(pool, cost),
    ), _told(pool, cost)


def _idle_w(pool: Pool, energies: Sequence[ActiveEnergy | None]) -> float:
    """Return what a replica's GPUs draw all the time; NaN where that is not known [W]."""
    known = [energy.idle_w for energy in energies if energy is not None]
    if not known:
        return math.nan
    return 0.0 if pool.beside else math.fsum(known)


def _told(pool: Pool, cost: StepCost) -> list[str]:
    """Return what the reader must know of a pool's prices and policies."""
    told: list[str] = []
    if isinstance(cost, RooflineCost | MeasuredCost | PipelineCost):
        told += cost.warnings()
    if pool.segments is not None:
        told.append("segments: reused KV changes answers; their quality is not simulated")
    if pool.stop is not None:
        told += pool.stop.precedence.build().declared()
    return told


def _by_layers(pool: Pool, cost: StepCost) -> LayerCost | None:
    """Return what steps cost whose prompts go through a range of layers; None where none do."""
    if not groups_layers(pool) or not isinstance(cost, RooflineCost):
        return None
    return RooflineLayers(cost)


def _stop(pool: Pool, cost: StepCost) -> StopPlan | None:
    """Return how a pool's steps are stopped inside; None where they are not."""
    asked = pool.stop
    if asked is None:
        return None
    base = cost.base if isinstance(cost, MeasuredCost) else cost
    points: StopPoints | None = None
    if asked.at != "step" and isinstance(base, RooflineCost):
        check_ns = seconds_to_ns(asked.check_s)
        points = RooflineStopPoints(base, asked.at == "operator", check_ns)
    return StopPlan(asked.precedence.build, points, seconds_to_ns(asked.agree_s))


def _joint(name: str, pool: Pool, cost: StepCost) -> RankedCost | RankedPipelineCost | None:
    """Return what joint steps of a pool's attention ranks cost; None where there is one."""
    if pool.dp == 1:
        return None
    if isinstance(cost, PipelineCost):
        return RankedPipelineCost(cost)
    if not isinstance(cost, RooflineCost | MeasuredCost):
        fault = Fault("", "cost", f"{pool.cost.kind} has no price of several ranks.")
        raise InputError(f"pool {name}", [fault])
    return RankedCost(cost)


def _engine_config(pool: Pool, place: Placement, kv_blocks: int) -> EngineConfig:
    engine, limits = pool.engine, place.limits
    rules = engine_rules(load_engine(engine.version).rules)
    share = engine.watermark_frac if engine.watermark_frac is not None else rules.watermark_frac
    return EngineConfig(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        block_tokens=limits.block_tokens,
        kv_blocks=kv_blocks,
        prefix_caching=engine.prefix_caching,
        chunked_prefill=engine.chunked_prefill,
        chunk_limit_tokens=engine.long_prefill_threshold_tokens,
        watermark_blocks=math.floor(share * kv_blocks),
        reserve_prompt=engine.reserve_full_prompt,
        lookahead=place.lookahead,
        fast_forward=engine.fast_forward,
        rules=rules,
        evict_rank=None if pool.eviction.kind == "lru" else pool.eviction.build().rank,
        recompute_frac=None if pool.segments is None else pool.segments.recompute_frac,
    )


def build_handoff(scenario: Scenario) -> HandoffPlan | None:
    """Return how requests get from prefill to decode replicas; None without such pools.

    Raises
    ------
    CardError
        If the link card is wrong.
    """
    fleet = scenario.fleet
    if not fleet.hands_over:
        return None
    asked = fleet.handoff
    pools = list(fleet.pools.values())
    models = [scenario.model_of(pool) for pool in pools]
    cards = {name: load_model(name, scenario.folder) for name in models}
    return HandoffPlan(
        router=_router(scenario, asked.routing, ("decode",)),
        prices=tuple(
            transfer_price(asked, pool, cards[name])
            for pool, name in zip(pools, models, strict=True)
        ),
        port_bytes_per_s=tuple(port_bytes_per_s(asked, pool, scenario.folder) for pool in pools),
        first_token_at_decode=asked.first_token == "decode",
        view_age_ns=seconds_to_ns(asked.view_age_s),
        models=tuple(scenario.models.index(name) for name in models),
        layers=tuple(cards[name].layer_count for name in models)
        if asked.transfer == "layer"
        else (),
        refuses=asked.when_full == "refuse",
    )


def build_heartbeats(scenario: Scenario) -> Heartbeats | None:
    """Return when replicas report to the router; None where every change is told."""
    fleet = scenario.fleet
    if not fleet.report_period_s:
        return None
    return Heartbeats(seconds_to_ns(fleet.report_period_s), fleet.report_lost_frac)


def build_gateway(scenario: Scenario) -> GatewayPlan | None:
    """Return what happens between the router's choice and a replica; None if nothing does."""
    fleet = scenario.fleet
    if fleet.gateway is None and fleet.boot is None and fleet.flip is None:
        return None
    asked = fleet.gateway or Gateway()
    return GatewayPlan(asked.most_per_replica, seconds_to_ns(asked.hold_s))


def build_control(scenario: Scenario, pools: Sequence[PoolPlan]) -> ControlPlan | None:
    """Return what is done about a fleet while it runs; None if nothing is.

    Raises
    ------
    CardError
        If the link card is wrong.
    """
    fleet = scenario.fleet
    if not fleet.control:
        return None
    asked = fleet.migration
    migration = None
    if asked is not None:
        model = load_model(scenario.models[0], scenario.folder)
        asked_pools = list(fleet.pools.values())
        ports = [port_bytes_per_s(asked, pool, scenario.folder) for pool in asked_pools]
        memory = [
            load_gpu(pool.gpu, scenario.folder).memory_bytes_per_s * pool.tp * pool.pp
            for pool in asked_pools
        ]
        migration = MigrationPlan(
            prices=tuple(transfer_price(asked, pool, model) for pool in asked_pools),
            port_bytes_per_s=tuple(ports),
            # a full port takes this share of the memory's bandwidth from a step, at most
            drag_frac=tuple(port / whole for port, whole in zip(ports, memory, strict=True)),
            rounds=asked.rounds,
            last_blocks=asked.last_blocks,
            handshake_ns=seconds_to_ns(asked.handshake_s),
            most_per_replica=asked.most_per_replica,
        )
    boot = None
    if fleet.boot is not None:
        boot = BootPlan(
            seconds_to_ns(fleet.boot.provision_s),
            tuple(plan.weights_bytes for plan in pools),
            fleet.boot.weights_bytes_per_s,
            seconds_to_ns(fleet.boot.warm_up_s),
            seconds_to_ns(fleet.boot.detect_s),
        )
    flip = None
    if fleet.flip is not None:
        flip = FlipPlan(
            fleet.flip.drain,
            seconds_to_ns(fleet.flip.switch_s),
            tuple(plan.weights_bytes for plan in pools) if fleet.flip.reload else (),
            fleet.flip.weights_bytes_per_s,
        )
    return ControlPlan(tuple(each.build() for each in fleet.control), migration, boot, flip)


def build_estimates(scenario: Scenario) -> tuple[BeliefPlan | None, list[str]]:
    """Return who believes something of output lengths, and what must be known of all estimators."""
    asked = scenario.estimators
    told = []
    for key, part in (("output_length", asked.output_length), ("tool_time", asked.tool_time)):
        made_from = "" if part is None else part.build().information
        if TRUTH in made_from or TRUE_TIMES in made_from:
            told.append(
                f"estimators.{key} is {part}: made from {made_from}, "
                "which nobody has beforehand in reality"
            )
    if asked.output_length is None:
        return None, told
    return BeliefPlan(asked.output_length.build(), asked.beyond_tokens), told


def staged_cost(pool: Pool, place: Placement) -> PipelineCost:
    """Return what micro-batches of a pool's pipelines cost.

    Raises
    ------
    InputError
        If its kind of cost has no price of a part of the model.
    """
    kind, stages = pool.cost.build(), place.plan.pp
    if not isinstance(kind, Roofline | Measured):
        fault = Fault("", "cost", f"{pool.cost.kind} has no price of several stages.")
        raise InputError("pipeline", [fault])
    alone = replace(kind, host_base_s=0.0, host_per_request_s=0.0)
    plan = replace(place.plan, pp=1)
    links = stage_links(place.plan, place.gpu, place.link, place.scale_out, place.stage_link)
    models = [stage_of(place.model, stage, stages) for stage in range(stages)]
    parts = [alone.bind(replace(place, model=model, plan=plan)) for model in models]
    return PipelineCost(parts, kind.host(place.host), links)


def _of_stage(cost: RooflineCost | MeasuredCost) -> ActiveEnergy:
    return ActiveEnergy(cost.base, cost) if isinstance(cost, MeasuredCost) else ActiveEnergy(cost)


def _energy(cost: StepCost) -> ActiveEnergy | None:
    return _of_stage(cost) if isinstance(cost, RooflineCost | MeasuredCost) else None


def placement(pool: Pool, model: ModelSpec, folder: Path | None) -> Placement:
    """Return what a pool runs where, its cards loaded.

    Parameters
    ----------
    pool : Pool
    model : ModelSpec
        Of the scenario; the pool's engine may ask for another format of its weights.
    folder : Path or None
        That paths of cards start from.
    """
    plan, engine = pool.plan, pool.engine
    card = load_engine(engine.version)
    gpu = load_gpu(pool.gpu, folder, card.family).joined_by(pool.inter_node_link, pool.node_gpus)
    gpu = gpu.clocked(pool.clock_frac, pool.power_cap_w)
    model = engine.checkpoint(model)
    return Placement(
        model,
        gpu,
        plan,
        engine.limits(model),
        engine.kv_dtype,
        _lookahead(pool, card.lookahead),
        load_link(gpu.link, folder, card.family) if plan.gpus > 1 else None,
        load_link(gpu.scale_out, folder) if plan.gpus > gpu.node_gpus else None,
        card.host,
        card.fused_norm,
        load_link(pool.stage_link, folder) if pool.stage_link else None,
    )


def _lookahead(pool: Pool, usual: int) -> int:
    """Return how many steps the scheduler runs ahead; 0 where a pipeline has several in flight."""
    asked = pool.engine.lookahead
    return 0 if pool.pp > 1 else usual if asked is None else asked


def _price(pool: Pool) -> tuple[float, str]:
    if pool.gpu_price_usd_per_hour is not None:
        return pool.gpu_price_usd_per_hour, "the scenario"
    try:
        card = price_of(pool.gpu, pool.price)
    except CardError:
        return math.nan, "no price card for this GPU"
    return card.usd_per_gpu_hour, f"{card.whose} {card.instance}, {card.date}, {card.source}"


def itl_objective_ns(scenario: Scenario, default_ns: int) -> int:
    """Return the longest gap between tokens that the scenario allows [ns]."""
    limit = scenario.slo.itl_s
    return default_ns if limit is None else seconds_to_ns(limit)


def fingerprint(scenario: Scenario) -> dict[str, str]:
    """Return hashes of what the run is made from: resolved scenario, trace, tokenizer, own code."""
    text = scenario.resolved_yaml().encode()
    found = {"scenario": hashlib.blake2b(text, digest_size=16).hexdigest()} | own_code(scenario)
    trace = scenario.traffic.trace
    for key, name in (("path", "trace"), ("tokenizer", "tokenizer")):
        path = trace.params.get(key) if trace is not None else None
        if isinstance(path, str) and Path(path).is_file():
            digest = hashlib.blake2b(digest_size=16)
            with Path(path).open("rb") as handle:
                while part := handle.read(1 << 20):
                    digest.update(part)
            found[name] = digest.hexdigest()
    return found
