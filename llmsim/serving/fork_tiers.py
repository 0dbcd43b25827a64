"""What forks take over of the tiers below GPUs: what lies there, and what is under way.

A fork knows what tiers hold now, its own loads and writes. It knows nothing of the transfers of
replicas that share its links or stores: its own go on as if they had these to themselves, and what
others have yet to write never comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmsim.core.errors import InvariantError
from llmsim.kvcache.mirror import StoreMirror
from llmsim.kvcache.store import TierStore
from llmsim.serving.clock import Clock
from llmsim.serving.flows import Flow, Flows
from llmsim.serving.gate import Gate
from llmsim.serving.keeper import Keeper, Load
from llmsim.serving.likeness import Likeness, copied, nobody_hears
from llmsim.serving.replica import Replica
from llmsim.serving.request import Request
from llmsim.serving.storehouse import Reach, Tier
from llmsim.serving.writer import Keep, Sending, Write, Writer


class ShadowTiers:
    """The tiers of a fork's members, and their transfers.

    Parameters
    ----------
    clock : Clock
    likenesses : sequence of Likeness
        Of the members; each gets a keeper.
    keepers : sequence of Keeper
        Of those whom they are like.
    """

    def __init__(
        self, clock: Clock, likenesses: Sequence[Likeness], keepers: Sequence[Keeper]
    ) -> None:
        self._likenesses = list(likenesses)
        self._ways: dict[int, int] = {}  # their resources here, by number there
        self._tiers: dict[Tier, Tier] = {}
        capacities: list[float] = []
        reaches = [self._reach(keeper, capacities) for keeper in keepers]
        self._flows = Flows(clock, capacities)
        self._keepers: list[Keeper] = []
        for likeness, like, reach in zip(likenesses, keepers, reaches, strict=True):
            shadow = likeness.shadow
            keeper = Keeper(shadow, like.plan, self._flows, reach, nobody_hears)
            shadow.draft.keeper = keeper
            self._keepers.append(keeper)

    def _reach(self, like: Keeper, capacities: list[float]) -> Reach:
        """Return a replica's ways to its tiers, in the numbers of this world."""
        reach = like.reach

        def way(path: tuple[int, ...]) -> tuple[int, ...]:
            for resource in path:
                if resource not in self._ways:
                    self._ways[resource] = len(capacities)
                    capacities.append(like.flows.capacity(resource))
            return tuple([self._ways[resource] for resource in path])

        return Reach(
            tuple([self._tier(tier) for tier in reach.tiers]),
            tuple([way(path) for path in reach.out]),
            tuple([way(path) for path in reach.into]),
            tuple([way(path) for path in reach.down]),
            way(reach.to_host),
            way(reach.from_host),
        )

    def _tier(self, like: Tier) -> Tier:
        found = self._tiers.get(like)
        if found is None:
            found = self._tiers[like] = Tier(like.plan, like.pool, like.replica, -1, -1)
            found.store = StoreMirror(like.store)
        return found

    def load(self, others: Sequence[Replica], believed: bool, whole: bool) -> None:
        """Take over what other replicas have below their GPUs, and what is under way there.

        Parameters
        ----------
        others : sequence of Replica
            Their requests have been taken over.
        believed : bool
            They are shadows; else their lengths are true ones.
        whole : bool
            They go on before this fork is used.
        """
        theirs = [_keeper_of(other) for other in others]
        seen: set[Tier] = set()
        for own, keeper in zip(self._keepers, theirs, strict=True):
            for tier, like in zip(own.reach.tiers, keeper.reach.tiers, strict=True):
                if tier not in seen:
                    seen.add(tier)
                    _mirrored(tier.store).mirror(like.store, whole)
        flows = theirs[0].flows
        self._flows.restart(flows.number)
        for likeness, own, keeper, other in zip(
            self._likenesses, self._keepers, theirs, others, strict=True
        ):
            self._copy_loads(likeness, own, keeper, other, believed)
            self._copy_writes(own.writer, keeper.writer, believed)
        pairs = self._ways.items()
        shared = not believed and any(
            flows.users(there) != self._flows.users(here) for there, here in pairs
        )
        self._flows.go_on(shared)

    def _path(self, flow: Flow, believed: bool) -> tuple[int, ...]:
        return flow.path if believed else tuple([self._ways[each] for each in flow.path])

    def _copy_loads(
        self, likeness: Likeness, own: Keeper, theirs: Keeper, other: Replica, believed: bool
    ) -> None:
        own.policy = copied(theirs.policy)
        own.gave_up = set(theirs.gave_up)
        own.loads = []
        gates: dict[Gate, Gate] = {}
        for load in theirs.loads:
            aside = [load.request, *load.waiters]
            likeness.add([r for r in aside if r not in likeness.clones], believed)
            copy = Load(likeness.clones[load.request], load.tokens, load.began_ns)
            copy.waiters = [likeness.clones[waiter] for waiter in load.waiters]
            own.loads.append(copy)
            came = _coming(own, copy)
            flows: dict[Flow, Flow] = {}
            for flow, (number, runs) in load.flows.items():
                here = flows[flow] = self._flows.adopt(flow, self._path(flow, believed), came)
                store = own.reach.tiers[number].store
                copy.flows[here] = (number, _mirrored(store).runs(runs))
            for gate in load.gates:
                gates[gate] = gate.of(flows.get(gate.flow, gate.flow))
                copy.gates.append(gates[gate])
        draft = likeness.shadow.draft
        draft.gates = [gates[g] if g in gates else g.of(g.flow) for g in other.draft.gates]

    def _copy_writes(self, own: Writer, theirs: Writer, believed: bool) -> None:
        own.keeps.clear()
        keeps: dict[Keep, Keep] = {}
        for keep in theirs.keeps:
            request = Request(keep.view, 1)
            request.computed = keep.tokens
            keeps[keep] = Keep(request, keep.blocks)
            own.keeps[keeps[keep]] = None
        for number, queue in enumerate(theirs.queues):
            own.queues[number].clear()
            own.queues[number].extend(self._write(own, each, keeps) for each in queue)
            own.sendings[number] = None
            sending = theirs.sendings[number]
            if sending is None or sending.flow is None:
                continue
            store = _mirrored(own.reach.tiers[number].store)
            copy = Sending(self._write(own, sending.write, keeps), store.arrival(sending.arrival))
            path = self._path(sending.flow, believed)
            copy.flow = self._flows.adopt(sending.flow, path, _landing(own, copy))
            own.sendings[number] = copy

    def _write(self, own: Writer, write: Write, keeps: dict[Keep, Keep]) -> Write:
        copy = Write(write.tier, write.segments, write.lo, write.hi)
        copy.due_ns = write.due_ns
        if write.keep is not None:
            copy.keep = keeps[write.keep]
        if write.held:
            copy.held = _mirrored(own.reach.tiers[write.tier - 1].store).runs(write.held)
        return copy


def _coming(keeper: Keeper, load: Load) -> Callable[[Flow], None]:
    return lambda flow: keeper.came(load, flow)


def _landing(writer: Writer, sending: Sending) -> Callable[[Flow], None]:
    return lambda _: writer.landed(sending)


def _mirrored(store: TierStore) -> StoreMirror:
    if not isinstance(store, StoreMirror):
        raise InvariantError("a fork writes to a store that is not its own")
    return store


def _keeper_of(replica: Replica) -> Keeper:
    keeper = replica.draft.keeper
    if keeper is None:
        raise InvariantError(f"replica {replica.index} has nothing below its GPUs")
    return keeper
