"""What a run says about itself: ceilings, drift, state, the whole-model check, `meta.json`."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmsim_kernels.profiler.blocks.ceilings import COPY, PRODUCT
from llmsim_kernels.profiler.plan import Rates
from llmsim_kernels.profiler.spec import COLD_SETS, WARMUPS, Device, Effort

UNSTABLE_FRAC, FAILED_FRAC = 0.05, 0.15
"""Drift of a ceiling over the run above which a profile is doubtful, and refused."""

Rows = Iterable[Mapping[str, Any]]


def ceilings_seen(rows: Rows) -> dict[str, Any]:
    """Return the best rates, each a list: start, middle, end of each run.

    Returns
    -------
    dict
        ``copy_bytes_per_s``, ``read_bytes_per_s``, ``cache_read_bytes_per_s``, and
        ``flops_per_s`` by dtype.
    """
    found: dict[str, Any] = {}
    for row in rows:
        if _is_ceiling(row):
            name = str(row["variant"]).rpartition(".")[0]
            seconds = float(row["t_median_us"]) / 1e6
            if name.startswith(PRODUCT):
                by_dtype = found.setdefault("flops_per_s", {})
                dtype = name.removeprefix(f"{PRODUCT}.")
                by_dtype.setdefault(dtype, []).append(float(row["flops"]) / seconds)
            else:
                rates = found.setdefault(f"{name}_bytes_per_s", [])
                rates.append(float(row["moved_bytes"]) / seconds)
    return found


def each_ceiling(ceilings: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[float]]]:
    """Return (name, unit, rates) of every ceiling."""
    for name, values in ceilings.items():
        if isinstance(values, Mapping):
            for dtype, rates in values.items():
                yield f"matmul {dtype}", "FLOP/s", rates
        else:
            yield name.removesuffix("_bytes_per_s").replace("_", " "), "B/s", values


def _is_ceiling(row: Mapping[str, Any]) -> bool:
    return row.get("op") == "ceiling" and row.get("status") == "ok" and bool(row.get("t_median_us"))


def rates_seen(rows: Rows, dtype: str) -> Rates:
    """Return the rates by which grids are cut; generous ones where no ceiling could be timed.

    Parameters
    ----------
    rows : iterable of mapping
    dtype : str
        Of the usual products.
    """
    seen = ceilings_seen(rows)
    flops = seen.get("flops_per_s", {}).get(dtype, [1e15])
    moved = seen.get(f"{COPY}_bytes_per_s", [5e12])
    return Rates(max(flops), max(moved))


def drift_of(ceilings: Mapping[str, Any]) -> float:
    """Return the largest change of one ceiling over the run, relative to its mean."""
    changes = [
        (max(values) - min(values)) * len(values) / sum(values)
        for _, _, values in each_ceiling(ceilings)
        if len(values) > 1
    ]
    return max(changes, default=0.0)


def state_of(drift_frac: float, *, cut: bool, missing: int) -> str:
    """Return ok, unstable, failed or partial; drift outranks what is missing."""
    if drift_frac > FAILED_FRAC:
        return "failed"
    if cut or missing:
        return "partial"
    return "unstable" if drift_frac > UNSTABLE_FRAC else "ok"


def device_entry(device: Device) -> dict[str, Any]:
    """Return the device as `meta.json` describes it."""
    facts = device.facts
    return {
        "name": facts.name,
        "kind": facts.kind,
        "sms": facts.sms,
        "l2_bytes": facts.cache_bytes,
        "mem_bytes": facts.memory_bytes,
        **facts.details,
    }


def host_entry() -> dict[str, Any]:
    """Return the machine around the device."""
    from llmsim_kernels.profiler.cpu import cpu_model

    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "numa": len(nodes) or None,
        "os": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def llmsim_entry() -> dict[str, Any]:
    """Return the version that measured, and the commit where it runs from a checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found: dict[str, Any] = {"version": version("llmsim")}
    except PackageNotFoundError:
        found = {"version": "unknown"}
    root = Path(__file__).resolve().parents[3]
    if (root / ".git").exists() and (root / "pyproject.toml").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            found["commit"] = commit
            found["dirty"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return found


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def method_entry(device: Device, effort: Effort, quick: bool) -> dict[str, Any]:
    """Return how rows were timed."""
    clocks = getattr(device, "clocks", None)
    return {
        "warmup": WARMUPS,
        "repeats": effort.least_repeats,
        "row_s": effort.row_s,
        "rotation_bytes": int(COLD_SETS * device.facts.cache_bytes),
        "clocks": clocks() if clocks else "unknown",
        "threads": 1 if device.facts.kind == "cpu" else os.cpu_count(),
        "quick": quick,
    }


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
