"""One call for a whole profile: device, plan, session, `meta.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmsim.core.errors import Fault, InputError, nearest
from llmsim.specs.load import load_model
from llmsim.specs.profile_meta import ProfileMeta, read_meta, write_meta
from llmsim.specs.profile_rows import rows_checksum
from llmsim_kernels.profiler import report
from llmsim_kernels.profiler.blocks import BLOCKS, whole
from llmsim_kernels.profiler.plan import ALL_BLOCKS, QUICK_BLOCKS, Plan, Rates
from llmsim_kernels.profiler.session import Session, Silent, Watcher
from llmsim_kernels.profiler.spec import Device, Effort


@dataclass(frozen=True, slots=True)
class ProfileOrder:
    """What to measure.

    Parameters
    ----------
    device : str
        ``cuda``, ``cuda:N``, ``cpu``, or empty for the first GPU.
    quick : bool
    budget_s : float [s]
    model : str
        Card or config.json whose shapes are added; empty for none.
    blocks : tuple of int
        Empty for all, or for those of a quick run.
    out : Path or None
        Profile folder; one that is there is continued.
    """

    device: str = ""
    quick: bool = False
    budget_s: float = 480.0
    model: str = ""
    blocks: tuple[int, ...] = ()
    out: Path | None = None
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True, slots=True)
class ProfileOutcome:
    """What became of a run.

    Parameters
    ----------
    folder : Path
    meta : ProfileMeta
    statuses : dict of str to int
        Rows by status, those of earlier runs included.
    resumed : int [rows]
        That were there before.
    cut : str
        Why the run ended early; empty if it did not.
    """

    folder: Path
    meta: ProfileMeta
    statuses: dict[str, int]
    resumed: int
    cut: str


def open_device(name: str) -> Device:
    """Return the device of a name.

    Raises
    ------
    InputError
        If there is no such device, or it cannot be used.
    """
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        from llmsim_kernels.profiler.cpu import CpuDevice

        return CpuDevice()
    if kind in ("", "cuda") and (index or "0").isdecimal():
        from llmsim_kernels.profiler.cuda import CudaDevice

        return CudaDevice(int(index or 0))
    message = f"'{name}' is no device."
    hint = nearest(kind, ("cuda", "cuda:0", "cpu"))
    raise InputError("profile", [Fault("", "--device", message, hint)])


def run_profile(
    order: ProfileOrder, watcher: Watcher | None = None, device: Device | None = None
) -> ProfileOutcome:
    """Measure a profile, or go on with one.

    Parameters
    ----------
    order : ProfileOrder
    watcher : Watcher or None
    device : Device or None
        In place of the one that the order names.

    Raises
    ------
    InputError
        If the order is wrong, or its folder holds a profile of something else.
    """
    numbers = _numbers(order)
    model = load_model(order.model) if order.model else None
    device = device or open_device(order.device)
    folder = order.out or default_folder(device)
    session = _session(order, device, folder, watcher or Silent())
    plan = Plan(device.facts, order.quick, Rates(1e15, 5e12), model)
    created = _created(folder)
    _write(session, plan, order, created, "partial")
    session.opening(plan)
    if not session.cut:
        rates = report.rates_seen(session.done.values(), plan.dtype)
        plan = Plan(device.facts, order.quick, rates, model)
        session.body(plan, numbers)
    meta = _write(session, plan, order, created, "")
    statuses: dict[str, int] = {}
    for row in session.done.values():
        status = str(row.get("status", "ok"))
        statuses[status] = statuses.get(status, 0) + 1
    return ProfileOutcome(folder, meta, statuses, session.resumed, session.cut)


def _numbers(order: ProfileOrder) -> tuple[int, ...]:
    wrong = [number for number in order.blocks if number not in BLOCKS]
    if wrong:
        hint = f"Blocks: {', '.join(f'{n} {BLOCKS[n].name}' for n in sorted(BLOCKS))}."
        faults = [Fault("", "--block", f"there is no block {number}.", hint) for number in wrong]
        raise InputError("profile", faults)
    wanted = order.blocks or (QUICK_BLOCKS if order.quick else ALL_BLOCKS)
    return tuple(number for number in ALL_BLOCKS if number in wanted and number in BLOCKS)


def default_folder(device: Device) -> Path:
    """Return ``profiles/<device>/<time>`` under the current folder."""
    stamp = report.now()[:16].replace("-", "").replace(":", "")
    return Path("profiles") / device.facts.slug / stamp


def _session(order: ProfileOrder, device: Device, folder: Path, watcher: Watcher) -> Session:
    """Make the folder, or check that it holds the same device and libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.csv"
    notes: list[str] = []
    if rows.exists() and (folder / "meta.json").exists():
        before = read_meta(folder)
        faults = []
        if before.device["name"] != device.facts.name:
            message = f"holds a profile of {before.device['name']}, not of {device.facts.name}."
            faults.append(Fault(str(folder), "device", message))
        libs = device.libraries()
        for name in sorted({*before.libs, *libs}):
            was, now = before.libs.get(name, "none"), libs.get(name, "none")
            if was != now:
                message = f"{name} was {was} and is {now}: its rows cannot be mixed."
                faults.append(Fault(str(folder), "libs", message, "Give another --out."))
        if faults:
            raise InputError("profile", faults)
        notes = [line for line in before.notes.split("\n") if "another device" in line]
        was, now = (of.get("uuid_hash", "") for of in (before.device, device.facts.details))
        if was and now and was != now:
            notes.append(f"earlier rows are of another device of this kind ({was}, not {now})")
    session = Session(device, rows, order.effort, order.budget_s, watcher)
    for text in notes:
        session.note(text)
    return session


def _created(folder: Path) -> str:
    path = folder / "meta.json"
    return read_meta(path).created if path.exists() else report.now()


def _write(
    session: Session, plan: Plan, order: ProfileOrder, created: str, state: str
) -> ProfileMeta:
    device, rows = session.device, list(session.done.values())
    folder = session.path.parent
    ceilings = report.ceilings_seen(rows)
    drift = report.drift_of(ceilings)
    notes = list(session.notes)
    if session.resumed:
        notes.append(f"{session.resumed} rows come from earlier runs into this folder.")
    details: dict[str, Any] = {
        "device": report.device_entry(device),
        "llmsim": report.llmsim_entry(),
        "host": report.host_entry(),
        "libs": device.libraries(),
        "method": report.method_entry(device, order.effort, order.quick),
        "whole_model_check": tuple(whole.check(plan, session.done)),
    }
    meta = ProfileMeta(
        profile_id=folder.name,
        origin="synthetic" if device.facts.kind == "synthetic" else "measured",
        created=created,
        ceilings=ceilings,
        drift_frac=drift,
        state=state or report.state_of(drift, cut=bool(session.cut), missing=session.missing),
        rows_checksum=rows_checksum(session.path) if session.path.exists() else "",
        licence="of whoever ran it",
        notes="\n".join(notes),
        **details,
    )
    write_meta(folder, meta)
    return meta


def summary_lines(outcome: ProfileOutcome) -> list[str]:
    """Return what a user wants to know at the end, a line each."""
    meta = outcome.meta
    counts = ", ".join(f"{count} {word}" for word, count in sorted(outcome.statuses.items()))
    lines = [
        f"profile   {outcome.folder}",
        f"rows      {counts}",
        f"state     {meta.state}: ceilings drifted by {meta.drift_frac:.1%}",
    ]
    for name, unit, values in report.each_ceiling(meta.ceilings):
        scale, prefix = (1e12, "T") if unit == "FLOP/s" else (1e9, "G")
        lines.append(f"ceiling   {name}: {max(values) / scale:,.3g} {prefix}{unit}")
    for entry in meta.whole_model_check:
        step = f"{entry['step']}, {entry['batch']} x {entry['tokens']} tokens"
        measured = f"{entry['measured_us'] / 1e3:,.3f} ms"
        if "ratio" in entry:
            lines.append(
                f"whole     {step}: {measured}, {entry['ratio']:.2f} x the sum of its operators"
            )
        else:
            lines.append(f"whole     {step}: {measured}; not timed: {', '.join(entry['untimed'])}")
    return lines
