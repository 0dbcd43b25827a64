"""Arrivals whose rate varies: Gamma renewals in operational time, warped by a random intensity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Lt

from llmsim.core.errors import Fault, InputError
from llmsim.core.rng import stream
from llmsim.core.units import NS_PER_S
from llmsim.workload import burstgpt_fit as fit
from llmsim.workload.arrivals import ARRIVALS, ArrivalSampler
from llmsim.workload.chunk import ClosedLoop

DAY_S = 86_400
"""Seconds in a day [s]."""

_GAPS_AT_ONCE = 16_384

Factor = Annotated[float, Ge(0)]
"""A rate over the mean rate."""


@ARRIVALS.register("burst")
@dataclass(frozen=True)
class Burst:
    """Bursty arrivals with a daily and weekly shape; the defaults are BurstGPT's API stream.

    Parameters
    ----------
    rate_rps : float [requests/s]
        Mean rate. A single run wanders around it as far as the daily and the modulation sigma
        make it.
    cv : float
        Coefficient of variation of inter-arrival times in operational time; 1 is Poisson given
        the intensity.
    by_hour : 24 numbers
        Rate by hour of day over the mean; scaled to mean 1. The trace begins at midnight.
    by_weekday : 7 numbers
        Rate by day of the week over the mean; scaled to mean 1. The trace begins on the first.
    day_sigma, day_ar1 : float
        Standard deviation of the log of a day's level, and its correlation from day to day.
    modulation_sigma, modulation_ar1 : float
        The same for the modulation within the day, from step to step.
    modulation_step_s : float [s]
        Length of a step; a day must hold a whole number of them and an hour too.

    Notes
    -----
    Intensity lambda(t) = rate x hour x weekday x day level x modulation, the last two lognormal
    AR(1) with mean 1. With L(t) its integral and X_i Gamma gaps of mean 1, arrival i comes at
    L^-1(X_1 + ... + X_i): this keeps the gaps' CV and gives the counts in a window the dispersion
    that follows from it, which rescaling gaps to fit a window does not.
    """

    rate_rps: Annotated[float, Gt(0)]
    cv: Annotated[float, Gt(0)] = fit.API_GAP_CV
    by_hour: tuple[Factor, ...] = fit.API_BY_HOUR
    by_weekday: tuple[Factor, ...] = fit.FLAT_WEEK
    day_sigma: Annotated[float, Ge(0)] = fit.API_DAY_SIGMA
    day_ar1: Annotated[float, Ge(0), Lt(1)] = fit.API_DAY_AR1
    modulation_sigma: Annotated[float, Ge(0)] = fit.MODULATION_SIGMA
    modulation_ar1: Annotated[float, Ge(0), Lt(1)] = fit.MODULATION_AR1
    modulation_step_s: Annotated[float, Gt(0)] = fit.MODULATION_STEP_S

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """None: an open process."""
        return None

    def sampler(self, seed: int) -> ArrivalSampler:
        """Return a function that gives the next n arrival times.

        Raises
        ------
        InputError
            If a profile has the wrong number of entries or is all zero, or the step does not
            divide an hour.
        """
        return buffered(self.days(seed, "burst"))

    def days(self, seed: int, name: str) -> Iterator[npt.NDArray[np.int64]]:
        """Return the arrival times of one day after another, without end.

        Parameters
        ----------
        seed : int
        name : str
            Distinguishes the streams of several such processes in one workload.

        Returns
        -------
        iterator of ndarray of int64 (n,) [ns]
            Sorted; a day may be empty.
        """
        self._check_shape()
        return self._days(seed, name)

    def _days(self, seed: int, name: str) -> Iterator[npt.NDArray[np.int64]]:
        steps = round(DAY_S / self.modulation_step_s)
        hour = np.repeat(np.asarray(self.by_hour) / np.mean(self.by_hour), steps // 24)
        weekday = np.asarray(self.by_weekday) / np.mean(self.by_weekday)
        knots_s = np.arange(steps + 1) * self.modulation_step_s
        gaps = _Gaps(stream(seed, "arrivals", name, "gaps"), self.cv)
        day_level = _LognormalAr1(
            stream(seed, "arrivals", name, "days"), self.day_sigma, self.day_ar1
        )
        within = _LognormalAr1(
            stream(seed, "arrivals", name, "steps"), self.modulation_sigma, self.modulation_ar1
        )
        day = 0
        while True:
            level = self.rate_rps * weekday[day % 7] * day_level.factors(1)[0]
            mass = np.concatenate(
                ([0.0], np.cumsum(hour * within.factors(steps) * (level * self.modulation_step_s)))
            )
            times_s = np.interp(gaps.until(float(mass[-1])), mass, knots_s)
            # The last instant of a day belongs to it: rounding must not reach the next one.
            times_ns = np.minimum(np.floor(times_s * NS_PER_S).astype(np.int64), _LAST_NS)
            yield times_ns + day * DAY_S * NS_PER_S
            day += 1

    def _check_shape(self) -> None:
        faults = [
            Fault("", name, f"expected {wanted} numbers, not all 0, got {list(profile)}")
            for name, profile, wanted in (
                ("by_hour", self.by_hour, 24),
                ("by_weekday", self.by_weekday, 7),
            )
            if len(profile) != wanted or not any(profile)
        ]
        per_hour = 3600 / self.modulation_step_s
        if not math.isclose(per_hour, round(per_hour)) or round(per_hour) < 1:
            message = f"must divide an hour (3600 s), got {self.modulation_step_s:g}"
            faults.append(Fault("", "modulation_step_s", message))
        if faults:
            raise InputError("arrivals 'burst'", faults)


_LAST_NS = DAY_S * NS_PER_S - 1


class _Gaps:
    """Sums of unit-mean Gamma gaps, handed out up to a mark that is moved back to 0 each time."""

    def __init__(self, rng: np.random.Generator, cv: float) -> None:
        self._rng, self._shape = rng, cv**-2
        self._ahead: npt.NDArray[np.float64] = np.empty(0)

    def until(self, mark: float) -> npt.NDArray[np.float64]:
        """Return the sums below the mark and make the mark the new origin."""
        parts = [self._ahead]
        last = float(self._ahead[-1]) if len(self._ahead) else 0.0
        while last < mark:
            gaps = self._rng.gamma(self._shape, 1.0 / self._shape, _GAPS_AT_ONCE)
            parts.append(last + np.cumsum(gaps))
            last = float(parts[-1][-1])
        sums = np.concatenate(parts)
        cut = int(np.searchsorted(sums, mark, side="left"))
        self._ahead = sums[cut:] - mark
        return sums[:cut]


class _LognormalAr1:
    """Lognormal AR(1) factors of mean 1."""

    def __init__(self, rng: np.random.Generator, sigma: float, rho: float) -> None:
        self._rng, self._sigma, self._rho = rng, sigma, rho
        self._last: float | None = None

    def factors(self, count: int) -> npt.NDArray[np.float64]:
        """Return the next factors (count,)."""
        z = self._rng.standard_normal(count).tolist()
        rho, own = self._rho, math.sqrt(1.0 - self._rho**2)
        for index, fresh in enumerate(z):
            self._last = fresh if self._last is None else rho * self._last + own * fresh
            z[index] = self._last
        return np.exp(self._sigma * np.asarray(z) - self._sigma**2 / 2.0)


def buffered(days: Iterator[npt.NDArray[np.int64]]) -> ArrivalSampler:
    """Return a sampler that takes the next n times from an endless iterator of days."""
    ahead: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def sample(rows: int) -> npt.NDArray[np.int64]:
        nonlocal ahead
        parts, have = [ahead], len(ahead)
        while have < rows:
            parts.append(next(days))
            have += len(parts[-1])
        times = np.concatenate(parts)
        ahead = times[rows:]
        return times[:rows]

    return sample
