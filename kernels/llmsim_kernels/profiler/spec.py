"""What is measured and what comes back: row specifications, calls, timings, device facts.

Nothing here needs torch: a row specification holds a builder that is called only on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

COLD_SETS = 3.0
"""Rotated operands cover this many times the last-level cache, so each call finds them cold."""

REPLAY_S = 1e-3
"""Shortest timed replay [s]: calls are grouped until one replay takes this long."""

WARMUPS = 3
"""Replays of the timed path before the first that counts."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one row is measured.

    Parameters
    ----------
    least_repeats : int [replays]
    row_s : float [s]
        Replays go on until they took this long together.
    """

    least_repeats: int = 5
    row_s: float = 0.06


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one call over all replays.

    Parameters
    ----------
    median_s, min_s, mad_s : float [s]
        Median, shortest, and median absolute deviation.
    repeats : int [replays]
    power_w : float or None [W]
        Board power while it ran, where a row measures it.
    """

    median_s: float
    min_s: float
    mad_s: float
    repeats: int
    power_w: float | None = None


def timing_of(samples_s: Sequence[float]) -> Timing:
    """Return the statistics of replay times.

    Parameters
    ----------
    samples_s : sequence of float (replays,) [s]
        Time of one call in each replay; at least one.
    """
    import statistics

    middle = statistics.median(samples_s)
    spread = statistics.median(abs(sample - middle) for sample in samples_s)
    return Timing(middle, min(samples_s), spread, len(samples_s))


@dataclass(frozen=True, slots=True)
class Sensors:
    """What the board said at one moment; None where it does not say.

    Parameters
    ----------
    sm_clock_mhz, mem_clock_mhz : float or None [MHz]
    power_w : float or None [W]
    temperature_c : float or None [°C]
    throttled : tuple of str
        Reasons for lower clocks, other than being idle.
    """

    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device as the grids and `meta.json` need it.

    Parameters
    ----------
    name : str
    kind : str
        cuda, cpu or synthetic.
    capability : int
        Compute capability times ten, such as 90; 0 where there is none.
    sms : int
        Multiprocessors, or threads used.
    cache_bytes, memory_bytes, free_bytes : int [bytes]
        Last-level cache; memory, and what of it is free.
    gpus : int [GPUs]
        Devices of this kind that collectives may use.
    details : mapping
        Further entries of ``meta.json``'s device.
    """

    name: str
    kind: str
    capability: int
    sms: int
    cache_bytes: int
    memory_bytes: int
    free_bytes: int
    gpus: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def graphs(self) -> bool:
        """Whether calls are replayed from captured graphs."""
        return self.kind != "cpu"

    @property
    def dtype(self) -> str:
        """Activations of the usual rows: bf16, fp32 on a CPU (most have no bf16 units)."""
        return "fp32" if self.kind == "cpu" else "bf16"

    @property
    def slug(self) -> str:
        """Folder name of the device."""
        words = "".join(c if c.isalnum() else "-" for c in self.name.lower())
        return "-".join(word for word in words.split("-") if word)


class RowFault(Exception):  # noqa: N818 - a row without a time is an outcome, not an error
    """A row that cannot be timed; it is kept with this status.

    Parameters
    ----------
    status : str
        oom, unsupported or error.
    note : str
        Why.
    """

    def __init__(self, status: str, note: str) -> None:
        self.status = status
        self.note = note
        super().__init__(f"{status}: {note}")


class DeviceLostError(Exception):
    """The device does not answer any more; what was measured stays."""


@dataclass(frozen=True, slots=True)
class Call:
    """A row, ready to be timed.

    Parameters
    ----------
    variants : sequence of callables
        The same call on operands of its own each; timed one after the other, in a circle.
    gate : str
        Kernel whose reference check must have passed; empty where torch itself is the reference.
    check : callable or None
        Returns the error norm of the kernel relative to its reference.
    limit : float
        Largest error norm accepted.
    """

    variants: Sequence[Callable[[], Any]]
    gate: str = ""
    check: Callable[[], float] | None = None
    limit: float = 1e-2


Build = Callable[[Any], Call]
"""Makes a `Call` with the help of a `TorchBench`."""

Measure = Callable[[Any], Timing]
"""Measures in a way of its own, such as for seconds or in several processes; gets the device."""


@dataclass(frozen=True, slots=True)
class RowSpec:
    """One row to measure.

    Parameters
    ----------
    block : int
    key : mapping of str to value
        Key columns of `llmsim.specs.profile_rows`.
    flops : float [FLOP]
    moved_bytes : float [bytes]
        That one call must move.
    build : callable
    needs : str
        ``cuda``, ``fp8``, or a package such as ``triton``, whose kernels have no timing on a CPU;
        empty for what runs anywhere.
    resident_bytes : float [bytes]
        Operands of one call that must fit into memory.
    holdout : bool
        Never fitted.
    measure : callable or None
        Used in place of `build`.
    """

    block: int
    key: Mapping[str, Any]
    flops: float
    moved_bytes: float
    build: Build
    needs: str = ""
    resident_bytes: float = 0.0
    holdout: bool = False
    measure: Measure | None = None


class Device(Protocol):
    """Something that can be timed."""

    facts: DeviceFacts

    def libraries(self) -> dict[str, str]:
        """Return the versions of everything that rows depend on."""
        ...

    def warnings(self) -> list[str]:
        """Return what makes timings doubtful: other tenants, throttling, low memory."""
        ...

    def sensors(self) -> Sensors:
        """Return clocks, power and temperature now."""
        ...

    def time(self, spec: RowSpec, effort: Effort) -> Timing:
        """Time one row.

        Raises
        ------
        RowFault
            If the row has no time.
        DeviceLostError
            If the device is gone.
        """
        ...
