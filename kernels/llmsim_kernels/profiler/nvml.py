"""Clocks, power, temperature and other tenants of an NVIDIA GPU, where nvidia-ml-py is there."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

from llmsim_kernels.profiler.spec import Sensors

_REASONS: Mapping[int, str] = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
"""Bits of ``nvmlClocksEventReasons`` (NVML API reference); being idle (0x1) is no reason."""

_APPLICATION_CLOCKS = 0x02


class Board:
    """One board as NVML sees it; every question answers None where NVML does not.

    Parameters
    ----------
    uuid : str
        As CUDA names the device, without ``GPU-``.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        with contextlib.suppress(Exception):  # no package, no driver, no permission: no sensors
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._nvml = pynvml

    @property
    def there(self) -> bool:
        """Whether NVML answers for this board."""
        return self._nvml is not None

    def _ask(self, name: str, *arguments: Any) -> Any:
        if self._nvml is None:
            return None
        with contextlib.suppress(Exception):  # NVMLError: not supported on this board
            return getattr(self._nvml, name)(self._handle, *arguments)
        return None

    def _reasons(self) -> int:
        for name in (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",  # its name before driver 535
        ):
            found = self._ask(name)
            if found is not None:
                return int(found)
        return 0

    def sensors(self) -> Sensors:
        """Return clocks, power, temperature and why clocks are low."""
        if self._nvml is None:
            return Sensors()
        sm = self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)
        memory = self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM)
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        heat = self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)
        bits = self._reasons()
        return Sensors(
            sm,
            memory,
            None if milliwatts is None else milliwatts / 1e3,
            heat,
            tuple(word for bit, word in _REASONS.items() if bits & bit),
        )

    def clocks_locked(self) -> bool:
        """Whether somebody set application clocks."""
        return bool(self._reasons() & _APPLICATION_CLOCKS)

    def other_processes(self) -> int:
        """Return how many compute processes beside this one are on the board.

        Notes
        -----
        Process ids are those of the host and unknown inside a container, so they are counted: one
        of them is ours once a CUDA context exists.
        """
        running = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return max(0, len(running) - 1) if running else 0

    def details(self) -> dict[str, Any]:
        """Return what `meta.json` records of the board."""
        if self._nvml is None:
            return {}
        found: dict[str, Any] = {}
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        if limit is not None:
            found["power_limit_w"] = limit / 1e3
        top = {
            "sm": self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM),
            "mem": self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_MEM),
        }
        found["clocks_max_mhz"] = {name: value for name, value in top.items() if value}
        mig = self._ask("nvmlDeviceGetMigMode")
        found["mig"] = bool(mig and mig[0])
        ecc = self._ask("nvmlDeviceGetEccMode")
        found["ecc"] = bool(ecc and ecc[0])
        found["pcie"] = {
            "gen": self._ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            "width": self._ask("nvmlDeviceGetCurrPcieLinkWidth"),
        }
        found["nvlink"] = sum(bool(self._ask("nvmlDeviceGetNvLinkState", n)) for n in range(18))
        return found

    def driver(self) -> str:
        """Return the driver's version; empty where unknown."""
        if self._nvml is None:
            return ""
        with contextlib.suppress(Exception):
            found = self._nvml.nvmlSystemGetDriverVersion()
            return found.decode() if isinstance(found, bytes) else str(found)
        return ""


_CARDS: Mapping[str, str] = {
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA A40": "a40",
    "NVIDIA A100-SXM4-40GB": "a100-40gb-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-80gb-sxm",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "NVIDIA B200": "b200",
    "NVIDIA B300 SXM6 AC": "b300",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA GH200 480GB": "gh200-96gb",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA H20": "h20-sxm",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H800": "h800-sxm",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-32GB": "v100-32gb-sxm",
}
"""GPU cards by the product name that the driver reports (as `nvidia-smi -L` prints it); a device
that is not here is described by its measured ceilings alone."""


def card_of(product: str) -> str:
    """Return the GPU card of a product name; empty where there is none."""
    return _CARDS.get(product, "")


def hashed(uuid: str) -> str:
    """Return an identifier that tells boards apart and names none."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:16]
