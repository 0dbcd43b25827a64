"""A replica's part in handing requests over: what it gives away, and what it takes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.kvcache import Holder
from llmsim.serving.decisions import ADMIT, DROP
from llmsim.serving.delivery import Delivery
from llmsim.serving.draft import Draft
from llmsim.serving.handoff import Handoff, Lease
from llmsim.serving.request import DECODE, FETCHING, HELD, LOADING, MOVING, SWAPPED, Request

if TYPE_CHECKING:
    from llmsim.serving.migration import Migrations
    from llmsim.serving.replica import Replica


class Port:
    """Where requests leave a replica before they have ended, and come to it begun.

    Parameters
    ----------
    replica : Replica

    Attributes
    ----------
    expected : int
        Leases that others hold here, and loads on their way here: while there are some, a replica
        that can do nothing waits.
    moves : Migrations or None
        Those that requests which leave in the middle of decoding are under way with.
    stage_resources : tuple of int
        What leaves each stage of a pipeline goes through, beside what leaves the replica.
    windows : list of (int, int) [ns]
        When each stage works on what was launched last; empty where all layers are one stage.
    sharers : list of Replica
        All whose KV blocks these are: itself, and the lanes beside it.
    """

    __slots__ = (
        "_gives", "_handoff", "_replica", "_transfers", "expected", "moves", "sharers",
        "stage_resources", "windows",
    )  # fmt: skip

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._transfers = 0
        self.moves: Migrations | None = None
        self._handoff: Handoff | None = None
        self._gives = False
        self.expected = 0
        self.sharers = [replica]
        self.stage_resources: tuple[int, ...] = ()
        self.windows: list[tuple[int, int]] = []

    def connect(self, handoff: Handoff, gives: bool) -> None:
        """Take part: as one that gives requests away, or as one that takes them in."""
        self._handoff = handoff
        self._gives = gives
        if gives:
            for delivery in self.deliveries():
                delivery.hand_over = self.hand_over
                delivery.drop_handed = self.drop
        else:
            for draft in self.drafts():
                draft.pull = self.pull

    def take_role(self, gives: bool) -> None:
        """Give away from now on what is computed here, or keep it; what is begun goes on."""
        self._gives = gives
        for delivery in self.deliveries():
            delivery.hand_over = self.hand_over if gives else None

    def deliveries(self) -> list[Delivery]:
        """Return what lets requests go here: of a pipeline, one for each micro-batch."""
        return [self._replica.delivery]

    def drafts(self) -> list[Draft]:
        """Return what is planned here: of a pipeline, one for each micro-batch."""
        return [self._replica.draft]

    @property
    def gives(self) -> bool:
        """Whether others decode what is computed here."""
        return self._gives

    def _way(self) -> Handoff:
        if self._handoff is None:
            raise InvariantError(f"replica {self._replica.index} hands nothing over")
        return self._handoff

    # --- what can be served -----------------------------------------------------------------

    def can_ever_hold(self, request: Request) -> bool:
        """Whether an empty replica has the KV blocks that a request needs, here and further on."""
        config = self._replica.config
        tokens = request.prompt + request.output - 1
        if self._handoff is not None and self._handoff.everywhere:
            return self._handoff.can_ever_hold(request)
        if self._gives:
            if not self._way().can_ever_hold(request):
                return False
            tokens = request.prompt
        return -(-tokens // config.block_tokens) <= config.kv_blocks

    def has_room(self, tokens: int) -> bool:
        """Whether KV of some tokens would get in as it is now, after all who wait [tokens]."""
        replica = self._replica
        size = replica.config.block_tokens
        line = replica.line.requests()
        begun = replica.running + self.expected + len(replica.delivery.arrived) + len(line)
        if begun >= replica.config.max_num_seqs:
            return False
        blocks = -(-tokens // size)
        for each in line:
            known = each.prompt + each.generated if each.lease is None else each.lease.tokens
            blocks += -(-known // size)
        spare = replica.config.watermark_blocks if begun else 0
        return blocks + spare <= replica.config.kv_blocks - self.kv_blocks_used()

    def longest_tokens(self) -> int:
        """Return the longest prompt plus output that can be served from here on [tokens]."""
        longest = self._replica.config.max_model_len
        if self._gives or (self._handoff is not None and self._handoff.everywhere):
            return min(longest, self._way().longest_tokens(self._replica))
        return longest

    # --- out and in -------------------------------------------------------------------------

    def hand_over(self, request: Request) -> None:
        """Let a request go whose prompt is computed; its KV stays under a lease."""
        replica = self._replica
        self.expected += 1
        replica.ledger.register(request, request.computed)
        self._way().offer(request, replica)

    def prompt_ns(self, tokens: int, past: int) -> int:
        """Return what a step takes with some tokens of one prompt and nothing else [ns]."""
        replica = self._replica
        if replica.ranks is not None:
            return replica.ranks.alone_ns(tokens, past)
        return replica.cost.step_ns([(tokens, past)], 0, 0, 0, 1)

    def step_tokens(self, request: Request) -> int:
        """Return how many tokens of a prompt its latest step computes [tokens]."""
        for other, tokens, _ in self._replica.draft.chunks:
            if other is request:
                return tokens
        return request.computed

    def keep(self, request: Request, lease: Lease, called_now: bool) -> None:
        """Let a request decode here whose prompt has been computed here, to be handed over."""
        request.lease, request.replica = None, self._replica
        request.path, request.held = lease.path, lease.held
        request.held_blocks = lease.held_blocks
        request.state = LOADING
        self._replica.decisions.extend((ADMIT, request.view.index, self._replica.clock.now))
        self.kv_arrived(request, called_now, lease.with_token)

    def take_back(self, lease: Lease) -> None:
        """Free the KV blocks of a request that has left; somebody in line may fit now."""
        replica = self._replica
        self.expected -= 1
        self.note_peak()
        blocks = -(-lease.tokens // replica.config.block_tokens)
        # what has no place in the content tree yet was too short to be found there
        replica.ledger.release(lease, blocks, lease.tokens if lease.path else 0)
        replica.ledger.forget(lease)
        self.room_made()

    def empty(self) -> bool:
        """Whether nobody is here, or on the way to here or from here."""
        replica = self._replica
        if replica.running or replica.waiting or self.expected:
            return False
        return not replica.delivery.arrived

    def somebody_waits(self) -> bool:
        """Whether somebody is in line, or on the host and wants to come back."""
        replica = self._replica
        swapper = replica.draft.swapper
        return replica.line.count > 0 or (swapper is not None and bool(swapper.swapped))

    def room_made(self, called_now: bool = False) -> None:
        """Have schedulers called where somebody waits for KV blocks, some of which are back."""
        for replica in self.sharers:
            if replica.port.somebody_waits():
                replica.look_again(called_now)
        if self._handoff is not None and self._handoff.held and not self._gives:
            self._handoff.something_freed()

    def pull(self, request: Request, hit_tokens: int, blocks: int) -> None:
        """Have the KV of a request brought here, for which room has been made."""
        self.expected += 1
        self._way().pull(request, self._replica, hit_tokens, blocks)

    def kv_arrived(self, request: Request, called_now: bool, with_token: bool = False) -> None:
        """Let a request decode here from the next call on: its KV has come.

        Parameters
        ----------
        request : Request
        called_now : bool
        with_token : bool
            The client gets its first token from here: now, or with the seat that it waits for.
        """
        replica = self._replica
        self.expected -= 1
        arrived, seated = replica.delivery.arrived, replica.draft.has_seat()
        if with_token:
            request.first_token_ns = request.last_token_ns = replica.clock.now
            request.owed_token = bool(arrived) or not seated
        arrived.append(request)
        if seated:
            replica.look_again(called_now)

    def drop(self, request: Request, outcome: str) -> None:
        """Let a request go whose client leaves while its KV is left somewhere or on its way."""
        replica = self._replica
        draft = replica.draft
        if request.state == FETCHING and draft.keeper is not None:
            draft.keeper.drop(request, outcome)
            return
        if request.state == SWAPPED and draft.swapper is not None:
            draft.swapper.drop(request, outcome)
            return
        if request.state == HELD:
            for each in self.drafts():
                if each.together is not None and each.together.holds(request):
                    each.together.drop(request, outcome, replica.clock.now)
                    return
        if request.state == MOVING and self.moves is not None:
            replica.decisions.extend((DROP, request.view.index, replica.clock.now))
            self.moves.drop(request, outcome)
            return
        if request.state == LOADING:
            now = replica.clock.now
            replica.decisions.extend((DROP, request.view.index, now))
            if request.owed_token:
                replica.delivery.unsay(request, now)
            self.give_up(request)
        if self._handoff is not None:
            self._handoff.drop(request, outcome)
        elif self.moves is not None:
            self.moves.drop(request, outcome)

    def give_up(self, request: Request) -> None:
        """Free the blocks of a request whose KV is on its way here, or has just come."""
        replica = self._replica
        if request.lease is not None:
            self.expected -= 1
        self.note_peak()
        replica.ledger.release(request, -(-request.computed // replica.config.block_tokens), 0)
        replica.ledger.forget(request)
        self.room_made()

    # --- while it decodes -------------------------------------------------------------------

    def running_requests(self) -> list[Request]:
        """Return everybody who holds KV here, in running order."""
        return list(self._replica.running_set)

    def decodes(self, request: Request) -> bool:
        """Whether a request that runs here has its prompt, and goes on from token to token."""
        return request.state == DECODE

    def decoding(self) -> list[tuple[Request, int]]:
        """Return who decodes here, in running order, with the tokens before the next one."""
        replica = self._replica
        tick = replica.cohort.tick + replica.ticks_begun()
        return [
            (request, request.base + tick)
            for request in replica.running_set
            if request.state == DECODE
        ]

    def let_depart(self, request: Request) -> None:
        """Let a request go on elsewhere from the next call on that finds it out of every step."""
        self._replica.delivery.departing.append(request)
        self._replica.look_again()

    def fail(self) -> None:
        """Lose all KV with the next call, and let those go who held it."""
        self._replica.delivery.failing = True
        self._replica.look_again()

    def computed_tokens(self, request: Request) -> int:
        """Return how many tokens of a decoding request have their KV for sure by now [tokens].

        The step under way counts as not yet run, whatever is left of it.
        """
        replica = self._replica
        scheduled = request.base + replica.cohort.tick + replica.ticks_begun()
        return scheduled - 1 - replica.config.lookahead

    def kv_blocks_used(self) -> int:
        """Return the KV blocks in use now, inside a stretch too [blocks]."""
        replica = self._replica
        return replica.config.kv_blocks - replica.ledger.free + replica.unbooked_blocks()

    def book_kv(self) -> None:
        """Take what the steps begun so far needed now, not at the end of the stretch."""
        replica = self._replica
        more = replica.unbooked_blocks()
        replica.ledger.take(more)
        replica.draft.first_need += more

    def note_peak(self) -> None:
        """Count the KV blocks in use now towards their peak; some are about to be given back.

        What the steps begun so far needed is taken first: it does not come out of those.
        """
        self.book_kv()
        self.count_use(self.kv_blocks_used())

    def count_use(self, blocks: int) -> None:
        """Count KV blocks in use towards the peak of everybody whose blocks they are."""
        for replica in self.sharers:
            if blocks > replica.meter.peak_kv_blocks:
                replica.meter.peak_kv_blocks = blocks

    def withdraw(self, request: Request, called_now: bool = False) -> None:
        """Let a request go that waits here and will be served elsewhere; see `Replica.enqueue`."""
        replica = self._replica
        was_head = replica.line.head() is request
        replica.line.remove(request)
        if request.queued_ns < replica.clock.now:
            replica.meter.waited(request.queued_ns, replica.clock.now)
        if replica.draft.retainer is not None:
            replica.draft.retainer.left(request)
        replica.ledger.forget(request)
        if was_head:
            replica.cut(called_now)

    def give_back(self, blocks: int) -> None:
        """Free blocks that were kept for KV that does not come."""
        self.book_kv()
        self.note_peak()
        self._replica.ledger.release(Holder(), blocks, 0)

    def carry(self, more: int, drag_frac: float) -> None:
        """Note that more transfers, or fewer, read or write this replica's memory from now on.

        Parameters
        ----------
        more : int
        drag_frac : float
            By how much each of them lengthens a step.
        """
        self._transfers += more
        self._replica.slow_down(self._transfers * drag_frac)
