"""Bins of durations: equal ratios between their edges. A module of its own, to be compiled."""

from __future__ import annotations

import math
from typing import Final

RATIO: Final = 1.004
"""Upper over lower edge of a bin: a quantile is known to 0.4%."""

LOG_RATIO: Final = math.log(RATIO)
FLOOR_NS: Final = 1_000
BINS: Final = math.ceil(math.log(10**15 / FLOOR_NS) / LOG_RATIO)
"""Bins from 1 microsecond to 10^6 seconds."""


def bin_of(duration_ns: float) -> int:
    """Return the bin a duration [ns] falls in; durations below 1 us fall in bin 0."""
    if duration_ns <= FLOOR_NS:
        return 0
    return min(int(math.log(duration_ns / FLOOR_NS) / LOG_RATIO), BINS - 1)
