"""Waiting lines of one replica: by arrival, by longest cached prefix, by client in turn.

Each keeps views of who waits and says who is next. A line may be asked to `arrange` itself before
somebody is admitted, which is when the cache and who runs are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from llmsim.policies.ordering import EngineView, Running, WaitingOrder
from llmsim.policies.views import RequestView, Segments

ALWAYS: Final = 2**62
"""Steps after which nothing changes by itself."""


class Line(WaitingOrder, Protocol):
    """A line that can be put in order."""

    def arrange(self, running: Sequence[Running]) -> None:
        """Put the line in order for a step that may admit somebody."""
        ...

    def steady_steps(self) -> int:
        """Return after how many steps with decodes another may be next [steps]."""
        ...


class ArrivalLine:
    """By arrival; who has lost its KV comes back at the end."""

    def __init__(self) -> None:
        self._line: list[RequestView] = []
        self._gone = 0  # of the front

    def __len__(self) -> int:
        return len(self._line) - self._gone

    def add(self, request: RequestView, returned: bool) -> None:
        """Take a request in at the end."""
        self._line.append(request)

    def head(self) -> RequestView | None:
        """Return who is next."""
        return self._line[self._gone] if self._gone < len(self._line) else None

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go."""
        line = self._line
        if line[self._gone] is request:
            self._gone += 1
            if 2 * self._gone > len(line):
                del line[: self._gone]
                self._gone = 0
            return
        del line[line.index(request, self._gone)]

    def arrange(self, running: Sequence[Running]) -> None:
        """Stay as it is."""

    def steady_steps(self) -> int:
        """Return after how many steps another may be next: never by itself."""
        return ALWAYS


class PrefixLine(ArrivalLine):
    """By longest cached prefix.

    Of requests whose prompts have much in common that is not cached yet, one goes first and the
    others last, so that they find it.

    Parameters
    ----------
    engine : EngineView
    longest : int [requests]
        A line longer than this stays as it is: looking everybody up would take too long.
    apart_tokens : int [tokens]
        A request with no more than this cached goes last if it shares as much with one before it.
    """

    def __init__(self, engine: EngineView, longest: int, apart_tokens: int) -> None:
        super().__init__()
        self._engine = engine
        self._longest = longest
        self._apart = apart_tokens

    def arrange(self, running: Sequence[Running]) -> None:
        """Look everybody up in the cache and sort; among equals the order stays."""
        if not self._engine.caches or not 1 < len(self) <= self._longest:
            return
        seen = Trie()
        places = []
        for request in self._line[self._gone :]:
            cached = self._engine.cached_tokens(request)
            last = False
            if cached <= self._apart and request.segments is not None:
                last = seen.shared_tokens(request.segments) >= self._apart
                if not last:
                    seen.enter(request.segments)
            places.append((last, -cached))
        order = sorted(range(len(places)), key=places.__getitem__)
        self._line = [self._line[self._gone + place] for place in order]
        self._gone = 0

    def steady_steps(self) -> int:
        """Return after how many steps another may be next: what is cached may be overwritten."""
        return 1 if self._engine.caches else ALWAYS


class Trie:
    """Prompts by their segments, for how much of a prompt others begin with as well."""

    def __init__(self) -> None:
        self._root: dict[tuple[int, int], _Branch] = {}

    def shared_tokens(self, segments: Segments) -> int:
        """Return how many leading tokens a prompt shares with one that was entered [tokens]."""
        at, branches = 0, self._root
        for key, length in segments:
            branch = branches.get((at, key))
            if branch is None:
                return at
            if branch.longest < length:
                return at + branch.longest
            at += length
            branches = branch.after
        return at

    def enter(self, segments: Segments) -> None:
        """Enter a prompt."""
        at, branches = 0, self._root
        for key, length in segments:
            branch = branches.setdefault((at, key), _Branch())
            branch.longest = max(branch.longest, length)
            at += length
            branches = branch.after


class _Branch:
    __slots__ = ("after", "longest")

    def __init__(self) -> None:
        self.longest = 0
        self.after: dict[tuple[int, int], _Branch] = {}


class CounterLine:
    """The client that was served least is next; of a client, who came first.

    Parameters
    ----------
    engine : EngineView
    input_weight, output_weight : float
        Service of a prompt token, counted at admission, and of an output token.
    weights : sequence of float
        What clients are due, by their index; 1 for the others.

    Notes
    -----
    A client that comes back to an empty line of its own is lifted to the least counter of those
    who wait; if nobody does, to that of the client who waited last. It cannot save up idle time.
    Requests without a client are one client. Tokens are counted as whole numbers, so that counters
    do not depend on how often they are brought up to date.
    """

    def __init__(
        self,
        engine: EngineView,
        input_weight: float,
        output_weight: float,
        weights: Sequence[float] = (),
    ) -> None:
        self._engine = engine
        self._input, self._output = input_weight, output_weight
        self._weights = weights
        self._lines: dict[int, deque[RequestView]] = {}  # of clients that wait
        self._accounts: dict[int, _Account] = {}
        self._back: dict[int, None] = {}  # clients to be lifted
        self._last = 0.0  # counter of the client who waited last
        self._charged: dict[int, int] = {}  # output tokens of who runs that are counted
        self._decoding: dict[int, int] = {}  # requests by client

    def served(self, client: int) -> float:
        """Return a client's counter: weighted tokens over what it is due."""
        account = self._accounts.get(client)
        if account is None:
            return 0.0
        tokens = self._input * account.prompt_tokens + self._output * account.output_tokens
        return account.lifted_to + tokens / self._due(client)

    def _due(self, client: int) -> float:
        return self._weights[client] if 0 <= client < len(self._weights) else 1.0

    def _account(self, client: int) -> _Account:
        return self._accounts.setdefault(client, _Account())

    def add(self, request: RequestView, returned: bool) -> None:
        """Take a request in; who has lost its KV goes to the front of its client's line."""
        client = request.client
        line = self._lines.get(client)
        if line is None:
            self._lines[client] = line = deque()
            if not returned:
                self._back[client] = None
        if returned:
            line.appendleft(request)
            if request.index in self._charged:  # while it ran, tokens were counted now and then
                self._count(request, self._engine.generated(request))
        else:
            line.append(request)

    def head(self) -> RequestView | None:
        """Return the first of the client served least; of equals, of the smallest index."""
        if not self._lines:
            return None
        return self._lines[min(self._lines, key=lambda each: (self.served(each), each))][0]

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go; its prompt is counted when it is admitted for the first time."""
        client = request.client
        line = self._lines[client]
        if line[0] is request:
            line.popleft()
        else:
            line.remove(request)
        if admitted and request.index not in self._charged:
            self._charged[request.index] = self._engine.generated(request)
            self._account(client).prompt_tokens += request.prompt_tokens
        if not line:
            del self._lines[client]
            self._back.pop(client, None)
            self._last = self.served(client)

    def ended(self, request: RequestView, generated: int) -> None:
        """Count what a request has had that has ended."""
        counted = self._charged.pop(request.index, None)
        if counted is not None and generated > counted:
            self._account(request.client).output_tokens += generated - counted

    def arrange(self, running: Sequence[Running]) -> None:
        """Count the output tokens of who runs, then lift the clients that have come back."""
        decoding: dict[int, int] = {}
        for one in running:
            client = one.view.client
            if not one.prefilling:
                decoding[client] = decoding.get(client, 0) + 1
            self._count(one.view, one.generated)
        self._decoding = decoding
        waited = [self.served(each) for each in self._lines if each not in self._back]
        least = min(waited, default=self._last)
        for client in self._back:
            if self.served(client) < least:
                self._accounts[client] = _Account(least)
        self._back.clear()

    def _count(self, request: RequestView, generated: int) -> None:
        """Count the output tokens of a request that have not been counted yet."""
        counted = self._charged.get(request.index, 0)
        if generated > counted:
            self._charged[request.index] = generated
            self._account(request.client).output_tokens += generated - counted

    def steady_steps(self) -> int:
        """Return after how many steps with decodes another client may be served least [steps]."""
        first = self.head()
        if first is None or len(self._lines) == 1:
            return ALWAYS
        mine = self.served(first.client)
        pace = self._pace(first.client)
        steps = ALWAYS
        for client in self._lines:
            faster = pace - self._pace(client)
            if faster > 0:
                steps = min(steps, max(1, int((self.served(client) - mine) / faster)))
        return steps

    def _pace(self, client: int) -> float:
        return self._output * self._decoding.get(client, 0) / self._due(client)


class _Account:
    """What a client has been served since it was lifted."""

    __slots__ = ("lifted_to", "output_tokens", "prompt_tokens")

    def __init__(self, lifted_to: float = 0.0) -> None:
        self.lifted_to = lifted_to
        self.prompt_tokens = 0
        self.output_tokens = 0
