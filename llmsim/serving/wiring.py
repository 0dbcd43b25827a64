"""Who stands behind which door of a fleet: boards, targets of handing over, ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.serving.board import EchoBoard, LoadBoard
from llmsim.serving.clock import Clock
from llmsim.serving.encoding import Encoding, EncodingPlan
from llmsim.serving.flows import Flows
from llmsim.serving.handoff import Handoff, HandoffPlan
from llmsim.serving.heartbeats import HeartbeatBoard, Heartbeats
from llmsim.serving.pipeline import Pipeline
from llmsim.serving.replica import Replica

if TYPE_CHECKING:
    from llmsim.serving.control import ControlPlan
    from llmsim.serving.fleet import Fleet
    from llmsim.serving.simulate import PoolPlan


def count_of(pools: Sequence[PoolPlan], *roles: str) -> int:
    """Return how many replicas have one of the roles, spare ones too."""
    return sum(pool.facts.replicas + pool.spare for pool in pools if pool.role in roles)


def _holding(fleet: Fleet) -> Callable[[int], None]:
    """Return what keeps a run from ending, and lets it end again."""

    def hold(change: int) -> None:
        fleet.closing += change
        if not fleet.closing:
            fleet.check_done()

    return hold


def arrivals_board(
    clock: Clock,
    pools: Sequence[PoolPlan],
    age_ns: int,
    count_own_sends: bool,
    decoders: LoadBoard | None,
    beats: Heartbeats | None,
    seed: int,
) -> LoadBoard:
    """Return what the router of arrivals sees: all replicas where roles change.

    Parameters
    ----------
    clock : Clock
    pools : sequence of PoolPlan
    age_ns : int [ns]
    count_own_sends : bool
    decoders : LoadBoard or None
        What the other router sees, where both see the same replicas.
    beats : Heartbeats or None
        When replicas report; None where every change is told.
    seed : int
    """
    if decoders is not None:
        count = count_of(pools, "mixed", "prefill", "decode")
        return EchoBoard(clock, count, age_ns, count_own_sends, decoders)
    count = count_of(pools, "mixed", "prefill")
    if beats is not None:
        return HeartbeatBoard(clock, count, age_ns, count_own_sends, beats, seed)
    return LoadBoard(clock, count, age_ns, count_own_sends)


def decoders_board(
    clock: Clock, pools: Sequence[PoolPlan], handoff: HandoffPlan | None, flips: bool
) -> LoadBoard | None:
    """Return what the router sees that hands over: those that decode, or may once."""
    if handoff is None:
        if count_of(pools, "prefill", "decode"):
            raise InvariantError("prefill and decode pools need a handoff between them")
        return None
    roles = ("mixed", "prefill", "decode") if flips else ("decode",)
    return LoadBoard(clock, count_of(pools, *roles), handoff.view_age_ns)


def takers_of_arrivals(
    pools: Sequence[PoolPlan], replicas: Sequence[Replica], flips: bool
) -> list[Replica]:
    """Return who computes prompts, or may once."""
    others = ("encode",) if flips else ("decode", "encode")
    return [replica for replica in replicas if pools[replica.pool].role not in others]


def doors_on(board: LoadBoard, replicas: Sequence[Replica]) -> list[Replica]:
    """Give replicas their places on a board; return those it lists, one for all its ranks each."""
    doors = [replica for replica in replicas if replica.turn == replica.index]
    slots = {replica.turn: slot for slot, replica in enumerate(doors)}
    for replica in replicas:
        replica.board, replica.slot = board, slots[replica.turn]
    return doors


def ports_of(
    handoff: HandoffPlan | None, control: ControlPlan | None, encoding: EncodingPlan | None
) -> tuple[float, ...]:
    """Return what one replica of each pool can send or receive [bytes/s]; none: nothing moves."""
    if handoff is not None:
        return handoff.port_bytes_per_s
    if control is not None and control.migration is not None:
        return control.migration.port_bytes_per_s
    return () if encoding is None else encoding.port_bytes_per_s


def flows_of(clock: Clock, replicas: Sequence[Replica], ports: Sequence[float]) -> Flows:
    """Return what all transfers go through: out of each replica and into it, where any do.

    Behind these, what leaves each stage of a pipeline, where it sends its layers by itself.
    """
    capacities = [ports[replica.pool] for replica in replicas for _ in range(2) if ports]
    for replica in replicas:
        if ports and isinstance(replica, Pipeline):
            first, stages = len(capacities), len(replica.slots)
            replica.port.stage_resources = tuple(range(first, first + stages))
            capacities += [ports[replica.pool] / stages] * stages
    return Flows(clock, capacities)


def connect_encoders(
    clock: Clock,
    plan: EncodingPlan | None,
    pools: Sequence[PoolPlan],
    replicas: Sequence[Replica],
    fleet: Fleet,
    flows: Flows,
) -> Encoding | None:
    """Send requests with images to who encodes them first, if anybody does."""
    if plan is None:
        return None
    board = LoadBoard(clock, count_of(pools, "encode"), 0)
    doors = doors_on(board, [r for r in replicas if pools[r.pool].role == "encode"])
    return Encoding(clock, plan, fleet, doors, board, flows)


def connect_roles(
    clock: Clock,
    plan: HandoffPlan,
    pools: Sequence[PoolPlan],
    replicas: Sequence[Replica],
    fleet: Fleet,
    flows: Flows,
    board: LoadBoard,
) -> Handoff:
    """Let prefill replicas hand their requests over to decode replicas."""
    takers = [replica for replica in replicas if pools[replica.pool].role == "decode"]
    targets = doors_on(board, takers)
    handoff = Handoff(clock, plan, targets, board, fleet.on_end, flows)
    handoff.aside, handoff.hold_end = fleet.aside, _holding(fleet)
    handoff.called = fleet.called if plan.refuses else None
    for replica in takers:
        replica.port.connect(handoff, gives=False)
    for replica in replicas:
        if pools[replica.pool].role == "prefill":
            replica.port.connect(handoff, gives=True)
            _hand_early(replica, plan)
    return handoff


def connect_all(
    clock: Clock,
    plan: HandoffPlan,
    pools: Sequence[PoolPlan],
    replicas: Sequence[Replica],
    fleet: Fleet,
    flows: Flows,
    decoders: LoadBoard,
) -> Handoff:
    """Let any replica hand over to any other: which one does, and which takes, may change."""
    handoff = Handoff(clock, plan, fleet.doors, fleet.board, fleet.on_end, flows)
    handoff.aside, handoff.hold_end = fleet.aside, _holding(fleet)
    handoff.everywhere, handoff.view = True, decoders
    for replica in replicas:
        replica.port.connect(handoff, gives=False)
        replica.port.connect(handoff, gives=True)
        replica.port.take_role(pools[replica.pool].role == "prefill")
        _hand_early(replica, plan)
    return handoff


def _hand_early(replica: Replica, plan: HandoffPlan) -> None:
    """Have prompts handed over as their last step begins; scheduled ahead, they are anyway."""
    for delivery in replica.port.deliveries():
        delivery.hands_all = bool(plan.layers)
        delivery.hands_early = bool(plan.layers) and not replica.config.lookahead
