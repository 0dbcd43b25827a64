"""Tidy kernel tables: aiconfigurator's rows with engine and unit as columns, latencies in us.

Files ``gemm_<gpu>``, ``attention_prefill_<gpu>``, ``attention_decode_<gpu>``, ``moe_<gpu>``,
``comm``, ``mla_kernel`` and ``attention_mixed_batch_llmservingsim``, each ``.csv`` or ``.csv.gz``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim.core.errors import CardError, Fault
from llmsim.specs.importers import aiconfigurator, llmservingsim
from llmsim.specs.importers.aiconfigurator import version_number
from llmsim.specs.importers.frames import Batch, slug

if TYPE_CHECKING:
    from pandas import DataFrame

ORIGIN = aiconfigurator.ORIGIN
_RENAMED = {
    "kernel": "kernel_source",
    "isl": "isl",
    "batch": "batch_size",
    "num_kv_heads": "num_key_value_heads",
    "kv_dtype": "kv_cache_dtype",
}
_FILES = {
    "gemm_": ("gemm_perf", {"dtype": "gemm_dtype"}),
    "attention_prefill_": (
        "context_attention_perf",
        {"dtype": "attn_dtype", "prefix_len": "step"},
    ),
    "attention_decode_": ("generation_attention_perf", {"dtype": "attn_dtype", "kv_len": "step"}),
    "moe_": ("moe_perf", {"dtype": "moe_dtype"}),
}


def read(source: Path) -> Iterator[Batch]:
    """Yield one batch per GPU, engine and version; collectives go with every engine of the GPU.

    Parameters
    ----------
    source : Path
        Folder of the files.

    Raises
    ------
    CardError
        If there are none.
    """
    batches: dict[tuple[str, str], Batch] = {}
    for prefix, (table, renamed) in _FILES.items():
        for path in sorted(source.glob(f"{prefix}*.csv*")):
            frame = _frame(path)
            if "engine" in frame:
                _add(batches, table, frame.rename(columns={**_RENAMED, **renamed}))
    for path in sorted(source.glob("mla_kernel.csv*")):
        frame = _frame(path)
        for phase, table in (
            ("prefill", "context_mla_perf"),
            ("decode", "generation_mla_perf"),
        ):
            _add(batches, table, frame[frame["phase"] == phase])
    for path in sorted(source.glob("attention_mixed_batch_llmservingsim.csv*")):
        _add_mixed(batches, _frame(path))
    if not batches:
        fault = Fault(str(source), "", "no gemm_*, attention_*_* or moe_* tables here.")
        raise CardError("tidy tables", [fault])
    for path in sorted(source.glob("comm.csv*")):
        _add_comm(batches, _frame(path))
    yield from batches.values()


def _frame(path: Path) -> DataFrame:
    import pandas as pd

    return pd.read_csv(path)


def _add(batches: dict[tuple[str, str], Batch], table: str, frame: DataFrame) -> None:
    frame = frame.assign(latency=frame["latency_us"] * 1e-3)
    if table == "generation_attention_perf":
        frame = frame.assign(isl=0)
    for (gpu, engine, version), part in frame.groupby(["gpu", "engine", "engine_version"]):
        name = f"{engine}-{version}"
        batch = batches.setdefault(
            (str(gpu), name), Batch(str(gpu), name, libs={str(engine): str(version)})
        )
        aiconfigurator.add(batch, table, part, f"{engine} {version}")


def _add_mixed(batches: dict[tuple[str, str], Batch], frame: DataFrame) -> None:
    """Add attention of mixed batches, whose shapes are those of a model."""
    for (gpu, model, tp), part in frame.groupby(["gpu", "model", "tp"]):
        libs = {"llmservingsim": "5daddb21"}
        name = "llmservingsim"
        batch = batches.setdefault((str(gpu), name), Batch(str(gpu), name, libs=libs))
        card = llmservingsim.card_of(str(model).rpartition("/")[2])
        if card is None:
            batch.notes.append(f"attention of {model} left out: no card")
        else:
            batch.frames += llmservingsim.attention_rows(part, card, int(str(tp)))


def _add_comm(batches: dict[tuple[str, str], Batch], frame: DataFrame) -> None:
    """Add NCCL and the engine's own all-reduce to each engine of the GPU."""
    frame = frame[frame["source"] == "ai-dynamo/aiconfigurator"]
    kernel = frame["library"] + "." + frame["variant"].fillna("").astype(str)
    frame = frame.assign(
        kernel_source=kernel.str.rstrip("."),
        nccl_dtype=frame["dtype"],
        op_name=frame["op"],
        num_gpus=frame["n_gpu"],
        message_size=frame["bytes"] / 2,
        latency=frame["latency_us"] * 1e-3,
    )
    for (gpu, name), batch in batches.items():
        if name == "llmservingsim":
            continue
        ((engine, version),) = batch.libs.items()
        of_gpu = frame[frame["gpu"].map(slug) == slug(gpu)]
        for library, part in of_gpu.groupby("library"):
            if str(library) != "nccl" and not str(library).startswith(engine):
                continue
            versions = set(part["lib_version"].astype(str))
            used = version if version in versions else max(versions, key=version_number)
            batch.libs[str(library)] = used
            part = part[part["lib_version"].astype(str) == used]
            aiconfigurator.add(batch, "nccl_perf", part, f"{library} {used}")
