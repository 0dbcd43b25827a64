"""Many cases: simulated on several cores, each once, with what is known kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmsim.core.errors import LlmsimError
from llmsim.fidelity.assumptions import assume
from llmsim.fidelity.cases import Case, Key
from llmsim.fidelity.prediction import Prediction, predict
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.scenarios import DEFAULTS, NotSimulatedError, Options, front_of, scenario_data
from llmsim.study.executor import Executor, open_workers
from llmsim.study.points import code_hash

_NAMES: Final = ("name", "description")
"""Keys of a scenario that nothing depends on."""


@dataclass(frozen=True, slots=True)
class Work:
    """A case ready to be simulated.

    Parameters
    ----------
    case : Case
    data : mapping
        Its scenario.
    window : (first, last) or None
        Requests that count.
    tpot_of_means : bool
    front_s : float [s]
        From the client's call to the engine.
    """

    case: Case
    data: Mapping[str, Any]
    window: tuple[int, int] | None
    tpot_of_means: bool
    front_s: float

    @property
    def counted(self) -> tuple[tuple[int, int] | None, bool, float]:
        """How the result is read: what `predict` takes besides the scenario."""
        return self.window, self.tpot_of_means, self.front_s

    def key(self, code: str) -> str:
        """Return what identifies the result: the scenario, what is counted, and the code."""
        asked = {key: value for key, value in self.data.items() if key not in _NAMES}
        told = json.dumps([asked, *self.counted, _tables_of(self.data)], sort_keys=True)
        return hashlib.blake2b(f"{code}{told}".encode(), digest_size=16).hexdigest()

    @property
    def priced(self) -> str:
        """What its kernels are priced by: profiles as ``<device>/<id>``, or the kind of cost."""
        cost = _cost_of(self.data)
        if "profile" not in cost:
            return str(cost["kind"])
        others = [f"{op} {Path(each).name}" for op, each in cost.get("profiles", {}).items()]
        return ", ".join(["/".join(Path(cost["profile"]).parts[-2:]), *others])


def _cost_of(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how steps are priced, which is alike in all pools of a case."""
    cost: Mapping[str, Any] = next(iter(data["fleet"]["pools"].values()))["cost"]
    return cost


def _tables_of(data: Mapping[str, Any]) -> str:
    """Return what identifies the kernel tables of a scenario, besides their folders' names."""
    cost = _cost_of(data)
    folders = [cost["profile"]] if "profile" in cost else []
    metas = [Path(each) / "meta.json" for each in (*folders, *cost.get("profiles", {}).values())]
    return "".join(meta.read_text(encoding="utf-8") for meta in metas if meta.is_file())


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a case.

    Parameters
    ----------
    case : Case
    prediction : Prediction or None
        None when it was not simulated.
    reason : str
        Why not; empty when it was.
    """

    case: Case
    prediction: Prediction | None
    reason: str = ""


def prepare(
    cases: Iterable[Case], files: RequestFiles | None = None, options: Options = DEFAULTS
) -> tuple[list[Work], list[Replayed]]:
    """Return what can be simulated, and what cannot, with the reason.

    Parameters
    ----------
    cases : iterable of Case
    files : RequestFiles or None
        Recorded requests that some of the cases are replayed from.
    options : Options
    """
    ready: list[Work] = []
    left: list[Replayed] = []
    for case in cases:
        try:
            found = files.find(case) if files is not None else None
            data = scenario_data(case, options, found.trace if found else None)
        except NotSimulatedError as error:
            left.append(Replayed(case, None, str(error)))
            continue
        window = found.window if found else None
        known = assume(case)
        front_s, *_ = front_of(case, {**known.client, **options.client})
        ready.append(Work(case, data, window, known.tpot_of_means, front_s))
    return ready, left


def simulate_all(
    work: Sequence[Work],
    store: Store | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Replayed]:
    """Simulate every case, equal ones once, and return them in the order given.

    Parameters
    ----------
    work : sequence of Work
    store : Store or None
        What is known already; new results are added as they come, so that an interrupted run
        goes on where it was.
    jobs : int
        Processes.
    progress : callable or None
        Called with (simulations done, simulations in all).
    """
    code = replay_hash()
    keys = [item.key(code) for item in work]
    known: dict[str, dict[str, Any]] = dict(store.load()) if store is not None else {}
    todo: dict[str, Work] = {}
    for key, item in zip(keys, work, strict=True):
        if key not in known:
            todo.setdefault(key, item)
    # The largest first, so that no core is left alone with one at the end.
    order = sorted(todo, key=lambda key: -_size(todo[key]))
    for done, (key, record) in enumerate(_run(order, todo, jobs), 1):
        known[key] = record
        if store is not None:
            store.add(key, record)
        if progress is not None:
            progress(done, len(order))
    return [_replayed(item.case, known[key]) for key, item in zip(keys, work, strict=True)]


def _size(item: Work) -> float:
    case = item.case
    each = case.number("osl") or 1.0
    return (case.number("concurrency") or case.number("num_requests") or 1.0) * each


def _run(
    order: Sequence[str], todo: Mapping[str, Work], jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    tasks = [(key, todo[key].data, *todo[key].counted) for key in order]
    with open_workers(Executor("local", jobs)) as workers:
        for _, made in workers.completed(_one, tasks):
            yield made


def _one(
    key: str,
    data: Mapping[str, Any],
    window: tuple[int, int] | None,
    tpot_of_means: bool,
    front_s: float,
) -> tuple[str, dict[str, Any]]:
    """Simulate one case; runs in a worker, so everything in and out is plain."""
    began = time.perf_counter()
    try:
        found = predict(data, window, tpot_of_means, front_s)
    except LlmsimError as error:
        return key, {"reason": str(error)}
    values = [[metric, stat, value] for (metric, stat), value in found.values.items()]
    seconds = time.perf_counter() - began
    warnings = list(found.warnings)
    return key, {
        "values": values,
        "blocks": found.kv_blocks,
        "warnings": warnings,
        "wall_s": seconds,
    }


def _replayed(case: Case, record: Mapping[str, Any]) -> Replayed:
    if "reason" in record:
        return Replayed(case, None, _short(record["reason"]))
    values: dict[Key, float] = {(metric, stat): value for metric, stat, value in record["values"]}
    return Replayed(case, Prediction(values, record["blocks"], tuple(record["warnings"])))


def _short(reason: str) -> str:
    """Return an error on one line, the first fault alone."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]


class Store:
    """Results on disk, one line each, found again by content hash.

    Parameters
    ----------
    path : Path
        A file of JSON lines; made when the first result comes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (key, record) of every line that is whole."""
        if not self._path.is_file():
            return
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                # The last line of a run that was killed may be cut.
                if line.endswith("\n"):
                    row = json.loads(line)
                    yield row.pop("key"), row

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Append one result."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **record}) + "\n")


def cache_folder() -> Path:
    """Return where results are kept: ``$XDG_CACHE_HOME/llmsim``, or ``~/.cache/llmsim``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "llmsim"


def default_store() -> Store:
    """Return the store of this version of code and cards."""
    return Store(cache_folder() / f"validate-{replay_hash()}.jsonl")


def replay_hash() -> str:
    """Return a hash of the code that simulates a case and reads it as its client would."""
    return code_hash(Path(__file__).with_name("prediction.py"))
