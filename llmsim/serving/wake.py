"""Events that are decided when they are scheduled, and may stand in the queue again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import simpy


class Wake(simpy.Event):
    """An event that is decided when it is scheduled, and may be scheduled again and again.

    SimPy uses an event up: it takes the callbacks away when it fires. A wake keeps its callback
    and can stand in the queue any number of times, which saves an object per call and does for
    what SimPy cannot do, cancel: a call that was superseded finds out when it fires.

    Only `llmsim.serving.clock.Clock` fires wakes: it calls `callback` and leaves SimPy's list be.

    Parameters
    ----------
    callback : callable
        Called with this event.
    """

    _ok = True
    _value: Any = None

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback
        self.callbacks = [callback]
