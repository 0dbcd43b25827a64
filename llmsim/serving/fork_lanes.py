"""A copy of lanes on one device: what one of them does slows the other down there, too."""

from __future__ import annotations

from collections.abc import Sequence

from llmsim.core.errors import InvariantError
from llmsim.kvcache import CountLedger
from llmsim.serving.clock import ARRIVAL_PRIORITY, Clock
from llmsim.serving.fork import Fork
from llmsim.serving.lanes import Device, Lane, SharesControl
from llmsim.serving.likeness import copied, nobody_hears
from llmsim.serving.meter import NEVER
from llmsim.serving.replica import Replica
from llmsim.serving.request import LOADING, Request
from llmsim.serving.wake import Wake


class ShadowLane(Lane):
    """A lane that can be loaded, again and again, with the state of another.

    Parameters
    ----------
    clock : Clock
        Of its own world.
    like : Lane
        Whose engine, prices and policy it has.
    ledger : CountLedger
        Of the whole device.
    """

    def __init__(self, clock: Clock, like: Lane, ledger: CountLedger) -> None:
        super().__init__(
            clock,
            like.index,
            like.pool,
            like.cost,
            like.config,
            like.draft.policy,
            NEVER,
            nobody_hears,
            None,
            ledger,
        )
        self.prepare(like._level, like.share_frac)
        self._levels = like._levels  # prices that one has bound, the other need not

    def mirror(self, other: Lane) -> None:
        """Have another lane's share and pace."""
        self._next_share = other._next_share
        self.share_frac = other.share_frac
        self.cost = other.cost
        self._roofline = other._roofline
        self._use_of = other._use_of
        self.use = other.use
        self.pace = other.pace
        self.seen_free = other.seen_free
        self.owed = other.owed
        self._single = other._single
        times = other.first_tokens_ns
        self.first_tokens_ns = None if times is None else list(times)

    def wake(self, alarm: Wake) -> None:
        """Call the scheduler once: who asks may know enough then."""
        if self.clock.now == self._call_ns and not self._asleep:
            self._call(self._call_ns)
            if not self._asleep:
                self._call_at(self._call_ns)

    def _take_share(self, share_frac: float) -> None:
        super()._take_share(share_frac)
        self._energy = None  # nobody will ask what it took

    def hand_on(self, request: Request) -> None:
        """Let the other lane decode a request whose prompt is computed."""
        target = self.target
        if target is None:
            return
        if self.first_tokens_ns is not None:
            self.first_tokens_ns.append(request.first_token_ns - request.arrival_ns)
        request.replica = target
        request.state = LOADING
        target.port.expected += 1
        target.port.kv_arrived(request, target.index < self.index)

    def drop_handed(self, request: Request, outcome: str) -> None:
        """Let a request go that was handed on in the very call that learns of its client."""
        request.ended = True
        self.port.give_up(request)


class LanesFork(Fork):
    """A copy of lanes that share GPUs.

    Parameters
    ----------
    likes : sequence of Lane
        The one that requests come to first.
    beyond_tokens, keeps
        See `Fork`.
    """

    def __init__(self, likes: Sequence[Lane], beyond_tokens: int, keeps: bool) -> None:
        clock = Clock()
        config = likes[0].config
        ledger = CountLedger(config.kv_blocks, config.block_tokens)
        lanes = [ShadowLane(clock, like, ledger) for like in likes]
        super().__init__(clock, lanes, likes, beyond_tokens, keeps)
        self._lanes = lanes
        self._device = device = Device()
        for lane in sorted(lanes, key=_index_of):
            device.join(lane)
        copies = dict(zip(likes, lanes, strict=True))
        for like, lane in copies.items():
            if like.target is not None:
                target = lane.target = copies[like.target]
                target.source = lane
                lane.delivery.hand_over = lane.hand_on
                lane.delivery.drop_handed = lane.drop_handed
                control = likes[0].device.control
                if control is not None:
                    policy = control.policy
                    device.control = SharesControl(clock, control.plan, policy, lane, target)

    def _mirror(self, others: Sequence[Replica], called_now: Sequence[bool]) -> None:
        for own, other, called in zip(self._lanes, others, called_now, strict=True):
            if not isinstance(other, Lane):
                raise InvariantError(f"replica {other.index} is no lane")
            own.mirror(other)
            control, theirs = self._device.control, other.device.control
            if control is not None and theirs is not None:
                control.policy = copied(theirs.policy)
                if theirs.wake.due:
                    self.clock.at(control.wake, ARRIVAL_PRIORITY, theirs.wake.time_ns)
            own.cut(called)


def _index_of(lane: Lane) -> int:
    return lane.index
