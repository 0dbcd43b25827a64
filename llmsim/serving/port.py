"""A replica's part in handing requests over: what it gives away, and what it takes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.serving.decisions import DROP
from llmsim.serving.handoff import Handoff, Lease
from llmsim.serving.request import LOADING, Request

if TYPE_CHECKING:
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
    """

    __slots__ = ("_gives", "_handoff", "_replica", "expected")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._handoff: Handoff | None = None
        self._gives = False
        self.expected = 0

    def connect(self, handoff: Handoff, gives: bool) -> None:
        """Take part: as one that gives requests away, or as one that takes them in."""
        self._handoff = handoff
        self._gives = gives
        if gives:
            self._replica.delivery.hand_over = self.hand_over
            self._replica.delivery.drop_handed = self.drop
        else:
            self._replica.draft.pull = self.pull

    def _way(self) -> Handoff:
        if self._handoff is None:
            raise InvariantError(f"replica {self._replica.index} hands nothing over")
        return self._handoff

    # --- what can be served -----------------------------------------------------------------

    def can_ever_hold(self, request: Request) -> bool:
        """Whether an empty replica has the KV blocks that a request needs, here and further on."""
        config = self._replica.config
        tokens = request.prompt + request.output - 1
        if self._gives:
            if not self._way().can_ever_hold(request):
                return False
            tokens = request.prompt
        return -(-tokens // config.block_tokens) <= config.kv_blocks

    def longest_tokens(self) -> int:
        """Return the longest prompt plus output that can be served from here on [tokens]."""
        longest = self._replica.config.max_model_len
        return min(longest, self._way().longest_tokens) if self._gives else longest

    # --- out and in -------------------------------------------------------------------------

    def hand_over(self, request: Request) -> None:
        """Let a request go whose prompt is computed; its KV stays under a lease."""
        replica = self._replica
        self.expected += 1
        replica.ledger.register(request, request.computed)
        self._way().offer(request, replica)

    def take_back(self, lease: Lease) -> None:
        """Free the KV blocks of a request that has left; somebody in line may fit now."""
        replica = self._replica
        self.expected -= 1
        blocks = -(-lease.tokens // replica.config.block_tokens)
        replica.ledger.release(lease, blocks, lease.tokens)
        replica.ledger.forget(lease)
        if replica.line.count:
            replica.look_again()

    def pull(self, request: Request, hit_tokens: int, blocks: int) -> None:
        """Have the KV of a request brought here, for which room has been made."""
        self.expected += 1
        self._way().pull(request, self._replica, hit_tokens, blocks)

    def kv_arrived(self, request: Request, called_now: bool) -> None:
        """Let a request decode here from the next call on: its KV has come."""
        replica = self._replica
        self.expected -= 1
        replica.delivery.arrived.append(request)
        if replica.draft.has_seat():
            replica.look_again(called_now)

    def drop(self, request: Request, outcome: str) -> None:
        """Let a request go whose client leaves while its KV is left somewhere or on its way."""
        replica = self._replica
        if request.state == LOADING:
            if request.lease is not None:
                self.expected -= 1
            replica.note_peak()
            replica.ledger.release(request, -(-request.computed // replica.config.block_tokens), 0)
            replica.ledger.forget(request)
            replica.decisions.extend((DROP, request.view.index, replica.clock.now))
            if replica.line.count:
                replica.look_again()
        self._way().drop(request, outcome)
