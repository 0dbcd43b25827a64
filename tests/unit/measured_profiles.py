"""A device whose times follow known smooth rooflines, for tests of measured profiles."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from llmsim.costmodel.measured import FAMILIES, Device, Types
from llmsim.costmodel.measured.means import MeanTerms, mean_s
from llmsim.costmodel.measured.profile import shape_names
from llmsim.specs import load_gpu
from llmsim.specs.profile_meta import ProfileMeta, write_meta
from llmsim.specs.profile_rows import write_rows

DEVICE = Device.of_card(load_gpu("h100-sxm"))
TRUE = {
    "gemm": MeanTerms(4e-6, 0.7, 0.85, 2.5),
    "attention_decode": MeanTerms(9e-6, 0.5, 0.9, 1.5, unit_s=1.5e-6),
    "attention_prefill": MeanTerms(1.1e-5, 0.6, 0.7, 1.5, unit_s=1e-6, idle=0.6),
    "norm": MeanTerms(3e-6, 0.75, 0.5, 1.5, cache_ratio=2.0),
    "all_reduce": MeanTerms(8e-6, 0.75, 0.08, 1.0),
    "moe": MeanTerms(4e-5, 0.5, 0.8, 2.0, 1e-7, 30.0, 2e-13),
}
GRIDS = {
    "gemm": {
        "m": (1, 8, 32, 128, 512, 2048, 8192),
        "n": (1024, 4096, 6144, 16384),
        "k": (1024, 4096, 14336),
    },
    "attention_decode": {
        "batch": (1, 8, 64, 256),
        "kv_len": (128, 512, 2048, 8192, 32768),
        "heads_q": (32,),
        "heads_kv": (8,),
        "head_dim": (128,),
        "window": (0,),
    },
    "attention_prefill": {
        "batch": (1, 4),
        "q_len": (64, 256, 1024, 4096),
        "kv_len": (0, 1024, 4096),
        "heads_q": (32,),
        "heads_kv": (8,),
        "head_dim": (128,),
        "window": (0,),
    },
    "norm": {"tokens": (1, 16, 256, 4096), "hidden": (4096,)},
    "all_reduce": {"message_bytes": (256, 65536, 2**20, 2**26), "gpus": (2, 4), "nodes": (1,)},
    "moe": {
        "tokens": (1, 8, 64, 512, 4096),
        "hidden": (4096,),
        "inter": (7168,),
        "topk": (2,),
        "experts": (8,),
        "experts_local": (8,),
        "skew": (0,),
    },
}


def rows(
    ops=tuple(GRIDS),
    noise: float = 0.0,
    kernel_id: str = "true.v1",
    libs: str = "lib 1",
    types: Types | None = None,
    factor: float = 1.0,
) -> list[dict]:
    """Return rows of the grids, each time the true one times log-normal noise."""
    random = np.random.default_rng(7)
    types = types or Types()
    made = []
    for op in ops:
        grid = GRIDS[op]
        for point in product(*grid.values()):
            shape = dict(zip(grid, point, strict=True))
            seconds = factor * true_s(op, shape, types) * np.exp(random.normal(0.0, noise))
            formats = {"dtype_a": types.a, "dtype_w": types.w, "dtype_kv": types.kv}
            key = {"op": op, "kernel_id": kernel_id, "libs": libs, **formats}
            made.append({**key, **shape, "graph": True, "t_median_us": 1e6 * seconds})
    return made


def true_s(op: str, shape: dict, types: Types | None = None) -> float:
    """Return the true time of one shape [s]."""
    family = FAMILIES[op]
    whole = {name: np.array([float(shape.get(name, 0))]) for name in shape_names(family)}
    return float(mean_s(family.work(whole, types or Types(), DEVICE), TRUE[op])[0])


def write_profile(folder: Path, made: list[dict], **meta) -> Path:
    """Write rows and meta of a synthetic profile on the H100 card."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.csv", made)
    device = {"name": "synthetic", "gpu_card": "h100-sxm"}
    write_meta(
        folder, ProfileMeta("synthetic", "synthetic", device, "2026-11-25T00:00:00Z", **meta)
    )
    return folder
