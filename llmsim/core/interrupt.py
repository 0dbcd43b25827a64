"""A Ctrl-C that cannot get lost before a run begins."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

_TIMES: Final[list[int]] = [0]


def watch() -> None:
    """Take note of every Ctrl-C from now on; it still raises KeyboardInterrupt.

    An exception in a finaliser or inside some extension modules is printed and forgotten by
    Python; a note is not.
    """
    signal.signal(signal.SIGINT, _pressed)


def _pressed(_number: int, _frame: FrameType | None) -> None:
    _TIMES[0] += 1
    raise KeyboardInterrupt


def check() -> None:
    """Raise what may have been forgotten.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C was pressed since `watch`.
    """
    if _TIMES[0]:
        raise KeyboardInterrupt
