"""What batching policies of other packages do to a step, or keep as a line, is checked as well."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from operator import index
from typing import Any

from llmsim.core.errors import PolicyError
from llmsim.policies.views import RequestView


def _no(who: str, what: str, given: object, needed: str) -> PolicyError:
    return PolicyError(f"{who}: {what} {given!r}, not {needed}")


def _number(who: str, what: str, given: Any, least: int, needed: str) -> int:
    try:
        number = index(given)
    except TypeError:
        raise _no(who, what, given, needed) from None
    if number < least:
        raise _no(who, what, given, needed)
    return number


class HeldStep:
    """A `StepDraft` that looks at what it is given.

    Parameters
    ----------
    who : str
        What an error calls the policy.
    step : StepDraft
    """

    def __init__(self, who: str, step: Any) -> None:
        own = vars(self)
        own["_who"], own["_step"] = who, step
        for name in ("advance_prefills", "advance_running", "admit_waiting"):
            own[name] = getattr(step, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "budget_tokens":
            raise _no(self._who, "sets", name, "budget_tokens, all that a policy may set")
        needed = "a whole number of tokens, at least 0"
        self._step.budget_tokens = _number(self._who, f"sets {name} to", value, 0, needed)

    def displace(self, place: Any) -> bool:
        """Displace who stands at a place that there is."""
        most = self._step.running
        needed = f"a place among who is running, 0 to {most - 1}"
        if _number(self._who, "displaces", place, 0, needed) >= most:
            raise _no(self._who, "displaces", place, needed)
        displaced: bool = self._step.displace(index(place))
        return displaced

    def ask_again(self, steps: Any) -> None:
        """Have the policy called after a number of steps."""
        needed = "a whole number of steps, at least 1"
        self._step.ask_again(_number(self._who, "asks again after", steps, 1, needed))

    def switch(self, rank: Callable[[RequestView], Any]) -> None:
        """Let those run who rank first, by whole numbers."""
        needed = "a whole number"

        def ranked(request: RequestView) -> int:
            return _number(self._who, "ranks a request", rank(request), -(2**62), needed)

        self._step.switch(ranked)

    def come_back(self, rank: Callable[[RequestView], Any] | None = None) -> None:
        """Bring back who was swapped out, by numbers."""

        def ranked(request: RequestView) -> int | float:
            found = None if rank is None else rank(request)
            if not isinstance(found, int | float) or not isfinite(found):
                raise _no(self._who, "ranks a request", found, "a number")
            return found

        self._step.come_back(None if rank is None else ranked)


class HeldLine:
    """A `WaitingOrder` of which everybody at its head does wait.

    Parameters
    ----------
    who : str
        What an error calls the policy.
    line : WaitingOrder
    """

    def __init__(self, who: str, line: Any) -> None:
        self._who, self._line = who, line
        self._waiting: set[int] = set()

    def add(self, request: RequestView, returned: bool) -> None:
        """Take in a request."""
        self._waiting.add(request.index)
        self._line.add(request, returned)

    def head(self) -> RequestView | None:
        """Return who is next: None, or somebody who waits."""
        found: Any = self._line.head()
        if found is None:
            return None
        if not isinstance(found, RequestView):
            raise _no(self._who, "its line's head returned", found, "a RequestView or None")
        if found.index not in self._waiting:
            told = f"request {found.index}"
            raise PolicyError(f"{self._who}: its line's head returned {told}, which does not wait")
        return found

    def remove(self, request: RequestView, admitted: bool) -> None:
        """Let a request go."""
        self._waiting.discard(request.index)
        self._line.remove(request, admitted)
