"""Profiles of LLMServingSim (MIT): operators of one layer inside vLLM, attention of mixed batches.

``profiler/perf/<gpu>/<model>/<variant>/tp<n>/{dense,per_sequence,attention}.csv`` in
microseconds. The tables name models, not shapes: shapes come from the model's card, and the rows
of a model without a card are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsim.core.errors import CardError, Fault
from llmsim.core.paths import list_data
from llmsim.specs.importers.frames import Batch, Origin, rows_of
from llmsim.specs.layers import DenseMlp, SoftmaxAttention
from llmsim.specs.load import load_model
from llmsim.specs.model import ModelSpec

if TYPE_CHECKING:
    from pandas import DataFrame

ORIGIN = Origin(
    "https://github.com/casys-kaist/LLMServingSim, profiler/perf",
    "MIT, (c) the LLMServingSim authors. Measured by that project, not by llmsim; pass on with "
    "this notice.",
)
_PRODUCTS = {
    "qkv_proj": "qkv",
    "o_proj": "o",
    "gate_up_proj": "gate_up",
    "down_proj": "down",
}


def read(source: Path) -> Iterator[Batch]:
    """Yield one batch per GPU.

    Parameters
    ----------
    source : Path
        The checkout, or its ``profiler/perf``.

    Raises
    ------
    CardError
        If there are no tables.
    """
    import pandas as pd

    batches: dict[str, Batch] = {}
    for path in sorted(source.rglob("tp*/*.csv")):
        if path.name not in ("dense.csv", "per_sequence.csv", "attention.csv"):
            continue
        tp = int(path.parent.name.removeprefix("tp"))
        variant, model, gpu = path.parts[-3], path.parts[-4], path.parts[-6]
        batch = batches.setdefault(gpu, Batch(gpu, "llmservingsim", libs=_libs(path)))
        card = card_of(model)
        if card is None or variant != "bf16":
            batch.notes.append(f"{path.name} of {model} ({variant}) left out: no card, or not bf16")
            continue
        frame = pd.read_csv(path)
        made = (
            attention_rows(frame, card, tp) if path.stem == "attention" else _dense(frame, card, tp)
        )
        batch.frames += made
    if not batches:
        raise CardError("llmservingsim", [Fault(str(source), "", "no tp*/dense.csv below.")])
    yield from (batch for batch in batches.values() if batch.frames)


def _libs(path: Path) -> dict[str, str]:
    import yaml

    meta = path.parent.parent / "meta.yaml"
    if not meta.is_file():
        return {}
    raw: Mapping[str, Any] = yaml.safe_load(meta.read_text(encoding="utf-8"))
    return {"vllm": str(raw.get("vllm_version", "")), "cuda": str(raw.get("cuda_version", ""))}


def card_of(model: str) -> ModelSpec | None:
    """Return the card whose name the model's starts with."""
    word = model.lower()
    names = [name for name in list_data("profiles/models", ".yaml") if word.startswith(name)]
    return load_model(max(names, key=len)) if names else None


def _kernel() -> dict[str, Any]:
    return {"kernel_id": "vllm", "libs": "llmservingsim", "dtype_a": "bf16", "dtype_w": "bf16"}


def _dense(frame: DataFrame, model: ModelSpec, tp: int) -> list[DataFrame]:
    shapes = {part.name: part for layer in model.layers for part in layer.linears(model.hidden, tp)}
    mlp = next((layer.mlp for layer in model.layers if isinstance(layer.mlp, DenseMlp)), None)
    inter = mlp.intermediate // tp if mlp is not None else 0
    tokens = "tokens" if "tokens" in frame else "sequences"
    made = []
    for theirs, ours in _PRODUCTS.items():
        part = frame[frame["layer"] == theirs]
        if ours in shapes and len(part):
            linear = shapes[ours]
            names = {**_kernel(), "m": tokens, "n": linear.n, "k": linear.k}
            made.append(rows_of("gemm", part, names, 1.0, "time_us"))
    head = frame[frame["layer"] == "lm_head"]
    if len(head):
        linear = model.head(tp)
        names = {**_kernel(), "m": tokens, "n": linear.n, "k": linear.k}
        made.append(rows_of("gemm", head, names, 1.0, "time_us"))
    elementwise: dict[str, tuple[str, dict[str, int]]] = {
        "act_fn": ("activation", {"inter": inter}),
        "layernorm": ("norm", {"hidden": model.hidden}),
        "input_layernorm": ("norm", {"hidden": model.hidden}),
    }
    for theirs, (op, shape) in elementwise.items():
        part = frame[frame["layer"] == theirs]
        if len(part) and all(shape.values()):
            names = {**_kernel(), "tokens": tokens, **shape}
            made.append(rows_of(op, part, names, 1.0, "time_us"))
    return made


def attention_rows(frame: DataFrame, model: ModelSpec, tp: int) -> list[DataFrame]:
    """Return rows of attention alone and of mixed batches.

    Parameters
    ----------
    frame : DataFrame
        prefill_chunk, kv_prefill, n_decode, kv_decode [tokens, requests], time_us [us].
    model : ModelSpec
        Whose heads they are.
    tp : int [GPUs]
    """
    mixer = next(
        (layer.mixer for layer in model.layers if isinstance(layer.mixer, SoftmaxAttention)), None
    )
    if mixer is None:
        return []
    frame = frame.rename(columns={"kv_prefill": "prefill_key"})
    shape = {
        **_kernel(),
        "kernel_id": "vllm.flash_attn",
        "dtype_kv": "bf16",
        "heads_q": mixer.heads // tp,
        "heads_kv": mixer.kv_heads_per_rank(tp),
        "head_dim": mixer.head_dim,
    }
    chunk, decode = frame["prefill_chunk"], frame["n_decode"]
    only_decode = frame[(chunk == 0) & (decode > 0)]
    only_prefill = frame[(chunk > 0) & (decode == 0)]
    both = frame[(chunk > 0) & (decode > 0)]
    kv = {"batch": "n_decode", "kv_len": "kv_decode", "phase": "decode"}
    slice_ = {"batch": 1, "q_len": "prefill_chunk", "kv_len": "prefill_key"}
    mixed = {**slice_, "decode_batch": "n_decode", "decode_kv_len": "kv_decode", "phase": "mixed"}
    return [
        rows_of("attention_decode", only_decode, {**shape, **kv}, 1.0, "time_us"),
        rows_of(
            "attention_prefill",
            only_prefill,
            {**shape, **slice_, "phase": "prefill"},
            1.0,
            "time_us",
        ),
        rows_of("attention_mixed", both, {**shape, **mixed}, 1.0, "time_us"),
    ]
