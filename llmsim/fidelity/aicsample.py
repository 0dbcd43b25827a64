"""The measured sample inside the package `aiconfigurator`, as cases.

``systems/silicon_sample.csv`` of aiconfigurator_core (Apache-2.0; most rows come from SemiAnalysis
InferenceX, whose attribution is required): mean TTFT and TPOT of real runs, a row each.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llmsim.core.errors import CardError, Fault, InputError, nearest
from llmsim.core.paths import list_data
from llmsim.fidelity.cases import FILES, Case, Key
from llmsim.specs.cards import find_card

NAME: Final = "silicon_sample.csv"

_NEEDED: Final = (
    *("id", "silicon_data_source", "backend", "backend_version", "model_path", "system"),
    *("precision", "mode", "isl", "osl", "tp_size", "pp_size", "attention_dp_size"),
    *("moe_ep_size", "silicon_ttft_ms", "silicon_tpot_ms"),
)

_GPUS: Final[Mapping[str, str]] = {
    "h100_sxm": "H100-80G-SXM",
    "h200_sxm": "H200-141G-SXM",
    "b200_sxm": "B200",
    "b300_sxm": "B300",
    "gb200": "GB200",
    "gb300": "GB300",
}
"""Names of GPUs as measurements have them."""

_INFERENCEX: Final = "InferenceX random (lengths ~ U[0.8,1.0] x nominal)"
_WEIGHTS: Final = re.compile(r"-(fp8|nvfp4|fp4)$")


def find_sample(place: Path) -> Path | None:
    """Return the sample that a path means: the file, or a folder (a package) that holds it.

    A folder with a table of cases is what it is.
    """
    if place.is_file():
        return place if place.name == NAME else None
    if any((place / name).is_file() for name in FILES):
        return None
    return next(iter(sorted(place.glob(f"**/systems/{NAME}"))), None)


def read_sample(path: Path) -> list[Case]:
    """Read the sample.

    Returns
    -------
    list of Case
        Quality B where one replica served all (concurrency known, no attention data parallelism,
        no pipeline); C, not to be scored, where the row leaves its layout open: disaggregated runs,
        and DeepSeek, whose speculative decoding is not recorded.

    Raises
    ------
    InputError
        If columns are missing, or a row holds no numbers.
    """
    found, faults = [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        missing = [
            Fault(f"{path}:1", name, "this column is missing.", nearest(name, header))
            for name in _NEEDED
            if name not in header
        ]
        if missing:
            raise InputError(str(path), missing)
        cards = list_data("profiles/models", ".yaml")
        for row in reader:
            try:
                found.append(_case(row, reader.line_num, cards))
            except ValueError as error:
                faults.append(Fault(f"{path}:{reader.line_num}", "", str(error)))
    if faults:
        raise InputError(str(path), faults)
    return found


def _case(row: Mapping[str, str], line: int, cards: Mapping[str, Path]) -> Case:
    shared = row["mode"] == "agg"
    inside = "/" in row["silicon_data_source"].split(";")[0].removeprefix("source_file=")
    internal = inside and not row["silicon_data_source"].startswith("db-dump")
    slots = _concurrency(row)
    tp, ranks, stages, experts = (
        _whole(row[name]) for name in ("tp_size", "attention_dp_size", "pp_size", "moe_ep_size")
    )
    model = _model(row["model_path"], cards)
    clear = shared and slots and tp and (ranks or 1) == 1 and (stages or 1) == 1
    known = clear and not model.startswith("deepseek")
    fields = {
        "source": "aic-silicon-internal" if internal else "aic-silicon-inferencex",
        "source_path": f"{NAME} id={row['id']}",
        "model": row["model_path"],
        "model_key": model,
        "gpu": _GPUS.get(row["system"], row["system"]),
        "n_gpu": str(tp) if known else "",
        "tp": str(tp or ""),
        "pp": str(stages or ""),
        "ep": str(experts or ""),
        "dp": str(ranks or ""),
        "disagg": "" if shared else "prefill and decode workers",
        "engine": row["backend"],
        "engine_version": row["backend_version"],
        "quant": "" if row["precision"] in ("bf16", "nan") else row["precision"],
        "workload": "fixed lengths" if internal else _INFERENCEX,
        "isl": row["isl"],
        "osl": row["osl"],
        "arrival": "closed loop",
        "concurrency": str(slots or ""),
        "notes": row["silicon_data_source"],
    }
    return Case(row["id"], "B" if known else "C", fields, _measured(row), line)


def _concurrency(row: Mapping[str, str]) -> int | None:
    """Return requests in flight: as stated, as in the id, or the batch that was asked for."""
    stated = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    named = re.search(r"_c(\d+)_", row["id"])
    found = stated or named
    return int(found.group(1)) if found else _whole(row.get("batch_size", ""))


def _model(path: str, cards: Mapping[str, Path]) -> str:
    """Return the architecture's card: that of the checkpoint, without the format of its weights."""
    try:
        name = find_card("profiles/models", path).stem
    except CardError:
        return path
    plain = _WEIGHTS.sub("", name)
    return plain if plain in cards else name


def _measured(row: Mapping[str, str]) -> dict[Key, float]:
    times = {"ttft": row["silicon_ttft_ms"], "tpot": row["silicon_tpot_ms"]}
    return {(metric, "mean"): float(value) / 1e3 for metric, value in times.items() if value}


def _whole(text: str) -> int | None:
    return round(float(text)) if text else None
