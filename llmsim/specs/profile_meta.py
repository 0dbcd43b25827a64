"""`meta.json` of a kernel profile: where its rows come from and how far to trust them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llmsim.core.errors import CardError, Fault, nearest
from llmsim.core.files import write_whole

SCHEMA_VERSION = 1
ORIGINS = ("measured", "imported", "synthetic")
CLOCKS = ("free", "locked", "unknown")
STATES = ("ok", "unstable", "failed", "partial")


@dataclass(frozen=True)
class ProfileMeta:
    """Everything about a profile that is not a row.

    Parameters
    ----------
    profile_id : str
        Name of its folder.
    origin : str
        ``measured`` on this device by llmsim, ``imported`` from a public table, ``synthetic``.
    device : mapping
        ``name`` is required; ``gpu_card`` names the card that its datasheet figures come from;
        further uuid_hash, sm, sms, l2_bytes, mem_bytes, power_limit_w, clocks_max_mhz, mig, ecc,
        pcie, nvlink, as far as known.
    created : str
        ISO 8601, UTC.
    llmsim : mapping
        ``version``, and git ``commit`` and ``dirty`` where there is a checkout.
    host : mapping
        cpu, cores, numa, os, kernel, virtualised.
    libs : mapping of str to str
        driver, cuda, torch, triton, nccl, ...: what the rows were measured with.
    method : mapping
        warmup, repeats, rotation_bytes, ``clocks`` (free, locked, unknown), threads.
    ceilings : mapping
        Best rates seen: ``copy_bytes_per_s``, ``flops_per_s`` by dtype; each a list, one entry per
        time block 0 ran.
    drift_frac : float
        Largest relative change of a ceiling over the run.
    state : str
        ok, ``unstable`` (drift above 5%), ``failed`` (above 15%) or ``partial``.
    fit : mapping
        By family: parameters, rows, and holdout errors (median, p90, p99, bias).
    whole_model_check : list of mapping
        Measured whole steps beside the sum of their operators.
    rows_checksum : str
        SHA-256, see `rows_checksum`.
    licence : str
        Under which the rows may be used, with what must be said when they are passed on.
    source : str
        Where imported rows come from: repository, commit, file.
    notes : str
    schema_version : int
    """

    profile_id: str
    origin: str
    device: Mapping[str, Any]
    created: str
    llmsim: Mapping[str, Any] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    libs: Mapping[str, str] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    ceilings: Mapping[str, Any] = field(default_factory=dict)
    drift_frac: float = 0.0
    state: str = "ok"
    fit: Mapping[str, Any] = field(default_factory=dict)
    whole_model_check: tuple[Mapping[str, Any], ...] = ()
    rows_checksum: str = ""
    licence: str = ""
    source: str = ""
    notes: str = ""
    schema_version: int = SCHEMA_VERSION


_NAMES = tuple(item.name for item in fields(ProfileMeta))
_TEXTS = ("profile_id", "origin", "created", "state", "rows_checksum", "licence", "source", "notes")
_MAPPINGS = ("device", "llmsim", "host", "libs", "method", "ceilings", "fit")


def read_meta(path: Path) -> ProfileMeta:
    """Read and check `meta.json`.

    Parameters
    ----------
    path : Path
        The file, or the folder that holds it.

    Raises
    ------
    CardError
        With every fault.
    """
    path = path / "meta.json" if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CardError(path.name, [Fault(str(path), "", "no such file.")]) from None
    except ValueError as error:
        raise CardError(path.name, [Fault(str(path), "", f"not JSON: {error}")]) from None
    faults = _faults(raw, str(path))
    if faults:
        raise CardError(path.name, faults)
    checks = tuple(raw.get("whole_model_check", ()))
    return ProfileMeta(**{**raw, "whole_model_check": checks})


def _faults(raw: Any, where: str) -> list[Fault]:
    if not isinstance(raw, dict):
        return [Fault(where, "", "must be a JSON object.")]
    faults = [
        Fault(where, key, "unknown key.", nearest(key, _NAMES)) for key in raw if key not in _NAMES
    ]
    needed = ("profile_id", "origin", "device", "created")
    faults += [Fault(where, name, "missing.") for name in needed if name not in raw]
    for names, kind, word in ((_TEXTS, str, "text"), (_MAPPINGS, dict, "an object")):
        faults += [
            Fault(where, name, f"must be {word} (got {raw[name]!r}).")
            for name in names
            if name in raw and not isinstance(raw[name], kind)
        ]
    if faults:
        return faults
    if not raw["device"].get("name"):
        faults.append(Fault(where, "device.name", "missing."))
    if raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        message = f"is {raw['schema_version']!r}; this llmsim reads {SCHEMA_VERSION}."
        faults.append(Fault(where, "schema_version", message))
    drift = raw.get("drift_frac", 0.0)
    if isinstance(drift, bool) or not isinstance(drift, int | float) or drift < 0:
        faults.append(Fault(where, "drift_frac", f"must be a number from 0 (got {drift!r})."))
    words = (
        ("origin", raw["origin"], ORIGINS),
        ("state", raw.get("state", "ok"), STATES),
        ("method.clocks", raw.get("method", {}).get("clocks", "unknown"), CLOCKS),
    )
    for name, word, known in words:
        if word not in known:
            faults.append(Fault(where, name, f"unknown word {word!r}.", nearest(str(word), known)))
    if not raw.get("licence") and raw["origin"] == "imported":
        faults.append(Fault(where, "licence", "imported rows must state their licence."))
    return faults


def write_meta(folder: Path, meta: ProfileMeta) -> Path:
    """Write `meta.json` into a profile folder, after the checks that reading makes.

    Raises
    ------
    CardError
        With every fault.
    """
    raw = asdict(meta)
    path = folder / "meta.json"
    text = json.dumps(raw, indent=1, sort_keys=False, default=str) + "\n"
    faults = _faults(json.loads(text), str(path))
    if faults:
        raise CardError(path.name, faults)
    write_whole(path, text)
    return path
