"""Ctrl-C while a fleet runs: the run stops between two events, and what happened is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llmsim.core.interrupt import check as check_interrupt


@contextmanager
def ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C stop the run between two events, where everything adds up.

    A second Ctrl-C does what it always does. Outside the main thread signals are not ours.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    signal.signal(signal.SIGINT, handle)
    try:
        check_interrupt()
        yield
    finally:
        signal.signal(signal.SIGINT, before)
