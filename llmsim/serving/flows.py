"""Links as shared resources: transfers under way divide them max-min fairly.

A transfer is work: a lead (what its messages cost before a byte moves), then bytes over a path of
resources. Rates change only when a transfer starts to move, ends or is cancelled, and only for
those that share a resource with it, directly or through others. A resource that could carry all of
its transfers as fast as each can go holds nobody back: through it, nobody is told of anybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from llmsim.core.units import NS_PER_S
from llmsim.serving.clock import CALL_PRIORITY, Clock
from llmsim.serving.wake import Wake

FLOW_PRIORITY = CALL_PRIORITY - 1
"""Transfers end before any replica's call at the same instant, after arrivals."""

LOOSE_FRAC: Final = 1 - 1e-9
"""Of a resource's capacity that transfers may ask for before they can hold one another back.

What is left is far above the rounding of sums and quotients, so that a fair rate is the same bit
for bit, whether a loose resource is looked at or not.
"""


class Flow:
    """One transfer.

    Attributes
    ----------
    path : tuple of int
        Resources that it goes through, each once.
    rank : int
        Who goes first among transfers that end at the same instant; the least.
    left_bytes : float [bytes]
        Still to move, as of the latest change of its rate.
    rate_bytes_per_s : float [bytes/s]
        Now; 0 before its bytes move and after they have.
    due_ns : int [ns]
        When its last byte arrives at this rate; before its bytes move, when they begin to.
    number : int
        Order of the latest change among all of a run.
    done : bool
        Ended or cancelled.
    track : list of (int, float), or None
        When its rate changed [ns], and the bytes left then; None where nobody asks.
    """

    __slots__ = (
        "cap_bytes_per_s",
        "done",
        "due_ns",
        "left_bytes",
        "number",
        "on_end",
        "path",
        "rank",
        "rate_bytes_per_s",
        "since_ns",
        "track",
    )

    def __init__(
        self,
        path: tuple[int, ...],
        size_bytes: float,
        rank: int,
        cap_bytes_per_s: float,
        on_end: Callable[[Flow], None],
    ) -> None:
        self.path = path
        self.left_bytes = float(size_bytes)
        self.rank = rank
        self.cap_bytes_per_s = cap_bytes_per_s
        self.on_end = on_end
        self.rate_bytes_per_s = 0.0
        self.since_ns = 0
        self.due_ns = 0
        self.number = 0
        self.done = False
        self.track: list[tuple[int, float]] | None = None


class Flows:
    """All transfers of a run, and the resources they share.

    Parameters
    ----------
    clock : Clock
    capacities_bytes_per_s : sequence of float [bytes/s]
        Of each resource: a direction of a link, a NIC, a PCIe slot, a disk.

    Raises
    ------
    ValueError
        If a capacity is not above zero.
    """

    def __init__(self, clock: Clock, capacities_bytes_per_s: Sequence[float]) -> None:
        if not all(capacity > 0 for capacity in capacities_bytes_per_s):
            raise ValueError("every resource needs a capacity above zero")
        self._clock = clock
        self._capacities = [float(capacity) for capacity in capacities_bytes_per_s]
        self._users: list[dict[Flow, None]] = [{} for _ in self._capacities]
        self._asked = [0.0] * len(self._capacities)  # by those who are capped below the capacity
        self._eager = [0] * len(self._capacities)  # those who are not
        self._moved = [0.0] * len(self._capacities)
        self._leads: list[tuple[int, int, int, Flow]] = []
        self._ends: list[tuple[int, int, int, Flow]] = []
        self._number = 0
        self._wake = Wake(self._fire)
        self._pending_ns = -1
        self._firing = False  # what changes now is woken up for when all has been said

    def start(
        self,
        path: tuple[int, ...],
        size_bytes: float,
        on_end: Callable[[Flow], None],
        *,
        rank: int = 0,
        lead_ns: int = 0,
        cap_bytes_per_s: float = math.inf,
        tracked: bool = False,
    ) -> Flow:
        """Start a transfer now.

        Parameters
        ----------
        path : tuple of int
            Resources; none for a transfer that shares nothing.
        size_bytes : float [bytes]
        on_end : callable
            Called with the flow when its last byte has arrived; not when it is cancelled.
        rank : int
            Order among transfers that end together.
        lead_ns : int [ns]
            Messages times the cost of one; no byte moves before.
        cap_bytes_per_s : float [bytes/s]
            Most that this transfer can use by itself.
        tracked : bool
            Keep a `Flow.track`.
        """
        if len(path) > 2 or (len(path) == 2 and path[0] == path[1]):
            path = tuple(dict.fromkeys(path))
        flow = Flow(path, size_bytes, rank, cap_bytes_per_s, on_end)
        if tracked:
            flow.track = []
        now = self._clock.now
        if lead_ns > 0:
            flow.due_ns = now + lead_ns
            self._push(self._leads, flow.due_ns, flow)
        else:
            self._join(flow, now)
        if not self._firing:
            self._arm()
        return flow

    def cancel(self, flow: Flow) -> None:
        """Stop a transfer; what it used is shared out again, `on_end` is not called."""
        if flow.done:
            return
        flow.done = True
        if flow.rate_bytes_per_s:
            self._leave([flow], self._clock.now)
            if not self._firing:
                self._arm()

    def restart(self, number: int) -> None:
        """Forget all transfers; count those to come from a number on."""
        for users in self._users:
            users.clear()
        for resource in range(len(self._capacities)):
            self._asked[resource], self._eager[resource] = 0.0, 0
        self._leads.clear()
        self._ends.clear()
        self._number = number
        self._pending_ns = -1

    def adopt(self, flow: Flow, path: tuple[int, ...], on_end: Callable[[Flow], None]) -> Flow:
        """Let a transfer that is under way elsewhere go on here, too, as it does there.

        Parameters
        ----------
        flow : Flow
            One that has not ended; it is left alone.
        path : tuple of int
            Its resources here.
        on_end : callable
            As for `start`.
        """
        copy = Flow(path, flow.left_bytes, flow.rank, flow.cap_bytes_per_s, on_end)
        copy.rate_bytes_per_s = flow.rate_bytes_per_s
        copy.since_ns, copy.due_ns, copy.number = flow.since_ns, flow.due_ns, flow.number
        copy.track = None if flow.track is None else list(flow.track)
        heap = self._leads
        if flow.rate_bytes_per_s:
            heap = self._ends
            for resource in path:
                self._enter(copy, resource)
        heappush(heap, (copy.due_ns, copy.rank, copy.number, copy))
        return copy

    def go_on(self, alone: bool) -> None:
        """Let what was adopted go on; if `alone`, as if nobody else had ever shared its way."""
        if alone:
            moving = [flow for _, _, _, flow in self._ends]
            if moving:
                self._share(moving, self._clock.now)
        self._arm()

    @property
    def number(self) -> int:
        """How often rates have changed so far, all transfers together."""
        return self._number

    def capacity(self, resource: int) -> float:
        """Return how fast a resource is when it is used fully [bytes/s]."""
        return self._capacities[resource]

    def users(self, resource: int) -> int:
        """Return how many transfers use a resource now."""
        return len(self._users[resource])

    @property
    def resources(self) -> int:
        """How many resources there are."""
        return len(self._capacities)

    def rate(self, resource: int) -> float:
        """Return how fast a resource is used now [bytes/s]."""
        return sum(flow.rate_bytes_per_s for flow in self._users[resource])

    def share(self, resource: int) -> float:
        """Return what one more transfer would get of a resource if all wanted more [bytes/s]."""
        return self._capacities[resource] / (len(self._users[resource]) + 1)

    def moved_bytes(self, resource: int) -> float:
        """Return what has gone through a resource up to now [bytes]."""
        now = self._clock.now
        return self._moved[resource] + sum(
            flow.rate_bytes_per_s * (now - flow.since_ns) / NS_PER_S
            for flow in self._users[resource]
        )

    # --- the clock --------------------------------------------------------------------------

    def _push(self, heap: list[tuple[int, int, int, Flow]], time_ns: int, flow: Flow) -> None:
        flow.number = self._number = self._number + 1
        heappush(heap, (time_ns, flow.rank, self._number, flow))

    def _arm(self) -> None:
        """Have the next change woken up for, unless it is already."""
        ends, leads = self._ends, self._leads
        while ends and (ends[0][3].done or ends[0][3].due_ns != ends[0][0]):
            heappop(ends)
        while leads and leads[0][3].done:
            heappop(leads)
        due = -1
        if ends:
            due = ends[0][0]
        if leads and (due < 0 or leads[0][0] < due):
            due = leads[0][0]
        if due >= 0 and due != self._pending_ns:
            self._pending_ns = due
            self._clock.at(self._wake, FLOW_PRIORITY, due)

    def _fire(self, _: Wake) -> None:
        now = self._clock.now
        if now != self._pending_ns:
            return  # superseded: something came earlier
        self._pending_ns = -1
        ended: list[Flow] = []
        ends, leads = self._ends, self._leads
        while ends and ends[0][0] <= now:
            due, _rank, _number, flow = heappop(ends)
            if not flow.done and flow.due_ns == due:
                flow.done = True
                ended.append(flow)
        if ended:
            self._leave(ended, now)
        while leads and leads[0][0] <= now:
            flow = heappop(leads)[3]
            if not flow.done:
                self._join(flow, now)
        self._firing = True
        for flow in ended:
            flow.on_end(flow)
        self._firing = False
        self._arm()

    # --- sharing ----------------------------------------------------------------------------

    def _join(self, flow: Flow, now: int) -> None:
        rate = flow.cap_bytes_per_s
        alone = True
        for resource in flow.path:
            if self._users[resource]:
                alone = False
            self._enter(flow, resource)
            rate = min(rate, self._capacities[resource])
        flow.since_ns = now
        tight = [] if alone else [each for each in flow.path if self._is_tight(each)]
        if tight:
            self._share(self._touching(tight), now)
        else:
            self._set_rate(flow, rate, now)

    def _leave(self, flows: Sequence[Flow], now: int) -> None:
        freed: dict[int, None] = {}
        for flow in flows:
            for resource in flow.path:
                if self._is_tight(resource):
                    freed[resource] = None
        for flow in flows:
            self._settle(flow, now)
            flow.rate_bytes_per_s = 0.0
            for resource in flow.path:
                self._exit(flow, resource)
        if freed:
            left = self._touching(freed)
            if left:
                self._share(left, now)

    def _enter(self, flow: Flow, resource: int) -> None:
        self._users[resource][flow] = None
        if flow.cap_bytes_per_s < self._capacities[resource]:
            self._asked[resource] += flow.cap_bytes_per_s
        else:
            self._eager[resource] += 1

    def _exit(self, flow: Flow, resource: int) -> None:
        users = self._users[resource]
        del users[flow]
        if flow.cap_bytes_per_s >= self._capacities[resource]:
            self._eager[resource] -= 1
        elif users:
            self._asked[resource] -= flow.cap_bytes_per_s
        else:
            self._asked[resource] = 0.0  # no rounding is carried on

    def _is_tight(self, resource: int) -> bool:
        """Whether a resource may not be enough for all who use it."""
        asked = self._asked[resource]
        return self._eager[resource] > 0 or asked > self._capacities[resource] * LOOSE_FRAC

    def _settle(self, flow: Flow, now: int) -> None:
        """Bring what a flow has moved up to now."""
        moved = flow.rate_bytes_per_s * (now - flow.since_ns) / NS_PER_S
        if moved > flow.left_bytes or (moved and flow.due_ns == now):
            moved = flow.left_bytes  # a time in whole nanoseconds leaves a rounding
        flow.left_bytes -= moved
        flow.since_ns = now
        for resource in flow.path:
            self._moved[resource] += moved

    def _touching(self, resources: Iterable[int]) -> list[Flow]:
        """Return who uses one of some resources, or shares a tight one with such a flow."""
        found: dict[Flow, None] = {}
        seen = set(resources)
        todo = list(seen)
        while todo:
            for flow in self._users[todo.pop()]:
                if flow not in found:
                    found[flow] = None
                    for resource in flow.path:
                        if resource not in seen:
                            seen.add(resource)
                            if self._is_tight(resource):
                                todo.append(resource)
        return list(found)

    def _share(self, flows: Sequence[Flow], now: int) -> None:
        """Give some flows, and nobody else on their resources, their fair rates."""
        if len(flows) == 1:
            flow = flows[0]
            rate = flow.cap_bytes_per_s
            for resource in flow.path:
                rate = min(rate, self._capacities[resource])
            if rate != flow.rate_bytes_per_s:
                self._settle(flow, now)
                self._set_rate(flow, rate, now)
            return
        rates = fair_rates(
            [flow.path for flow in flows],
            [flow.cap_bytes_per_s for flow in flows],
            self._capacities,
        )
        for flow, rate in zip(flows, rates, strict=True):
            if rate != flow.rate_bytes_per_s:
                self._settle(flow, now)
                self._set_rate(flow, rate, now)

    def _set_rate(self, flow: Flow, rate: float, now: int) -> None:
        flow.rate_bytes_per_s = rate
        if flow.track is not None:
            flow.track.append((now, flow.left_bytes))
        wait_ns = 0.0 if rate == math.inf else flow.left_bytes / rate * NS_PER_S
        flow.due_ns = now + math.ceil(wait_ns)
        self._push(self._ends, flow.due_ns, flow)


def fair_rates(
    paths: Sequence[tuple[int, ...]], caps: Sequence[float], capacities: Sequence[float]
) -> list[float]:
    """Return max-min fair rates by progressive filling.

    Parameters
    ----------
    paths : sequence of tuple of int (n,)
        Resources of each flow.
    caps : sequence of float (n,) [bytes/s]
        Most that each flow can use.
    capacities : sequence of float (m,) [bytes/s]
        Of every resource.

    Returns
    -------
    list of float (n,) [bytes/s]
        They do not depend on the order of the flows.

    References
    ----------
    Bertsekas and Gallager, Data Networks (2nd ed.), section 6.5.2.
    """
    count = len(paths)
    rates = [-1.0] * count
    places, users = _users(paths)
    left = [capacities[resource] for resource in places]  # by place of a resource
    open_users = [len(found) for found in users]
    todo = sorted(range(count), key=caps.__getitem__)
    first = 0  # of `todo` that may still be open
    share = -1.0
    while True:
        while first < count and rates[todo[first]] >= 0:
            first += 1
        if first == count:
            return rates
        cap = caps[todo[first]]
        # shares grow while those go who want less: an old one will do for who wants clearly less
        if cap > share * LOOSE_FRAC:
            share = math.inf
            for place in range(len(left)):
                if open_users[place]:
                    share = min(share, left[place] / open_users[place])
        full: list[int] = []
        if cap <= share:
            level = cap
            for at in range(first, count):
                flow = todo[at]
                if caps[flow] > cap:
                    break
                if rates[flow] < 0:
                    full.append(flow)
                    rates[flow] = level
        else:
            level = share
            for place in range(len(left)):
                if open_users[place] and left[place] / open_users[place] == level:
                    for flow in users[place]:
                        if rates[flow] < 0:
                            full.append(flow)
                            rates[flow] = level
            share = -1.0
        taken: dict[int, int] = {}
        for flow in full:
            for resource in paths[flow]:
                place = places[resource]
                taken[place] = taken.get(place, 0) + 1
        for place, much in taken.items():
            open_users[place] -= much
            left[place] = max(0.0, left[place] - much * level)


def _users(paths: Sequence[tuple[int, ...]]) -> tuple[dict[int, int], list[list[int]]]:
    """Return the place of each resource that flows use, and who uses it, by place."""
    places: dict[int, int] = {}
    users: list[list[int]] = []
    for flow in range(len(paths)):
        for resource in paths[flow]:
            place = places.get(resource, -1)
            if place < 0:
                places[resource] = len(users)
                users.append([flow])
            else:
                users[place].append(flow)
    return places, users
