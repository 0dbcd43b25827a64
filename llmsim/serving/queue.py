"""The waiting line of a replica: first come first served, by urgency, or as a policy keeps it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from llmsim.core.errors import InvariantError
from llmsim.policies.ordering import WaitingOrder
from llmsim.policies.views import RequestView
from llmsim.serving.request import WAITING, Request

if TYPE_CHECKING:
    from llmsim.serving.step import Engine

Urgency = Callable[[RequestView], tuple[int, ...] | None]


class FcfsQueue:
    """First come, first served; a preempted request returns to the front."""

    __slots__ = ("_line", "count")

    def __init__(self) -> None:
        self._line: deque[Request] = deque()
        self.count = 0

    def push(self, request: Request) -> None:
        """Add an arrival at the end."""
        self._line.append(request)
        self.count += 1

    def push_back(self, request: Request) -> None:
        """Return a preempted request to the front."""
        self._line.appendleft(request)
        self.count += 1

    def head(self) -> Request | None:
        """Return the next request without removing it."""
        line = self._line
        while line:
            if not line[0].ended:
                return line[0]
            line.popleft()
        return None

    def pop(self) -> Request:
        """Remove the request that `head` returned."""
        self.count -= 1
        return self._line.popleft()

    def withdraw(self, request: Request) -> None:
        """Take out a request that has ended; its place is skipped when it comes up."""
        self.count -= 1

    def remove(self, request: Request) -> None:
        """Take out a request that goes on elsewhere."""
        self._line.remove(request)
        self.count -= 1

    def requests(self) -> list[Request]:
        """Return everybody in line, in order."""
        return [request for request in self._line if not request.ended]


class UrgencyQueue:
    """Least urgency value first; ties cannot occur because it ends in the request's index."""

    __slots__ = ("_heap", "_urgency", "count")

    def __init__(self, urgency: Urgency) -> None:
        self._urgency = urgency
        self._heap: list[tuple[tuple[int, ...], Request]] = []
        self.count = 0

    def push(self, request: Request) -> None:
        """Add a request at its place."""
        heappush(self._heap, (self._urgency(request.view) or (), request))
        self.count += 1

    def push_back(self, request: Request) -> None:
        """Return a preempted request to its place."""
        self.push(request)

    def head(self) -> Request | None:
        """Return the next request without removing it."""
        heap = self._heap
        while heap:
            request = heap[0][1]
            if not request.ended and request.state == WAITING:
                return request
            heappop(heap)
        return None

    def pop(self) -> Request:
        """Remove the request that `head` returned."""
        self.count -= 1
        return heappop(self._heap)[1]

    def withdraw(self, request: Request) -> None:
        """Take out a request that has ended; its place is skipped when it comes up."""
        self.count -= 1

    def remove(self, request: Request) -> None:
        """Take out a request that goes on elsewhere."""
        self._heap = [entry for entry in self._heap if entry[1] is not request]
        heapify(self._heap)
        self.count -= 1

    def requests(self) -> list[Request]:
        """Return everybody in line, in order."""
        waiting = [entry for entry in self._heap if entry[1].state == WAITING]
        return [request for _, request in sorted(waiting) if not request.ended]


class OrderedQueue:
    """A line that the batching policy keeps; here are the requests behind its views.

    Attributes
    ----------
    order : WaitingOrder or None
        Who keeps it.
    engine : Engine or None
        What its order may ask about the replica.
    """

    __slots__ = ("_next", "_waiting", "count", "engine", "order")

    def __init__(self) -> None:
        self.order: WaitingOrder | None = None
        self.engine: Engine | None = None
        self._next: Request | None = None
        self._waiting: dict[int, Request] = {}
        self.count = 0

    def kept_by(self, order: WaitingOrder, engine: Engine) -> None:
        """Ask this order, which was shown an engine, from now on."""
        self.order, self.engine = order, engine

    def adopt(self, requests: Sequence[Request]) -> None:
        """Have requests in line whom its order knows already."""
        self._waiting = {request.view.index: request for request in requests}
        self._next = None
        self.count = len(requests)

    def _keeper(self) -> WaitingOrder:
        if self.order is None:
            raise InvariantError("a line without an order")
        return self.order

    def push(self, request: Request) -> None:
        """Add an arrival."""
        self._add(request, False)

    def push_back(self, request: Request) -> None:
        """Return a preempted request."""
        self._add(request, True)

    def _add(self, request: Request, returned: bool) -> None:
        self._waiting[request.view.index] = request
        self._keeper().add(request.view, returned)
        self.count += 1

    def head(self) -> Request | None:
        """Return the next request without removing it."""
        view = self._keeper().head()
        self._next = None if view is None else self._waiting[view.index]
        return self._next

    def pop(self) -> Request:
        """Remove the request that `head` returned, whoever would be next by now."""
        request = self._next
        if request is None:
            raise InvariantError("nobody waits")
        self._next = None
        return self._remove(request.view, True)

    def withdraw(self, request: Request) -> None:
        """Take out a request that has ended."""
        self._remove(request.view, False)

    def remove(self, request: Request) -> None:
        """Take out a request that goes on elsewhere."""
        self._remove(request.view, False)

    def _remove(self, view: RequestView, admitted: bool) -> Request:
        self.count -= 1
        self._keeper().remove(view, admitted)
        return self._waiting.pop(view.index)

    def behind(self, view: RequestView) -> Request:
        """Return the waiting request behind a view."""
        return self._waiting[view.index]

    def requests(self) -> list[Request]:
        """Return everybody in line, by arrival."""
        return [self._waiting[index] for index in sorted(self._waiting)]
