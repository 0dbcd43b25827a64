"""Results that leave a replica together: when everybody who runs there has ended."""

from __future__ import annotations

from collections.abc import Callable

from llmsim.serving.draft import Draft
from llmsim.serving.request import HELD, Request


class Together:
    """Keeps results until nobody runs; then all of them reach their clients at once.

    Parameters
    ----------
    draft : Draft
    on_end : callable
        Called with (request, outcome name, time) when a client has its result or has left.

    Notes
    -----
    Tokens are computed as ever, but a client sees none before the whole answer: its first and last
    token come together, the gaps between its tokens are zero, and a client that leaves before has
    got nothing.
    """

    __slots__ = ("_draft", "_held", "_on_end")

    def __init__(self, draft: Draft, on_end: Callable[[Request, str, int], None]) -> None:
        self._draft = draft
        self._on_end = on_end
        self._held: dict[Request, None] = {}
        draft.meter.together = 0

    def ended(self, request: Request, outcome: str, time_ns: int) -> None:
        """Keep a finished request, let others go, and release all when nobody is left."""
        if outcome == "finished":
            request.ended = False
            request.state = HELD
            self._held[request] = None
        else:
            self._leave(request, outcome, time_ns)
        self.look()

    def look(self) -> None:
        """Release all if nobody is left."""
        if not self._draft.running_set and self._held:
            self._release()

    def holds(self, request: Request) -> bool:
        """Whether the result of a request is kept here."""
        return request in self._held

    def drop(self, request: Request, outcome: str, now: int) -> None:
        """Let a request go whose result was ready but not released when its client left."""
        del self._held[request]
        self._leave(request, outcome, now)

    def _leave(self, request: Request, outcome: str, now: int) -> None:
        if request.generated:
            # computed, but never delivered
            self._draft.meter.log(now, now, 0, 0, 0, 0, 0, 0, -request.generated, 0, 0, 0)
            request.generated = 0
        request.first_token_ns = request.last_token_ns = -1
        request.itl_max_ns = request.itl_over = 0
        request.ended = True
        self._on_end(request, outcome, now)

    def _release(self) -> None:
        done = list(self._held)
        self._held.clear()
        end_ns = max(request.last_token_ns for request in done)
        for request in done:
            request.first_token_ns = request.last_token_ns = end_ns
            request.itl_max_ns = request.itl_over = 0
            request.ended = True
            self._draft.meter.together += request.generated - 1
            self._on_end(request, "finished", end_ns)
