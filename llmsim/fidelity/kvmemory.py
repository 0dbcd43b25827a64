"""KV capacities that engines logged, against the memory plan."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmsim.core.errors import CardError, Fault, InputError, LlmsimError, nearest
from llmsim.core.units import GIB
from llmsim.costmodel import plan_memory
from llmsim.fidelity.assumptions import assume
from llmsim.fidelity.cases import Case
from llmsim.specs import EngineLimits, ModelSpec, ParallelPlan, load_gpu, load_model

FILE: Final = "kv_memory.csv"

BAR_GIB: Final = 1.0
"""A prediction within this of the log is right [GiB]."""

_NEEDED: Final = ("model", "gpu", "tp", "engine", "engine_version")


@dataclass(frozen=True, slots=True)
class KvRow:
    """One logged capacity and its prediction, per GPU.

    Parameters
    ----------
    name : str
        Model, GPU, tp and engine.
    line : int
    measured_gib, predicted_gib : float or None [GiB]
        None when it is not logged, or could not be predicted.
    scored : bool
        Whether the log says enough: engine version and batch limit.
    note : str
        The terms that differ, or why there is no prediction.
    """

    name: str
    line: int
    measured_gib: float | None
    predicted_gib: float | None
    scored: bool
    note: str

    @property
    def error_gib(self) -> float | None:
        """Predicted less measured [GiB]."""
        if self.measured_gib is None or self.predicted_gib is None:
            return None
        return self.predicted_gib - self.measured_gib


def check_kv_memory(folder: Path) -> list[KvRow]:
    """Return a row for every logged capacity; none when the folder has no such file.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    InputError
        If a column is missing.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        faults = [
            Fault(f"{path}:1", name, "this column is missing.", nearest(name, header))
            for name in _NEEDED
            if name not in header
        ]
        if faults:
            raise InputError(str(path), faults)
        return [_check(row, reader.line_num) for row in reader]


def _check(row: Mapping[str, str], line: int) -> KvRow:
    case = Case(f"line {line}", "A", row, {}, line)
    name = f"{row['model']} on {row['tp']} x {row['gpu']}, {row['engine']} {row['engine_version']}"
    known = bool(case.whole("max_num_seqs") and case.whole("max_num_batched_tokens"))
    known = known and bool(row["engine_version"]) and "stated" not in row["engine_version"]
    try:
        model = _card_of(row["model"])
        gpu = load_gpu(row["gpu"])
    except LlmsimError as error:
        return KvRow(name, line, _measured(case, None), None, False, str(error).splitlines()[-1])
    engine = assume(case).engine
    tp = case.whole("tp") or 1
    limits = EngineLimits(
        max_num_seqs=case.whole("max_num_seqs") or engine["max_num_seqs"],
        max_num_batched_tokens=case.whole("max_num_batched_tokens")
        or engine["max_num_batched_tokens"],
        max_model_len=case.whole("max_model_len") or model.max_context_tokens,
        block_tokens=case.whole("block_size") or engine["block_tokens"],
    )
    share = case.number("gpu_memory_utilization") or engine["gpu_memory_utilization_frac"]
    measured = _measured(case, model, tp)
    try:
        plan = plan_memory(model, gpu, ParallelPlan(tp), limits, share)
    except LlmsimError as error:
        return KvRow(name, line, measured, None, known, str(error).splitlines()[0])
    note = _terms(
        case,
        (
            ("weights", "weights_gib_per_gpu", plan.weights_bytes),
            ("activation", "activation_gib", plan.activation_bytes),
            ("non-torch", "non_torch_gib", plan.reserve_bytes),
        ),
    )
    if not known:
        note = f"batch limit or version not logged, defaults assumed; {note}".rstrip("; ")
    return KvRow(name, line, measured, plan.kv_bytes / GIB, known, note)


def _terms(case: Case, terms: Sequence[tuple[str, str, float]]) -> str:
    """Name the logged terms that differ from the plan's, each with both numbers."""
    told = []
    for word, column, planned_bytes in terms:
        logged = case.number(column)
        if logged is not None:
            told.append(f"{word} {planned_bytes / GIB:.2f} against {logged:.2f} GiB")
    return ", ".join(told)


def _measured(case: Case, model: ModelSpec | None, tp: int = 1) -> float | None:
    """Return the logged KV memory per GPU [GiB], from tokens where it is not logged itself."""
    found = case.number("kv_cache_gib_per_gpu")
    tokens = case.number("kv_capacity_tokens")
    if found is None and tokens is not None and model is not None:
        found = tokens * model.kv_bytes_per_token(tp, model.kv_dtype) / GIB
    return found


def _card_of(name: str) -> ModelSpec:
    """Return the card of a model that a log names like its repository, owner first."""
    try:
        return load_model(name)
    except CardError:
        return load_model(name.rsplit("/", 1)[-1])
