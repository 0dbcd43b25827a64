"""Preemption by swapping: a victim's KV goes to host memory and comes back, instead of being lost.

As in vLLM v0: copies of a step come before its compute, on the link between the GPUs and their
host; nobody new is admitted while anybody is out; who has been out longest comes back first, as
soon as it fits and leaves the watermark. Where host memory is full the victim is computed again
(vLLM v0 ends with an error there); `refused` counts these.

A policy may say who ranks first (`serving.switching`): then those come back first, and who waits
gets in before who ranks lower. Copies may also run beside the steps of others: the blocks of a
victim come back when they have been copied, and who comes back joins when all of its KV is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.core.units import NS_PER_S
from llmsim.policies.views import RequestView
from llmsim.results.facts import TierFacts
from llmsim.serving.decisions import DROP, RESUME
from llmsim.serving.flows import Flow, Flows
from llmsim.serving.gate import Gate
from llmsim.serving.request import PARKED, Request

if TYPE_CHECKING:
    from llmsim.serving.replica import Replica


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """How KV is swapped.

    Parameters
    ----------
    blocks : int [blocks]
        Room for it in host memory.
    block_bytes : float [bytes]
        Of one block, all layers, all GPUs of a replica together.
    message_s : float [s]
        Of one copy, beside its bytes.
    parts : int
        Copies of one run of blocks: K and V of every layer, of a pipeline's largest stage.
    run_blocks : int [blocks]
        Neighbouring blocks that one copy takes: 1 for a paged cache, more where blocks are
        allocated in groups.
    keeps_copies : bool
        What was swapped in stays in host memory while there is room, and only what is new since
        is copied the next time.
    overlaps : bool
        Copies of those who change places run beside the steps of others; else steps wait for them.
    """

    blocks: int
    block_bytes: float
    message_s: float = 0.0
    parts: int = 1
    run_blocks: int = 1
    keeps_copies: bool = False
    overlaps: bool = False

    def lead_ns(self, blocks: int) -> int:
        """Return what the copies of some blocks cost beside their bytes [ns]."""
        return round(-(-blocks // self.run_blocks) * self.parts * self.message_s * NS_PER_S)

    def copy_s(self, blocks: int, bytes_per_s: float) -> float:
        """Return how long blocks take over a link that nobody else uses [s].

        Parameters
        ----------
        blocks : int [blocks]
        bytes_per_s : float [bytes/s]
        """
        return self.lead_ns(blocks) / NS_PER_S + blocks * self.block_bytes / bytes_per_s


class Return:
    """KV on its way back to the GPU beside the steps of others.

    Attributes
    ----------
    blocks : int [blocks]
        Taken for it.
    flow : Flow or None
    came : bool
        All is there, and it waits for the next call.
    """

    __slots__ = ("blocks", "came", "flow")

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.flow: Flow | None = None
        self.came = False


class Copying:
    """A copy to the host, or one from there that a step waits for.

    Attributes
    ----------
    request : Request
        Whose KV it is.
    aside : bool
        It runs beside the steps of others.
    gate : Gate
        Of the step that waits for it, if one does.
    """

    __slots__ = ("aside", "gate", "request")

    def __init__(self, request: Request, aside: bool) -> None:
        self.request = request
        self.aside = aside
        self.gate: Gate | None = None


class Swapper:
    """Who is swapped out on one replica, and the copies under way.

    Parameters
    ----------
    replica : Replica
    plan : SwapPlan
    flows : Flows
    out, into : tuple of int
        Resources of the way to the host and back.
    on_end : callable
        Called with (request, outcome, time) when a request ends here.

    Attributes
    ----------
    swapped : deque of Request
        The first comes back first.
    free : int [blocks]
        Room in host memory; copies that are only kept count as taken.
    outside : dict from int to Request
        The same by the index of their views.
    rank : callable or None
        Who is more important, the least first; None where the first comes back first.
    aside : bool
        Victims are copied beside the steps of others now.
    under_way : dict of Flow to Copying
        Copies, other than those of `coming`.
    leaving : dict of Request
        Who is being copied to the host.
    there, copies : dict of Request to int [blocks]
        In host memory: of who is out, and of who is back, the oldest first.
    coming : dict of Request to Return
    kept_back : dict of Request to int [blocks]
        GPU blocks that are still being copied.
    refused : int
        Victims that found no room.
    out_blocks, in_blocks : int [blocks]
        Copied so far.
    """

    def __init__(
        self,
        replica: Replica,
        plan: SwapPlan,
        flows: Flows,
        out: tuple[int, ...],
        into: tuple[int, ...],
        on_end: Callable[[Request, str, int], None],
    ) -> None:
        self._replica = replica
        self.plan = plan
        self.flows = flows
        self.out = out
        self.into = into
        self._on_end = on_end
        self.under_way: dict[Flow, Copying] = {}
        self.leaving: dict[Request, None] = {}
        self.there: dict[Request, int] = {}
        self.copies: dict[Request, int] = {}
        self.swapped: deque[Request] = deque()
        self.coming: dict[Request, Return] = {}
        self.kept_back: dict[Request, int] = {}
        self.outside: dict[int, Request] = {}
        self.rank: Callable[[RequestView], int | float] | None = None
        self.aside = False
        self.free = plan.blocks
        self.refused = 0
        self.out_blocks = 0
        self.in_blocks = 0

    # --- out --------------------------------------------------------------------------------

    def take(self, victim: Request) -> bool:
        """Start to copy a victim's KV to the host, if there is room; its blocks go at once.

        The step under construction waits for the copy, so nothing is overwritten before.
        """
        size = self._replica.draft.block_tokens
        blocks = -(-victim.computed // size)
        copied = self.copies.pop(victim, 0)
        self.free += copied
        kept = min(copied, victim.computed // size)  # the last block may have been half full
        if not self._make_room(blocks):
            self.refused += 1
            return False
        self.free -= blocks
        self.there[victim] = blocks
        self.swapped.append(victim)
        self.outside[victim.view.index] = victim
        self.leaving[victim] = None
        self.out_blocks += blocks - kept
        self._copy(victim, blocks - kept, self.out)
        return True

    def _make_room(self, blocks: int) -> bool:
        """Give up copies that are only kept, of who has ended first, then the oldest."""
        if blocks > self.free:
            for each in [request for request in self.copies if request.ended]:
                self.free += self.copies.pop(each)
        while blocks > self.free and self.copies:
            self.free += self.copies.pop(next(iter(self.copies)))
        return blocks <= self.free

    def keep_back(self, victim: Request, blocks: int) -> None:
        """Keep as many blocks from others as a victim has given back, until it is copied."""
        if blocks and victim in self.leaving:
            self._replica.ledger.take(blocks)
            self.kept_back[victim] = blocks

    def _copy(self, request: Request, blocks: int, path: tuple[int, ...]) -> None:
        replica = self._replica
        plan = self.plan
        replica.port.expected += 1
        size = blocks * plan.block_bytes
        flow = self.flows.start(
            path,
            size,
            self.copied,
            rank=request.view.index,
            lead_ns=plan.lead_ns(blocks),
            tracked=True,
        )
        copying = self.under_way[flow] = Copying(request, self.aside)
        copying.gate = gate = Gate(flow, size)
        if not self.aside:
            replica.draft.gates.append(gate)

    def copied(self, flow: Flow) -> None:
        """Let go on who has waited for a copy."""
        copying = self.under_way.pop(flow)
        replica, request, gate = self._replica, copying.request, copying.gate
        replica.port.expected -= 1
        self.leaving.pop(request, None)
        if copying.aside:
            replica.port.give_back(self.kept_back.pop(request, 0))
            replica.port.room_made()
            return
        if gate is not None:
            gate.ended_ns = replica.clock.now
        replica.open_gate()
        if self.swapped:
            replica.look_again()

    # --- back -------------------------------------------------------------------------------

    def bring_back(self, ranked: bool = False) -> None:
        """Start to copy back whom there is room for, in order; seat who has come.

        Parameters
        ----------
        ranked : bool
            The policy asks for it; where it ranks requests nobody comes back before it does.
        """
        if self.rank is not None:
            draft = self._replica.draft
            if not ranked and (draft.running_set or draft.line.count):
                return  # the policy is called, and will ask
            self._sort(self.rank)
        for request in [each for each, back in self.coming.items() if back.came]:
            if not self._replica.draft.has_seat():
                break
            del self.coming[request]
            self._arrive(request)
        first = self._replica.draft.line.head() if self.rank is not None else None
        for request in list(self.swapped):
            if request in self.coming:
                continue
            if first is not None and self._before(first, request):
                return  # who waits gets in first
            if request in self.leaving or not self._has_room(request):
                return
            self._begin(request)

    def _sort(self, rank: Callable[[RequestView], int | float]) -> None:
        ordered = sorted((rank(each.view), each.view.index) for each in self.swapped)
        self.swapped = deque(self.outside[index] for _, index in ordered)

    def _has_room(self, request: Request) -> bool:
        """Whether a request that is out fits now, its next token included."""
        draft = self._replica.draft
        if len(draft.running_set) + len(self.coming) >= draft.max_seqs:
            return False
        needed = -(-(request.computed + 1) // draft.block_tokens)
        while True:
            room = draft.ledger.free - draft.cohort.blocks_needed(1)
            if draft.running_set or draft.beside:
                room -= draft.watermark_blocks
            if needed <= room:
                return True
            if draft.keeper is None or not draft.keeper.relieve():
                return False

    def _begin(self, request: Request) -> None:
        """Take blocks for a request that is out, and copy its KV back."""
        draft = self._replica.draft
        blocks = -(-request.computed // draft.block_tokens)
        draft.ledger.take(blocks)
        self.in_blocks += blocks
        if not self.plan.overlaps:
            self._arrive(request)
            self._copy(request, blocks, self.into)
            return
        replica, back = self._replica, Return(blocks)
        self.coming[request] = back
        replica.port.expected += 1

        back.flow = self.flows.start(
            self.into,
            blocks * self.plan.block_bytes,
            lambda _: self.came(back),
            rank=request.view.index,
            lead_ns=self.plan.lead_ns(blocks),
        )

    def came(self, back: Return) -> None:
        """Let a request be seated whose KV has come back beside the steps of others."""
        self._replica.port.expected -= 1
        back.came = True
        self._replica.look_again()

    def _arrive(self, request: Request) -> None:
        """Let a request run again; its blocks are taken."""
        draft = self._replica.draft
        self.swapped.remove(request)
        del self.outside[request.view.index]
        there = self.there.pop(request)
        if self.plan.keeps_copies:
            self.copies[request] = there
        else:
            self.free += there
        request.seat = draft.seats
        draft.seats += 1
        request.state = PARKED
        draft.running_set[request] = None
        draft.parked[request] = None
        path = request.path
        if path and path[-1][0].slot is not None:
            path[-1][0].writer = request
        draft.decisions.extend((RESUME, request.view.index, draft.now))
        if request.queued_ns < draft.now:
            draft.meter.waited(request.queued_ns, draft.now)

    def outranked_by(self, request: Request) -> bool:
        """Whether a request in line is more important than everybody who is out."""
        return self.rank is not None and all(self._before(request, each) for each in self.swapped)

    def _before(self, one: Request, other: Request) -> bool:
        rank = self.rank
        if rank is None:
            raise InvariantError("nobody ranks requests here")
        own = rank(one.view), one.view.index
        return own < (rank(other.view), other.view.index)

    def drop(self, request: Request, outcome: str) -> None:
        """Let a request go whose client leaves while its KV is on the host."""
        replica = self._replica
        now = replica.clock.now
        request.ended = True
        back = self.coming.pop(request, None)
        if back is not None:
            if back.flow is not None and not back.came:
                self.flows.cancel(back.flow)
                replica.port.expected -= 1
            replica.port.give_back(back.blocks)
        self.swapped.remove(request)
        del self.outside[request.view.index]
        self.free += self.there.pop(request)
        if request.queued_ns < now:
            replica.meter.waited(request.queued_ns, now)
        replica.ledger.forget(request)
        replica.decisions.extend((DROP, request.view.index, now))
        self._on_end(request, outcome, now)
        replica.port.room_made()

    def blocks_aside(self) -> int:
        """Return the GPU blocks of those who come or leave beside the steps of others [blocks]."""
        coming = sum(back.blocks for back in self.coming.values())
        return coming + sum(self.kept_back.values())

    def facts(self, pool: str) -> TierFacts:
        """Return what the results say of it, as of a store of the replica's own."""
        plan, size = self.plan, self._replica.config.block_tokens
        return TierFacts(
            name="swap",
            pool=pool,
            replica=self._replica.index,
            capacity_tokens=plan.blocks * size,
            kept_tokens=(plan.blocks - self.free) * size,
            loaded_tokens=self.in_blocks * size,
            read_bytes=round(self.in_blocks * plan.block_bytes),
            written_bytes=round(self.out_blocks * plan.block_bytes),
            evicted_tokens=0,
            refused_tokens=self.refused,
        )

    def check(self) -> None:
        """Prove that no block in host memory is lost or counted twice; raises InvariantError."""
        taken = sum(self.there.values()) + sum(self.copies.values())
        if taken + self.free != self.plan.blocks or self.free < 0:
            raise InvariantError(
                f"{taken} blocks swapped, {self.free} free of {self.plan.blocks} in host memory"
            )
        if set(self.there) != set(self.swapped):
            raise InvariantError("who is swapped out and whose KV is on the host differ")
