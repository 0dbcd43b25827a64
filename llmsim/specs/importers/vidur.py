"""Profiles of Vidur (MIT): operators of one layer, attention of one kind of batch, collectives.

``compute/<gpu>/<model>/mlp.csv`` and ``attention.csv``, ``network/<host>/all_reduce.csv`` and
``send_recv.csv``; medians in milliseconds, sizes of collectives in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmsim.core.errors import CardError, Fault
from llmsim.specs.importers.frames import Batch, Origin, rows_of

if TYPE_CHECKING:
    from pandas import DataFrame, Series

ORIGIN = Origin(
    "https://github.com/microsoft/vidur, data/profiling",
    "MIT, (c) Microsoft Corporation. Measured by the Vidur project, not by llmsim; pass on with "
    "this notice.",
)
_MS = 1e3
_KERNEL = {"kernel_id": "vidur", "libs": "vidur", "dtype_a": "bf16", "dtype_w": "bf16"}


def read(source: Path) -> Iterator[Batch]:
    """Yield one batch per GPU.

    Parameters
    ----------
    source : Path
        The checkout, or its ``data/profiling``.

    Raises
    ------
    CardError
        If there are no tables, or one lacks its time columns.
    """
    import pandas as pd

    batches: dict[str, Batch] = {}
    readers = {
        "mlp.csv": _layers,
        "attention.csv": _attention,
        "all_reduce.csv": _network,
        "send_recv.csv": _network,
    }
    for path in sorted(source.rglob("*.csv")):
        reader = readers.get(path.name)
        parts = path.parts
        if reader is None or "profiling" not in parts:
            continue
        kind, gpu = parts[parts.index("profiling") + 1 :][:2]
        if kind not in ("compute", "network"):
            continue
        gpu = gpu.split("_")[0]
        batch = batches.setdefault(gpu, Batch(gpu, "vidur"))
        frame = pd.read_csv(path)
        if not any(str(name).startswith("time_stats.") for name in frame):
            batch.notes.append(f"{path.name} of {parts[-2]} has no times and is left out")
            continue
        batch.frames += reader(frame, path)
    if not batches:
        fault = Fault(str(source), "", "no compute/ or network/ tables below profiling/.")
        raise CardError("vidur", [fault])
    yield from (batch for batch in batches.values() if batch.frames)


def _median(operator: str) -> str:
    return f"time_stats.{operator}.median"


def _layers(frame: DataFrame, path: Path) -> list[DataFrame]:
    """Return the matrix products and elementwise operators of ``mlp.csv``."""
    tp = frame["num_tensor_parallel_workers"]
    hidden, heads, kv = frame["n_embd"], frame["n_head"], frame["n_kv_head"]
    width = hidden // heads
    gated = 1 + frame["use_gated_mlp"].astype(int)
    inter = frame["n_expanded_embd"] // tp
    products: dict[str, tuple[Series[int], Series[int]]] = {
        "attn_pre_proj": ((heads // tp + 2 * (kv // tp).clip(lower=1)) * width, hidden),
        "attn_post_proj": (hidden, heads // tp * width),
        "mlp_up_proj": (gated * inter, hidden),
        "mlp_down_proj": (hidden, inter),
    }
    made = []
    for operator, (n, k) in products.items():
        if _median(operator) in frame:
            names = {**_KERNEL, "m": "num_tokens", "n": n, "k": k}
            made.append(rows_of("gemm", frame, names, _MS, _median(operator)))
    elementwise = {
        "input_layernorm": ("norm", {"hidden": hidden}),
        "mlp_act": ("activation", {"inter": inter}),
        "add": ("residual_add", {"hidden": hidden}),
        "attn_rope": (
            "rope",
            {
                "heads_q": heads // tp,
                "heads_kv": (kv // tp).clip(lower=1),
                "head_dim": width,
            },
        ),
    }
    for operator, (op, shape) in elementwise.items():
        if _median(operator) in frame:
            names = {**_KERNEL, "tokens": "num_tokens", **shape}
            made.append(rows_of(op, frame, names, _MS, _median(operator)))
    return made


def _attention(frame: DataFrame, path: Path) -> list[DataFrame]:
    tp = frame["num_tensor_parallel_workers"]
    shape = {
        **_KERNEL,
        "kernel_id": frame["attention_backend"].astype(str).str.split(".").str[-1].str.lower(),
        "dtype_kv": "bf16",
        "batch": "batch_size",
        "heads_q": frame["n_q_head"] // tp,
        "heads_kv": (frame["n_kv_head"] // tp).clip(lower=1),
        "head_dim": frame["n_embd"] // frame["n_q_head"],
        "page": "block_size",
    }
    prefill = frame["is_prefill"].astype(bool)
    made = []
    if _median("attn_prefill") in frame:
        names = {**shape, "phase": "prefill", "q_len": "prefill_chunk_size"}
        names["kv_len"] = "kv_cache_size"
        rows = rows_of("attention_prefill", frame, names, _MS, _median("attn_prefill"))
        made.append(rows[prefill.loc[rows.index]])
    if _median("attn_decode") in frame:
        names = {**shape, "phase": "decode", "kv_len": "kv_cache_size"}
        rows = rows_of("attention_decode", frame, names, _MS, _median("attn_decode"))
        made.append(rows[~prefill.loc[rows.index]])
    return made


def _network(frame: DataFrame, path: Path) -> list[DataFrame]:
    """Return collectives; hosts with paired NVLink are kept apart by their variant."""
    ours = {"all_reduce": "all_reduce", "send_recv": "p2p"}
    per_node = frame["devices_per_node"].clip(lower=1)
    made = []
    for theirs, op in ours.items():
        part = frame[frame["collective"] == theirs]
        if len(part) and _median(theirs) in part:
            names = {
                **_KERNEL,
                "kernel_id": f"nccl.{path.parent.name}",
                "message_bytes": "size",
                "gpus": "num_workers",
                "nodes": -(-part["num_workers"] // per_node.loc[part.index]),
            }
            made.append(rows_of(op, part, names, _MS, _median(theirs)))
    return made
