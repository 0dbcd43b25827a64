"""A device that answers from a known formula, for tests of everything but torch."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmsim.specs.profile_rows import row_key
from llmsim_kernels.profiler.spec import (
    DeviceFacts,
    DeviceLostError,
    Effort,
    RowFault,
    RowSpec,
    Sensors,
    Timing,
    timing_of,
)


@dataclass(frozen=True, slots=True)
class Truth:
    """The formula of one operator: ``t0 + [(F / (e_c P))^p + (X / (e_m BW))^p]^(1/p)``.

    Parameters
    ----------
    t0_s : float [s]
    compute_frac, memory_frac : float
    norm : float
    """

    t0_s: float = 3.5e-6
    compute_frac: float = 0.75
    memory_frac: float = 0.80
    norm: float = 2.4


@dataclass(frozen=True, slots=True)
class Malice:
    """What is wrong with the device.

    Parameters
    ----------
    noise_log : float
        Log standard deviation of every row.
    sawtooth_frac : float
        Steps along m: a partly filled tile of 128 rows costs up to this much more.
    switch_at_m : int
        From this m on another kernel runs, 1.3 times faster; 0 for none.
    outlier_frac : float
        Share of rows that take three times as long.
    throttle_after : int
        Rows after which clocks fall and everything takes `throttle_ratio` times as long; 0: never.
    throttle_ratio : float
    lost_after : int
        Rows after which the device is gone; 0 for never.
    """

    noise_log: float = 0.0
    sawtooth_frac: float = 0.0
    switch_at_m: int = 0
    outlier_frac: float = 0.0
    throttle_after: int = 0
    throttle_ratio: float = 1.25
    lost_after: int = 0


@dataclass
class SyntheticDevice:
    """Times rows by formula, without torch and in no time.

    Parameters
    ----------
    truths : mapping of str to Truth
        By operator; the others get the default.
    malice : Malice
    peak_flops_per_s, memory_bytes_per_s : float
    seed : int
    """

    truths: Mapping[str, Truth] = field(default_factory=dict)
    malice: Malice = field(default_factory=Malice)
    peak_flops_per_s: float = 1e15
    memory_bytes_per_s: float = 3.35e12
    seed: int = 1
    unsupported: tuple[str, ...] = ("fp8",)
    facts: DeviceFacts = field(
        default_factory=lambda: DeviceFacts(
            "synthetic", "synthetic", 90, 132, 50 << 20, 80 << 30, 78 << 30
        )
    )
    timed: int = 0

    def libraries(self) -> dict[str, str]:
        """Return the version of the formula."""
        return {"synthetic": "1"}

    def warnings(self) -> list[str]:
        """Say what this is."""
        return ["a synthetic device: every time is a formula"]

    def sensors(self) -> Sensors:
        """Return clocks that fall when the device throttles."""
        slow = self._throttled
        reasons = ("power cap",) if slow else ()
        return Sensors(
            1980.0 / (self.malice.throttle_ratio if slow else 1.0), 2619.0, 500.0, 60.0, reasons
        )

    @property
    def _throttled(self) -> bool:
        return 0 < self.malice.throttle_after < self.timed

    def true_s(self, spec: RowSpec) -> float:
        """Return the time by formula alone [s]."""
        truth = self.truths.get(str(spec.key["op"]), Truth())
        compute = spec.flops / (truth.compute_frac * self.peak_flops_per_s)
        memory = spec.moved_bytes / (truth.memory_frac * self.memory_bytes_per_s)
        p = truth.norm
        return float(truth.t0_s + (compute**p + memory**p) ** (1.0 / p))

    def time(self, spec: RowSpec, effort: Effort) -> Timing:
        """Answer one row."""
        self.timed += 1
        if 0 < self.malice.lost_after < self.timed:
            raise DeviceLostError("the synthetic device was told to go")
        if spec.needs in self.unsupported:
            raise RowFault("unsupported", f"needs {spec.needs}")
        if spec.resident_bytes > self.facts.free_bytes:
            raise RowFault("oom", "more than the device has")
        # drawn from the key, so that a row has its time whatever was measured before it
        draw = random.Random(zlib.crc32("|".join(row_key(spec.key)).encode()) ^ self.seed)
        seconds = self.true_s(spec) * math.exp(draw.gauss(0.0, self.malice.noise_log))
        seconds *= self._spite(int(spec.key.get("m") or 0), draw)
        return timing_of([seconds * factor for factor in (1.0, 0.999, 1.001, 1.0, 1.002)])

    def _spite(self, m: int, draw: random.Random) -> float:
        malice, factor = self.malice, 1.0
        if m and malice.sawtooth_frac:
            factor *= 1.0 + malice.sawtooth_frac * (1.0 - m / (-(-m // 128) * 128))
        if m and 0 < malice.switch_at_m <= m:
            factor /= 1.3
        if draw.random() < malice.outlier_frac:
            factor *= 3.0
        return factor * (malice.throttle_ratio if self._throttled else 1.0)
