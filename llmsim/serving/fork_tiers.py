"""What forks take over of the tiers below GPUs: what lies there, and what is under way.

A fork knows what tiers hold now, its own loads and writes. It knows nothing of the transfers of
replicas that share its links or stores: its own go on as if they had these to themselves, and what
others have yet to write never comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from llmsim.core.errors import InvariantError
from llmsim.kvcache.mirror import StoreMirror
from llmsim.kvcache.store import TierStore
from llmsim.serving.clock import Clock
from llmsim.serving.flows import Flow, Flows
from llmsim.serving.gate import Gate
from llmsim.serving.keeper import Keeper, Load
from llmsim.serving.likeness import Likeness, copied, nobody_hears
from llmsim.serving.parts import drafts_of
from llmsim.serving.replica import Replica
from llmsim.serving.request import Request
from llmsim.serving.storehouse import Reach, Tier
from llmsim.serving.swap import Copying, Return, Swapper
from llmsim.serving.writer import Keep, Sending, Write, Writer


class ShadowTiers:
    """What lies below the GPUs of a fork's members, and what is under way there.

    Parameters
    ----------
    clock : Clock
    likenesses : sequence of Likeness
        Of the members.
    likes : sequence of Replica
        Whom they are like: all of them have tiers, or all swap, or both.
    """

    def __init__(
        self, clock: Clock, likenesses: Sequence[Likeness], likes: Sequence[Replica]
    ) -> None:
        self._likenesses = list(likenesses)
        self._ways: dict[int, int] = {}  # their resources here, by number there
        self._tiers: dict[Tier, Tier] = {}
        self._capacities: list[float] = []
        self._gates: dict[Gate, Gate] = {}  # of the member that is being loaded
        there = _flows_of(likes[0])
        reaches: list[Reach | None] = []
        swaps: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for like in likes:
            keeper, swapper = like.draft.keeper, like.draft.swapper
            reaches.append(None if keeper is None else self._reach(keeper.reach, there))
            if swapper is not None:
                swaps.append((self._way(swapper.out, there), self._way(swapper.into, there)))
        self._flows = flows = Flows(clock, self._capacities)
        for likeness, like, reach in zip(likenesses, likes, reaches, strict=True):
            shadow, keeper, swapper = likeness.shadow, like.draft.keeper, like.draft.swapper
            if keeper is not None and reach is not None:
                own = Keeper(shadow, keeper.plan, flows, reach, nobody_hears)
                for draft in drafts_of(shadow):
                    draft.keeper = own
            if swapper is not None:
                out, into = swaps.pop(0)
                swaps_here = Swapper(shadow, swapper.plan, flows, out, into, nobody_hears)
                for draft in drafts_of(shadow):
                    draft.swapper = swaps_here

    def _way(self, path: tuple[int, ...], there: Flows) -> tuple[int, ...]:
        """Return resources in the numbers of this world."""
        for resource in path:
            if resource not in self._ways:
                self._ways[resource] = len(self._capacities)
                self._capacities.append(there.capacity(resource))
        return tuple([self._ways[resource] for resource in path])

    def _reach(self, reach: Reach, there: Flows) -> Reach:
        """Return a replica's ways to its tiers, in the numbers of this world."""
        return Reach(
            tuple([self._tier(tier) for tier in reach.tiers]),
            tuple([self._way(path, there) for path in reach.out]),
            tuple([self._way(path, there) for path in reach.into]),
            tuple([self._way(path, there) for path in reach.down]),
            self._way(reach.to_host, there),
            self._way(reach.from_host, there),
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
        flows = _flows_of(others[0])
        self._flows.restart(flows.number)
        seen: set[Tier] = set()
        for likeness, other in zip(self._likenesses, others, strict=True):
            draft = likeness.shadow.draft
            self._gates = {}
            own, theirs = draft.keeper, other.draft.keeper
            if own is not None and theirs is not None:
                for tier, like in zip(own.reach.tiers, theirs.reach.tiers, strict=True):
                    if tier not in seen:
                        seen.add(tier)
                        _mirrored(tier.store).mirror(like.store, whole)
                self._copy_loads(likeness, own, theirs, believed)
                self._copy_writes(own.writer, theirs.writer, believed)
            own_swaps, their_swaps = draft.swapper, other.draft.swapper
            if own_swaps is not None and their_swaps is not None:
                self._copy_swaps(likeness, own_swaps, their_swaps, believed)
            likeness.take_gates(other, self._gate)
        shared = not believed and any(
            flows.users(there) != self._flows.users(here) for there, here in self._ways.items()
        )
        self._flows.go_on(shared)

    def _gate(self, gate: Gate) -> Gate:
        """Return the copy of a gate."""
        copy = self._gates.get(gate)
        if copy is None:  # what has come while others had yet to is left in the step
            copy = gate.of(gate.flow)
        return copy

    def _path(self, flow: Flow, believed: bool) -> tuple[int, ...]:
        return flow.path if believed else tuple([self._ways[each] for each in flow.path])

    def _copy_loads(self, likeness: Likeness, own: Keeper, theirs: Keeper, believed: bool) -> None:
        own.policy = copied(theirs.policy)
        own.gave_up = set(theirs.gave_up)
        own.loads = []
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
                self._gates[gate] = gate.of(flows.get(gate.flow, gate.flow))
                copy.gates.append(self._gates[gate])

    def _copy_swaps(
        self, likeness: Likeness, own: Swapper, theirs: Swapper, believed: bool
    ) -> None:
        copy_of = likeness.copy_of
        likeness.add(theirs.swapped, believed)
        own.swapped = deque([copy_of(request) for request in theirs.swapped])
        own.outside = {request.view.index: request for request in own.swapped}
        own.leaving = {copy_of(request): None for request in theirs.leaving}
        own.there = {copy_of(request): blocks for request, blocks in theirs.there.items()}
        own.copies = {copy_of(request): blocks for request, blocks in theirs.copies.items()}
        own.kept_back = {copy_of(request): blocks for request, blocks in theirs.kept_back.items()}
        own.free, own.rank, own.aside = theirs.free, theirs.rank, False
        own.under_way = {}
        for flow, copying in theirs.under_way.items():
            here = self._flows.adopt(flow, self._path(flow, believed), own.copied)
            copy = own.under_way[here] = Copying(copy_of(copying.request), copying.aside)
            if copying.gate is not None:
                copy.gate = self._gates[copying.gate] = copying.gate.of(here)
        own.coming = {}
        for request, back in theirs.coming.items():
            mine = own.coming[copy_of(request)] = Return(back.blocks)
            mine.came = back.came
            if back.flow is not None and not back.came:
                path = self._path(back.flow, believed)
                mine.flow = self._flows.adopt(back.flow, path, _returning(own, mine))

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
            own.queues[number].extend([self._write(own, each, keeps) for each in queue])
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


def _returning(swapper: Swapper, back: Return) -> Callable[[Flow], None]:
    return lambda _: swapper.came(back)


def _flows_of(replica: Replica) -> Flows:
    keeper, swapper = replica.draft.keeper, replica.draft.swapper
    if keeper is not None:
        return keeper.flows
    if swapper is None:
        raise InvariantError(f"replica {replica.index} has nothing below its GPUs")
    return swapper.flows
