"""A run as a folder: written whole or not at all, and checked when it is read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmsim.core.errors import Fault, InputError, OutputError
from llmsim.core.files import check_place, parse_json
from llmsim.core.units import NS_PER_S
from llmsim.results.changes import read_changes
from llmsim.results.columns import TIMELINE_COLUMNS
from llmsim.results.facts import LinkFacts, PinFacts, PoolFacts, ReplicaFacts, RunFacts, TierFacts
from llmsim.results.histogram import LogHistogram
from llmsim.results.slo import Slo
from llmsim.results.stations import StationFacts
from llmsim.results.steplog import StepLog
from llmsim.results.stops import StopFacts
from llmsim.results.timeline import LEVELS, TOTALS, TimelineData
from llmsim.results.tokens import TokenTimes

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION: Final = 1
"""Version of the layout of a run folder."""

REQUESTS, TIMELINES, META = "requests.parquet", "timelines.parquet", "meta.json"
PROGRAMS, TOKENS, STEPS = "programs.parquet", "tokens.parquet", "steps.parquet"
SCENARIO, SUMMARY, REPORT = "scenario.yaml", "summary.json", "report.html"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a run was, apart from what happened in it.

    Parameters
    ----------
    scenario : str
        Name of the scenario.
    model : str
        Name of the model card.
    fleet : str
        In words, such as ``2 x h100-sxm``.
    seed : int
    scenario_yaml : str
        The resolved scenario, every default filled in.
    llmsim_version : str
    hashes : mapping of str to str
        Of cards, traces and whatever else the run was made from, by name.
    wall_s : float [s]
        Time that the simulation took.
    """

    scenario: str
    model: str
    fleet: str
    seed: int
    scenario_yaml: str
    llmsim_version: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    wall_s: float = 0.0


@contextmanager
def new_folder(folder: Path, force: bool, mark: str = META) -> Iterator[Path]:
    """Give a folder to write into that takes its final name only when all is written.

    Parameters
    ----------
    folder : Path
        Final name.
    force : bool
        Replace a folder that is not empty.
    mark : str
        File that a folder must hold to be replaced: ``meta.json``, that of a run.

    Raises
    ------
    OutputError
        If the folder holds something and `force` is not set, if it has no `mark` (`force`
        never deletes anything else), or if it cannot be written.
    """
    check_free(folder, force, mark)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OutputError(f"cannot write next to {folder}: {error.strerror}") from error
    try:
        yield made
        made.chmod(0o777 & ~_umask())
        _swap(made, folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_free(folder: Path, force: bool, mark: str = META) -> None:
    """Raise `OutputError` if nothing can be saved under this name; cheap, so call it first."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is not a folder")
    check_place(folder, folder.parent)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise OutputError(f"{folder} is not empty; choose another folder, or force to replace it")
    if not (folder / mark).is_file():
        kind = "it is no run folder and" if mark == META else "it"
        raise OutputError(f"{folder} holds no {mark}: {kind} is not replaced")


def _swap(made: Path, folder: Path) -> None:
    """Put `made` where `folder` is; what was there goes only after the new one is in place."""
    if not folder.exists():
        made.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(aside / "old")
    try:
        made.rename(folder)
    except OSError:
        (aside / "old").rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def meta_json(
    info: RunInfo, facts: RunFacts, slo: Slo, warmup_s: float, outcomes: Mapping[str, int]
) -> str:
    """Return the text of ``meta.json``: all of a run that is neither a table nor a metric."""
    told = asdict(info)
    del told["scenario_yaml"]
    bins = sorted(facts.itl.counts)
    replicas = [
        {name: getattr(r, name) for name in _REPLICA_SCALARS}
        | {"bin_ns": r.timeline.bin_ns, "pins": None if r.pins is None else asdict(r.pins)}
        for r in facts.replicas
    ]
    document = {
        "schema": SCHEMA_VERSION,
        **told,
        "digest": facts.digest,
        "interrupted": facts.interrupted,
        "end_ns": facts.end_ns,
        "requests": facts.requests,
        "events": facts.events,
        "outcomes": dict(outcomes),
        "slo": asdict(slo),
        "warmup_s": warmup_s,
        "warnings": list(facts.warnings),
        "pools": [asdict(p) for p in facts.pools],
        "replicas": replicas,
        "tiers": [asdict(t) for t in facts.tiers],
        "links": [asdict(each) for each in facts.links],
        "stops": [asdict(s) for s in facts.stops],
        "stations": [asdict(s) for s in facts.stations],
        "refusals": facts.refusals,
        "holds": facts.holds,
        "itl": {"bins": bins, "counts": [facts.itl.counts[b] for b in bins]},
    }
    return json.dumps(document, indent=1) + "\n"


_REPLICA_SCALARS: Final = (
    "pool",
    "index",
    "steps",
    "events",
    "preemptions",
    "peak_kv_blocks",
    "lookup_tokens",
    "hit_tokens",
    "evicted_blocks",
    "billed_ns",
)


def write_timelines(facts: RunFacts, path: Path) -> None:
    """Write all timelines as one Parquet table of `TIMELINE_COLUMNS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sizes = [len(r.timeline.levels[LEVELS[0]]) for r in facts.replicas]
    names = [p.name for p in facts.pools]
    parts: dict[str, list[Any]] = {c.name: [np.empty(0)] for c in TIMELINE_COLUMNS}
    for replica, n in zip(facts.replicas, sizes, strict=True):
        data = replica.timeline
        parts["replica"].append(np.full(n, replica.index))
        parts["pool"].append(np.full(n, names.index(replica.pool)))
        parts["start_ns"].append(np.arange(n) * data.bin_ns)
        parts["bin_ns"].append(np.full(n, data.bin_ns))
        for name in (*LEVELS, *TOTALS):
            parts[name].append(data.levels[name] if name in LEVELS else data.totals[name])
    arrays = {}
    for column in TIMELINE_COLUMNS:
        kind = "int32" if column.dtype == "category" else column.dtype
        values = pa.array(np.concatenate(parts[column.name]).astype(kind))
        if column.dtype == "category":
            values = pa.DictionaryArray.from_arrays(values, pa.array(names, pa.string()))
        arrays[column.name] = values
    pq.write_table(pa.table(arrays), path, compression="zstd")


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what ``meta.json`` says.

    Raises
    ------
    InputError
        If it is missing, is not JSON, or has another schema version.
    """
    path = folder / META
    try:
        meta = parse_json(path.read_bytes())
    except OSError as error:
        fault = Fault(str(path), "", f"cannot be read ({error.strerror}); is this a run folder?")
        raise InputError(str(folder), [fault]) from error
    except ValueError as error:
        raise InputError(str(folder), [Fault(str(path), "", f"is not JSON: {error}")]) from error
    found = meta.get("schema") if isinstance(meta, dict) else None
    if found != SCHEMA_VERSION:
        message = f"read {found!r}, but this llmsim reads version {SCHEMA_VERSION}"
        raise InputError(str(folder), [Fault(str(path), "schema", message)])
    known: dict[str, Any] = meta
    return known


def read_run(folder: Path) -> tuple[RunInfo, RunFacts, Slo, float]:
    """Return info, facts, SLO and warm-up [s] of a saved run, exactly as they were.

    Raises
    ------
    InputError
        If a file is missing, cannot be read, or lacks something.
    """
    meta = read_meta(folder)
    missing = [
        Fault(str(folder / name), "", "this file is missing")
        for name in (REQUESTS, TIMELINES, SCENARIO)
        if not (folder / name).is_file()
    ]
    if missing:
        raise InputError(str(folder), missing)
    try:
        text = (folder / SCENARIO).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        fault = Fault(str(folder / SCENARIO), "", "is not UTF-8 text")
        raise InputError(str(folder), [fault]) from error
    try:
        return (
            _info(meta, text),
            _facts(meta, folder),
            Slo.from_json(meta["slo"]),
            float(meta["warmup_s"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        fault = Fault(str(folder / META), "", f"is not as llmsim writes it: {error!r}")
        raise InputError(str(folder), [fault]) from error


def _info(meta: Mapping[str, Any], scenario_yaml: str) -> RunInfo:
    names = [n for n in RunInfo.__dataclass_fields__ if n != "scenario_yaml"]
    return RunInfo(scenario_yaml=scenario_yaml, **{name: meta[name] for name in names})


def _facts(meta: Mapping[str, Any], folder: Path) -> RunFacts:
    _check_whole(meta, ("end_ns", "requests", "events"))
    histogram = LogHistogram()
    histogram.counts = dict(zip(meta["itl"]["bins"], meta["itl"]["counts"], strict=True))
    timelines = _read_timelines(folder / TIMELINES)
    replicas = tuple(_replica(told, timelines) for told in meta["replicas"])
    pools = {pool["name"] for pool in meta["pools"]}
    strangers = sorted({str(replica.pool) for replica in replicas} - pools)
    if strangers:
        raise KeyError(f"replicas of pools that are not there: {', '.join(strangers)}")
    return RunFacts(
        digest=meta["digest"],
        end_ns=meta["end_ns"],
        requests=meta["requests"],
        events=meta["events"],
        itl=histogram,
        pools=tuple(PoolFacts(**p) for p in meta["pools"]),
        replicas=replicas,
        interrupted=meta["interrupted"],
        warnings=tuple(meta["warnings"]),
        tiers=tuple(TierFacts(**t) for t in meta.get("tiers", ())),
        links=tuple(LinkFacts(**each) for each in meta.get("links", ())),
        stops=tuple(StopFacts(**s) for s in meta.get("stops", ())),
        stations=tuple(StationFacts(**s) for s in meta.get("stations", ())),
        refusals=meta.get("refusals", -1),
        holds=meta.get("holds", -1),
        changes=read_changes(folder),
        tokens=_read_tokens(folder / TOKENS),
        steps=StepLog.read(folder / STEPS),
    )


def _read_tokens(path: Path) -> TokenTimes | None:
    """Return the token times of a saved run as they were delivered, or None if it has none."""
    if not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: pa.Table = pq.read_table(path, columns=["request", "time_s"])
    except (pa.ArrowInvalid, KeyError) as error:
        raise InputError(str(path), [Fault(str(path), "", f"holds no tokens: {error}")]) from error
    # seconds in a float hold whole nanoseconds for the first hundred days
    time_ns = np.rint(table.column("time_s").to_numpy() * NS_PER_S).astype(np.int64)
    return TokenTimes(table.column("request").to_numpy().astype(np.int64), time_ns)


def _check_whole(told: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise ValueError for a count that is no whole number of 64 bits."""
    for name in names:
        value = told[name]
        if isinstance(value, float):
            raise ValueError(f"{name} is {value}, not a whole number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} is {value:g}, which no run reaches")


def _replica(told: Mapping[str, Any], timelines: Mapping[str, Any]) -> ReplicaFacts:
    _check_whole(told, ("bin_ns", *_REPLICA_SCALARS))
    if told["bin_ns"] < 1:
        raise ValueError(f"bin_ns is {told['bin_ns']}")
    mine = timelines["replica"] == told["index"]
    data = TimelineData(
        told["bin_ns"],
        {name: timelines[name][mine] for name in LEVELS},
        {name: timelines[name][mine] for name in TOTALS},
    )
    pins = told.get("pins")
    return ReplicaFacts(
        timeline=data,
        pins=None if pins is None else PinFacts(**pins),
        **{name: told[name] for name in _REPLICA_SCALARS},
    )


def _read_timelines(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: pa.Table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(str(path), [Fault(str(path), "", f"is not Parquet: {error}")]) from error
    wanted = [c.name for c in TIMELINE_COLUMNS]
    faults = [
        Fault(str(path), name, "this column is missing")
        for name in wanted
        if name not in table.column_names
    ]
    if faults:
        raise InputError(str(path), faults)
    return {name: table.column(name).to_numpy() for name in ("replica", *LEVELS, *TOTALS)}
