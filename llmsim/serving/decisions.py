"""Kinds of decision in the digest."""

from __future__ import annotations

from typing import Final

ADMIT: Final = 1
RESUME: Final = 2
PREEMPT: Final = 3
FINISH: Final = 4
DROP: Final = 5
MOVE_OUT: Final = 6
MOVE_IN: Final = 7
LOSE: Final = 8
STOP: Final = 20
GO_ON: Final = 21
