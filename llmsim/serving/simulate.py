"""Run a workload through a fleet: the one function above the engine."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llmsim.core.errors import Fault, InputError, InvariantError
from llmsim.core.rng import stream
from llmsim.costmodel.contract import JointCost, StagedCost, StagedJointCost, StepCost
from llmsim.costmodel.energy import ActiveEnergy
from llmsim.costmodel.images import ImageCost
from llmsim.costmodel.layer_ranges import LayerCost
from llmsim.policies.allocation import Allocator
from llmsim.policies.batching import BatchingPolicy
from llmsim.policies.estimation import ToolTimeEstimator
from llmsim.policies.retention import RetentionPolicy
from llmsim.policies.routing import RoutingPolicy
from llmsim.results.facts import PoolFacts, ReplicaFacts, RunFacts
from llmsim.results.histogram import LogHistogram
from llmsim.results.steplog import StepLog
from llmsim.results.store import RequestSink
from llmsim.serving.beliefs import BeliefPlan
from llmsim.serving.caches import step_by_step
from llmsim.serving.claims import ClaimLedger
from llmsim.serving.clock import Clock
from llmsim.serving.config import EngineConfig
from llmsim.serving.control import ControlPlan, Controls
from llmsim.serving.encoding import EncodeReplica, EncodingPlan, SeeingReplica, let_see
from llmsim.serving.equipment import claim_ledger
from llmsim.serving.fleet import Fleet
from llmsim.serving.forecast import foreseeing, settle_in
from llmsim.serving.gateway import Gateway, GatewayPlan
from llmsim.serving.handoff import HandoffPlan
from llmsim.serving.heartbeats import Heartbeats
from llmsim.serving.interrupting import ctrl_c
from llmsim.serving.keeper import Keeper
from llmsim.serving.labels import ClientRules
from llmsim.serving.lanes import Lane, LanePlan, share_devices
from llmsim.serving.layered import LayeredReplica, use_layers
from llmsim.serving.leases import keep_pins
from llmsim.serving.logbook import share
from llmsim.serving.meter import NEVER
from llmsim.serving.parts import drafts_of, kept_steps, refusals_of, station_facts
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.ranked_pipeline import PipelineGroup, PipelineRank
from llmsim.serving.ranks import Rank, RankGroup
from llmsim.serving.replica import Replica
from llmsim.serving.stops import StoppingReplica, StopPlan, allow_stops, stop_facts
from llmsim.serving.storehouse import KvPlan, Storehouse
from llmsim.serving.swap import Swapper
from llmsim.serving.tape import Tape
from llmsim.serving.wiring import (
    arrivals_board,
    connect_all,
    connect_encoders,
    connect_roles,
    decoders_board,
    doors_on,
    flows_of,
    ports_of,
    takers_of_arrivals,
)
from llmsim.workload.chunk import Workload


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool of identical replicas, ready to be simulated.

    Parameters
    ----------
    facts : PoolFacts
        Name, size, GPUs and price.
    cost : StepCost
        Shared by the pool's replicas.
    config : EngineConfig
    batching : callable
        Returns a fresh batching policy; called once per replica.
    energy : ActiveEnergy or None
        What steps take above idle power; None where that is not known.
    role : str
        ``mixed``, ``prefill``, ``decode`` or ``encode``.
    kv : KvPlan or None
        What lies below its GPUs; None for nothing.
    spare : int
        Replicas beyond those of `facts` that are off until they are added.
    weights_bytes : float [bytes]
        Of one replica, all its GPUs.
    joint : JointCost or None
        What steps of several attention ranks cost; None where a replica is one rank.
    ranks_in_turn : bool
        Ranks get requests in turn, not by their queues.
    allocator : Allocator or None
        What requests are promised at admission; None for nothing.
    staged : StagedCost or None
        What micro-batches of a pipeline cost; None where a replica is one stage.
    stage_energy : tuple of ActiveEnergy
        Of each stage; empty where that is not known.
    staged_joint : StagedJointCost or None
        What micro-batches of several attention ranks cost; None where there are no such.
    retention : callable or None
        Returns a fresh policy of pins; called once per replica. None where nothing is pinned.
    stop : StopPlan or None
        How its steps are stopped; its batching policy is a `Planner` then.
    by_layers : LayerCost or None
        What steps cost whose prompts go through a range of layers; None where they go through all.
    images : ImageCost or None
        What encoding images takes, where that is done here; what steps cost of role ``encode``.
    image_energy : ActiveEnergy or None
        Of encoding.
    """

    facts: PoolFacts
    cost: StepCost
    config: EngineConfig
    batching: Callable[[], BatchingPolicy]
    energy: ActiveEnergy | None = None
    role: str = "mixed"
    kv: KvPlan | None = None
    lane: LanePlan | None = None
    spare: int = 0
    weights_bytes: float = 0.0
    joint: JointCost | None = None
    ranks_in_turn: bool = False
    allocator: Allocator | None = None
    staged: StagedCost | None = None
    stage_energy: tuple[ActiveEnergy, ...] = ()
    staged_joint: StagedJointCost | None = None
    retention: Callable[[], RetentionPolicy] | None = None
    stop: StopPlan | None = None
    by_layers: LayerCost | None = None
    images: ImageCost | None = None
    image_energy: ActiveEnergy | None = None


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """Keep Python's cycle collector from walking the live requests over and over.

    The engine makes no reference cycles on its hot path. A fleet refers to itself, so that its end
    is a collection's matter: it comes with the end of the run, or a process of many runs would
    grow. Nothing is frozen, which would hide what others leave behind from full collections.
    """
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.collect(1)


@_quiet_collector()
def simulate(
    pools: Sequence[PoolPlan],
    workload: Workload,
    router: RoutingPolicy,
    sink: RequestSink,
    *,
    seed: int = 0,
    view_age_ns: int = 0,
    count_own_sends: bool = False,
    heartbeats: Heartbeats | None = None,
    handoff: HandoffPlan | None = None,
    control: ControlPlan | None = None,
    gateway: GatewayPlan | None = None,
    clients: ClientRules | None = None,
    itl_slo_ns: int = NEVER,
    token_times: bool = False,
    keep_steps: bool = False,
    estimates: BeliefPlan | None = None,
    tool_times: Callable[[], ToolTimeEstimator] | None = None,
    encoding: EncodingPlan | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> RunFacts:
    """Serve a workload with a fleet and hand over what happened.

    Parameters
    ----------
    pools : sequence of PoolPlan
        Replicas are numbered through, pool by pool.
    workload : Workload
    router : RoutingPolicy
        A fresh instance; it is started here.
    sink : RequestSink
        Takes one row per request; closed by the caller.
    seed : int
        For the policies' own streams; the workload has drawn its own.
    view_age_ns : int [ns]
        How old the router's view of the loads is.
    count_own_sends : bool
        Whether it knows at once of what it sends itself.
    heartbeats : Heartbeats or None
        When replicas report; None where every change is told, `view_age_ns` later.
    handoff : HandoffPlan or None
        How requests get from prefill to decode replicas; needed if there are such pools.
    control : ControlPlan or None
        What is done about the fleet while it runs.
    gateway : GatewayPlan or None
        What happens where replicas may refuse; there is one too where they come and go.
    clients : ClientRules
    itl_slo_ns : int [ns]
        Objective for the gap between tokens, counted per request.
    token_times : bool
        Take down when every token came out.
    keep_steps : bool
        Keep every step, and every stretch of merged ones.
    estimates : BeliefPlan or None
        What policies are told of output lengths; None for nothing.
    tool_times : callable or None
        Returns a fresh estimator of tool times, called once per replica that pins.
    encoding : EncodingPlan or None
        How embeddings of images get to who computes prompts; needed if some encode for others.
    progress : callable or None
        Called with (requests ended, total or None).

    Returns
    -------
    RunFacts
        With `interrupted` set, and valid up to that point, after Ctrl-C.
    """
    clock = Clock()
    flips = control is not None and control.flip is not None
    decoders = decoders_board(clock, pools, handoff, flips)
    both = decoders if flips else None
    board = arrivals_board(clock, pools, view_age_ns, count_own_sends, both, heartbeats, seed)
    router = foreseeing(router, clock, board, view_age_ns, count_own_sends, estimates)
    router.start(board, stream(seed, "routing"))
    fleet = Fleet(clock, workload, router, board, clients or ClientRules(), sink, progress)
    tape = _tape(pools) if token_times else None
    replicas = _build_replicas(clock, step_by_step(pools, router), itl_slo_ns, fleet, tape)
    share([replica.meter for replica in replicas])
    steps = kept_steps(replicas if keep_steps else None)
    names = [pools[replica.pool].facts.name for replica in replicas]
    doors = doors_on(board, takers_of_arrivals(pools, replicas, flips))
    if gateway is not None or (control is not None and (control.boot or control.flip)):
        fleet.gateway = Gateway(clock, gateway or GatewayPlan(), fleet)
        fleet.doors = doors
    flows = flows_of(clock, replicas, ports_of(handoff, control, encoding))
    if handoff is not None and decoders is not None:
        handoff.router.start(decoders, stream(seed, "handoff"))
        connect = connect_all if flips else connect_roles
        fleet.handoff = connect(clock, handoff, pools, replicas, fleet, flows, decoders)
    fleet.encoding = connect_encoders(clock, encoding, pools, replicas, fleet, flows)
    _divide_steps(clock, pools, replicas)
    house = _build_tiers(clock, pools, replicas, fleet)
    keep_pins([p.retention for p in pools], replicas, workload.programs, tool_times, seed)
    settle_in(router, clock, fleet, doors, estimates, seed)
    controls = None
    if control is not None:
        controls = Controls(clock, control, replicas, _places(pools), fleet, flows, seed)
    with ctrl_c(fleet.stop):
        fleet.start(replicas, doors)
        clock.run(until=fleet.done)
    _close(fleet, replicas)
    facts = _facts(pools, workload, fleet, replicas, names, fleet.stopped)
    facts = facts if house is None else _with_stores(facts, house, replicas, names)
    facts = controls.added_to(facts) if controls else facts
    return _with_records(facts, names, replicas, tape, steps())


def _with_records(
    facts: RunFacts,
    names: Sequence[str],
    replicas: Sequence[Replica],
    tape: Tape | None,
    steps: StepLog | None,
) -> RunFacts:
    """Return what is known of a run, and what was taken down while it ran."""
    tokens = None if tape is None else tape.times()
    stops, stations = stop_facts(names, replicas), station_facts(names, replicas)
    return dataclasses.replace(facts, tokens=tokens, stops=stops, stations=stations, steps=steps)


def _divide_steps(clock: Clock, pools: Sequence[PoolPlan], replicas: Sequence[Replica]) -> None:
    """Let steps share a GPU, be stopped inside, or compute some of the layers."""
    share_devices(clock, [pool.lane for pool in pools], replicas)
    allow_stops([pool.stop for pool in pools], replicas)
    use_layers([pool.by_layers for pool in pools], replicas)
    let_see([(pool.images, pool.image_energy) for pool in pools], replicas)


def _close(fleet: Fleet, replicas: Sequence[Replica]) -> None:
    """Record whoever is still here after an early stop, and give up what is pinned."""
    if fleet.stopped:
        fleet.close()
    for replica in replicas:
        if replica.draft.retainer is not None:
            replica.draft.retainer.drop_all()


def _tape(pools: Sequence[PoolPlan]) -> Tape:
    """Return what takes down token times, where replicas can tell."""
    if any(pool.joint or pool.staged for pool in pools):
        told = "are not kept where replicas have attention ranks or pipeline stages yet."
        fault = Fault("", "token_times", told)
        raise InputError("simulate", [fault])
    return Tape(sum(pool.facts.replicas + pool.spare for pool in pools))


def _places(pools: Sequence[PoolPlan]) -> list[tuple[str, bool]]:
    """Return of each replica, or rank of one, its role, and whether it is a spare one."""
    return [
        (pool.role, number >= pool.facts.replicas * pool.facts.ranks)
        for pool in pools
        for number in range((pool.facts.replicas + pool.spare) * pool.facts.ranks)
    ]


def _build_replicas(
    clock: Clock, pools: Sequence[PoolPlan], itl_slo_ns: int, fleet: Fleet, tape: Tape | None
) -> list[Replica]:
    replicas: list[Replica] = []
    starts: list[int] = []
    for number, pool in enumerate(pools):
        starts.append(len(replicas))
        kind = Replica if pool.lane is None else Lane
        kind = kind if pool.stop is None else StoppingReplica
        kind = kind if pool.by_layers is None else LayeredReplica
        kind = kind if pool.images is None else SeeingReplica
        kind = kind if pool.role != "encode" else EncodeReplica
        on = None if pool.lane is None else pool.lane.on
        for each in range(pool.facts.replicas + pool.spare):
            if pool.joint is not None:
                replicas += _ranks(clock, pool, number, len(replicas), itl_slo_ns, fleet)
                continue
            if pool.staged is not None:
                replicas.append(_pipeline(clock, pool, number, len(replicas), itl_slo_ns, fleet))
                continue
            replicas.append(
                kind(
                    clock,
                    len(replicas),
                    number,
                    pool.cost,
                    pool.config if on is None else _in(pool, pools[on]),
                    pool.batching(),
                    itl_slo_ns,
                    fleet.on_end,
                    pool.energy,
                    _claims(pool, clock) if on is None else replicas[starts[on] + each].ledger,
                    tape,
                )
            )
    return replicas


def _pipeline(
    clock: Clock, pool: PoolPlan, number: int, index: int, itl_slo_ns: int, fleet: Fleet
) -> Pipeline:
    if pool.staged is None:
        raise InvariantError(f"pool {pool.facts.name} has no price of stages")
    ledger = None
    if pool.allocator is not None:
        ledger = claim_ledger(pool.config, pool.allocator, clock, pool.staged.stages)
    return Pipeline(
        clock,
        index,
        number,
        pool.staged,
        pool.config,
        pool.batching(),
        itl_slo_ns,
        fleet.on_end,
        pool.stage_energy,
        ledger,
    )


def _ranks(
    clock: Clock, pool: PoolPlan, number: int, first: int, itl_slo_ns: int, fleet: Fleet
) -> list[Replica]:
    """Return the attention ranks of one replica, from index `first` on."""
    span = range(first, first + pool.facts.ranks)
    if pool.staged_joint is not None:
        piped = PipelineGroup(clock, first, pool.staged_joint, pool.ranks_in_turn)
        for index in span:
            given = (index, number, pool.config, pool.batching(), itl_slo_ns, fleet.on_end)
            piped.add(PipelineRank(piped, *given))
        return list(piped.members)
    if pool.joint is None:
        raise InvariantError(f"pool {pool.facts.name} has no price of joint steps")
    group = RankGroup(clock, first, pool.joint, pool.config, pool.ranks_in_turn)
    for index in span:
        given = (index, number, pool.config, pool.batching(), itl_slo_ns, fleet.on_end)
        group.add(Rank(group, *given))
    return list(group.members)


def _claims(pool: PoolPlan, clock: Clock) -> ClaimLedger | None:
    return None if pool.allocator is None else claim_ledger(pool.config, pool.allocator, clock)


def _in(guest: PoolPlan, host: PoolPlan) -> EngineConfig:
    """Return the settings of a lane that uses the KV blocks of another pool."""
    return dataclasses.replace(guest.config, kv_blocks=host.config.kv_blocks)


def _build_tiers(
    clock: Clock, pools: Sequence[PoolPlan], replicas: Sequence[Replica], fleet: Fleet
) -> Storehouse | None:
    """Give replicas their part in the tiers below their GPUs, where there are some."""
    if all(pool.kv is None for pool in pools):
        return None
    many = [(pool.facts.replicas + pool.spare) * pool.facts.ranks for pool in pools]
    plans = [(pool.facts.name, pool.kv, count) for pool, count in zip(pools, many, strict=True)]
    house = Storehouse(clock, plans)
    for replica in replicas:
        plan, reach = pools[replica.pool].kv, house.reach(replica.index)
        if plan is None or reach is None:
            continue
        if plan.tiers:
            keeper = Keeper(replica, plan, house.flows, reach, fleet.on_end)
            for draft in drafts_of(replica):
                draft.keeper = keeper
        if plan.swap is not None:
            swapper = Swapper(
                replica, plan.swap, house.flows, reach.to_host, reach.from_host, fleet.on_end
            )
            for draft in drafts_of(replica):
                draft.swapper = swapper
    return house


def _facts(
    pools: Sequence[PoolPlan],
    workload: Workload,
    fleet: Fleet,
    replicas: Sequence[Replica],
    names: Sequence[str],
    interrupted: bool,
) -> RunFacts:
    parts = tuple(
        _replica_facts(replica, name) for replica, name in zip(replicas, names, strict=True)
    )
    itl = LogHistogram()
    for gaps in dict.fromkeys(replica.meter.itl for replica in replicas):  # several share one
        itl.merge(gaps)
    warnings = []
    if workload.skipped_rows:
        rows = "row" if workload.skipped_rows == 1 else "rows"
        warnings.append(f"{workload.skipped_rows:,} damaged {rows} of the trace skipped")
    if fleet.truncated:
        warnings.append(f"{fleet.truncated:,} outputs cut at max_model_len, as the engine would")
    refusals, holds = refusals_of(fleet)
    return RunFacts(
        digest=fleet.digest(),
        end_ns=fleet.last_end_ns,
        requests=fleet.arrived,
        events=sum(replica.events for replica in replicas) + fleet.arrived,
        itl=itl,
        pools=tuple(pool.facts for pool in pools),
        replicas=parts,
        interrupted=interrupted,
        warnings=tuple(warnings),
        refusals=refusals,
        holds=holds,
    )


def _replica_facts(replica: Replica, pool: str) -> ReplicaFacts:
    draft, meter = replica.draft, replica.meter
    drafts = drafts_of(replica)
    timeline = meter.finish()
    if draft.claims is not None:
        timeline = timeline.claiming(draft.claims.over_time())
    return ReplicaFacts(
        pool,
        replica.index,
        timeline,
        meter.steps,
        replica.events,
        sum(each.preemptions for each in drafts),
        meter.peak_kv_blocks,
        sum(each.lookup_tokens for each in drafts),
        sum(each.hit_tokens for each in drafts),
        replica.ledger.evicted,
        pins=None if draft.retainer is None else draft.retainer.facts(),
    )


def _with_stores(
    facts: RunFacts, house: Storehouse, replicas: Sequence[Replica], names: Sequence[str]
) -> RunFacts:
    """Return what is known of a run, and what lay below its GPUs and went there and back."""
    tiers = [tier.facts() for tier in house.tiers]
    for replica, name in zip(replicas, names, strict=True):
        if replica.draft.swapper is not None:
            tiers.append(replica.draft.swapper.facts(name))
    return dataclasses.replace(facts, tiers=tuple(tiers), links=tuple(house.links()))
