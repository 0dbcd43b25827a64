"""Where the time of a step goes: preparing it, launching it, and what the device does meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of one step; they overlap, so they do not add up to it.

    Parameters
    ----------
    prepare_s : float [s]
        Host: from the call of the scheduler to the first launch.
    launch_s : float [s]
        Host: from the first launch to the last one.
    device_s : float [s]
        Device: from the first kernel to the last one, gaps included; 0 where it is not measured.
    """

    prepare_s: float = 0.0
    launch_s: float = 0.0
    device_s: float = 0.0


UNKNOWN = Shares()
"""Of a step that nobody watched."""


class Watch:
    """Takes the times of one step after the other.

    Parameters
    ----------
    torch : module
    on_gpu : bool
        Whether the device's own clock is asked, by events.
    """

    def __init__(self, torch: Any, on_gpu: bool) -> None:
        self._events: tuple[Any, Any] | None = None
        if on_gpu:
            self._events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
        self._began = self._launching = self._launched = 0.0

    def begin(self) -> None:
        """Say that a step begins."""
        self._began = self._launching = self._launched = time.perf_counter()

    def launching(self) -> None:
        """Say that the inputs are on their way and the model comes next."""
        self._launching = time.perf_counter()
        if self._events is not None:
            self._events[0].record()

    def launched(self) -> None:
        """Say that everything has been launched."""
        if self._events is not None:
            self._events[1].record()
        self._launched = time.perf_counter()

    def shares(self) -> Shares:
        """Return the parts of the step that has just ended, its tokens being on the host."""
        device_s = 0.0
        if self._events is not None:
            device_s = self._events[0].elapsed_time(self._events[1]) / 1e3
        return Shares(self._launching - self._began, self._launched - self._launching, device_s)
