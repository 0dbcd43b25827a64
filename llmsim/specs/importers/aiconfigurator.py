"""Tables of aiconfigurator (Apache-2.0): kernels called through the engines' own layers.

Read from an installed ``aiconfigurator-core`` package (``systems/data/<gpu>/<what>/<engine>/
<version>/*_perf.parquet``) or a checkout's older layout (``.../<gpu>/<engine>/<version>/
*_perf.txt``). Latencies are milliseconds; message sizes of collectives count elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim.core.errors import CardError, Fault
from llmsim.specs.importers.floors import without_untuned
from llmsim.specs.importers.frames import Batch, Origin, rows_of, split_formats
from llmsim.specs.importers.scales import without_scale_pass

if TYPE_CHECKING:
    from pandas import DataFrame

ORIGIN = Origin(
    "https://github.com/ai-dynamo/aiconfigurator, systems/data",
    "Apache-2.0, (c) NVIDIA CORPORATION & AFFILIATES. Measured by the aiconfigurator project, not "
    "by llmsim; pass on with this notice.",
)
_MS = 1e3
TABLES = (
    *("gemm_perf", "context_attention_perf", "generation_attention_perf", "moe_perf"),
    *("context_mla_perf", "generation_mla_perf", "nccl_perf", "custom_allreduce_perf"),
    "computescale_perf",
)
_OWN_SCALES = "trtllm"
"""The engine whose per-tensor fp8 checkpoints bring the scales of their activations."""
_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "alltoall": "all_to_all",
    "reduce_scatter": "reduce_scatter",
}


def read(source: Path) -> Iterator[Batch]:
    """Yield one batch per GPU, engine and version; NCCL rows go with every engine of the GPU.

    Parameters
    ----------
    source : Path
        The package folder, its ``systems/data``, or one GPU's folder in there.

    Raises
    ------
    CardError
        If there are no tables below it.
    """
    files = [
        path
        for path in sorted(source.rglob("*_perf.*"))
        if path.stem in TABLES and path.suffix in (".parquet", ".txt", ".csv")
    ]
    if not files:
        fault = Fault(str(source), "", "no *_perf.parquet or *_perf.txt below.")
        raise CardError("aiconfigurator", [fault])
    by_gpu: dict[str, list[Path]] = {}
    for path in files:
        by_gpu.setdefault(_gpu(path), []).append(path)
    for gpu, paths in by_gpu.items():
        yield from _batches(gpu, paths)


def _gpu(path: Path) -> str:
    """Return the system folder that a table lies in."""
    parts = path.parts
    if "data" in parts:
        place = len(parts) - 1 - parts[::-1].index("data")
        return parts[place + 1]
    return parts[-5] if len(parts) >= 5 else parts[0]


def _batches(gpu: str, paths: list[Path]) -> Iterator[Batch]:
    batches: dict[str, Batch] = {}
    collectives: dict[str, list[Path]] = {}
    passes = {path.parts[-3:-1]: path for path in paths if path.stem == "computescale_perf"}
    for path in paths:
        engine, version = path.parts[-3], path.parts[-2]
        if path.stem == "computescale_perf":
            continue
        if path.stem in ("nccl_perf", "custom_allreduce_perf"):
            collectives.setdefault(engine, []).append(path)
            continue
        name = f"{engine}-{version}"
        batch = batches.setdefault(name, Batch(gpu, name, libs={engine: version}))
        table = _table(path)
        if path.stem == "gemm_perf" and engine == _OWN_SCALES and (engine, version) in passes:
            table = without_scale_pass(table, _table(passes[engine, version]), batch)
        if path.stem == "gemm_perf":
            table = without_untuned(table, engine, batch)
        add(batch, path.stem, table, f"{engine} {version}")
    for batch in batches.values():
        ((engine, version),) = batch.libs.items()
        for library in ("nccl", engine):
            versions = {path.parts[-2]: path for path in collectives.get(library, [])}
            if versions:
                used = version if version in versions else max(versions, key=version_number)
                batch.libs[library if library == "nccl" else f"{library} all-reduce"] = used
                add(batch, versions[used].stem, _table(versions[used]), f"{library} {used}")
        yield batch


def version_number(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, by which the newest is found."""
    digits = "".join(letter if letter.isdecimal() else " " for letter in version)
    return tuple(int(part) for part in digits.split())


def _table(path: Path) -> DataFrame:
    import pandas as pd

    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.read_bytes()[:40].startswith(b"version https://git-lfs"):
        message = "is a Git LFS pointer: fetch the file itself, or install aiconfigurator-core."
        raise CardError(path.name, [Fault(str(path), "", message)])
    return pd.read_csv(path)


def add(batch: Batch, table: str, frame: DataFrame, libs: str) -> None:
    """Add the rows of one table, in the columns that aiconfigurator publishes.

    Parameters
    ----------
    batch : Batch
    table : str
        One of `TABLES`.
    frame : DataFrame
    libs : str
    """
    kernel = {"kernel_id": "kernel_source", "libs": libs, "graph": True}
    if table == "gemm_perf":
        kept = split_formats(frame, "gemm_dtype", batch, "gemm")
        names = {**kernel, "dtype_a": "dtype_a", "dtype_w": "dtype_w", "m": "m", "n": "n", "k": "k"}
        batch.frames.append(rows_of("gemm", kept, names, _MS, "latency"))
    elif table in ("context_attention_perf", "generation_attention_perf"):
        batch.frames.append(_attention(table, frame, kernel, batch))
    elif table in ("context_mla_perf", "generation_mla_perf"):
        batch.frames.append(_mla(table, frame, kernel))
    elif table == "moe_perf":
        batch.frames.append(_moe(frame, kernel, batch))
    else:
        batch.frames.append(_collectives(frame, kernel))


def _attention(table: str, frame: DataFrame, kernel: dict[str, object], batch: Batch) -> DataFrame:
    kept = split_formats(frame, "attn_dtype", batch, "attention")
    window = kept["window_size"] if "window_size" in kept else kept["step"] * 0
    names = {
        **kernel,
        "dtype_a": "dtype_a",
        "dtype_w": "dtype_w",
        "dtype_kv": kept["kv_cache_dtype"].map(_kv),
        "batch": "batch_size",
        "heads_q": "num_heads",
        "heads_kv": _kv_heads(kept),
        "head_dim": "head_dim",
        "window": window.fillna(0).clip(lower=0).astype(int),
    }
    if table == "context_attention_perf":
        names |= {"phase": "prefill", "q_len": "isl", "kv_len": "step"}
        return rows_of("attention_prefill", kept, names, _MS, "latency")
    names |= {"phase": "decode", "kv_len": kept["isl"] + kept["step"]}
    return rows_of("attention_decode", kept, names, _MS, "latency")


def _kv_heads(frame: DataFrame) -> object:
    """Older tables write 0 KV heads for as many as query heads."""
    heads = frame["num_key_value_heads"]
    return heads.where(heads > 0, frame["num_heads"])


def _kv(word: str) -> str:
    return "fp8" if word.startswith("fp8") else "bf16"


def _mla(table: str, frame: DataFrame, kernel: dict[str, object]) -> DataFrame:
    names = {
        **kernel,
        "dtype_a": "bf16",
        "dtype_kv": frame["kv_cache_dtype"].map(_kv),
        "batch": "batch_size",
        "heads_q": "num_heads",
    }
    if table == "context_mla_perf":
        names |= {"phase": "prefill", "q_len": "isl", "kv_len": "step"}
        return rows_of("mla_prefill", frame, names, _MS, "latency")
    names |= {"phase": "decode", "kv_len": frame["isl"] + frame["step"]}
    return rows_of("mla_decode", frame, names, _MS, "latency")


def _moe(frame: DataFrame, kernel: dict[str, object], batch: Batch) -> DataFrame:
    plain = ~frame["kernel_source"].str.contains("nongated")
    if (~plain).any():
        batch.notes.append(f"{int((~plain).sum())} rows of experts without gate left out")
    kept = split_formats(frame[plain], "moe_dtype", batch, "moe")
    skew = kept["distribution"].str.extract(r"power_law_([\d.]+)")[0].astype(float).fillna(0.0)
    names = {
        **kernel,
        "dtype_a": "dtype_a",
        "dtype_w": "dtype_w",
        "tokens": "num_tokens",
        "hidden": "hidden_size",
        "inter": (kept["inter_size"] // kept["moe_tp_size"]).clip(lower=1),
        "topk": "topk",
        "experts": "num_experts",
        "experts_local": (kept["num_experts"] // kept["moe_ep_size"]).clip(lower=1),
        "skew": skew,
    }
    return rows_of("moe", kept, names, _MS, "latency")


def _collectives(frame: DataFrame, kernel: dict[str, object]) -> DataFrame:
    import pandas as pd

    dtype = "nccl_dtype" if "nccl_dtype" in frame else "allreduce_dtype"
    frame = frame[frame[dtype].isin(["half", "float16", "bfloat16"])]
    eager = frame["kernel_source"].str.contains("eager")
    parts = []
    for theirs, ours in _COLLECTIVES.items():
        kept = frame[frame["op_name"].isin([theirs, theirs.replace("_", "")])]
        names = {
            **kernel,
            "dtype_a": "bf16",
            "graph": ~eager.loc[kept.index],
            "message_bytes": kept["message_size"] * 2,
            "gpus": "num_gpus",
            "nodes": 1,
        }
        parts.append(rows_of(ours, kept, names, _MS, "latency"))
    return pd.concat(parts)
