"""Files that are read once for as long as many things are made of the same ones.

Cards may change between two calls of llmsim, and a call that reads a few of them pays little for
it. A search that makes a thousand replicas of the same cards reads them inside `holding`: what was
read there is kept until its end, and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_KEPT: ContextVar[dict[Hashable, Any] | None] = ContextVar("kept", default=None)


@contextmanager
def holding() -> Iterator[None]:
    """Keep what `held` functions return until the end; inside another one, until that one's."""
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def held(read: Callable[P, T]) -> Callable[P, T]:
    """Let a function that reads files read them once while `holding`.

    Parameters
    ----------
    read : callable
        Of hashable arguments; what it returns is changed by nobody. Errors are not kept.
    """

    @wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        kept = _KEPT.get()
        if kept is None:
            return read(*args, **kwargs)
        key = (read, args, tuple(sorted(kwargs.items())))
        if key not in kept:
            kept[key] = read(*args, **kwargs)
        found: T = kept[key]
        return found

    return reading
