"""The table of splitwise-sim (MIT): whole steps of one model per GPU and tensor-parallel degree.

``data/perf_model.csv``; milliseconds per prompt and per token. They become rows of `whole_model`,
which check a cost model and price no operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmsim.core.errors import CardError, Fault
from llmsim.specs.importers.frames import Batch, Origin, rows_of

ORIGIN = Origin(
    "https://github.com/Mutinifni/splitwise-sim, data/perf_model.csv",
    "MIT, (c) the splitwise-sim authors. Measured by that project, not by llmsim; pass on with "
    "this notice.",
)
_NEEDED = (
    *("model", "hardware", "prompt_size", "batch_size", "token_size"),
    *("prompt_time", "token_time", "tensor_parallel"),
)


def read(source: Path) -> Iterator[Batch]:
    """Yield one batch per GPU.

    Parameters
    ----------
    source : Path
        ``perf_model.csv``, or a folder that holds it.

    Raises
    ------
    CardError
        If it is not there, or columns are missing.
    """
    import pandas as pd

    path = source if source.is_file() else next(iter(sorted(source.rglob("perf_model.csv"))), None)
    if path is None or not path.is_file():
        raise CardError("splitwise", [Fault(str(source), "", "no perf_model.csv here.")])
    frame = pd.read_csv(path)
    missing = [name for name in _NEEDED if name not in frame]
    if missing:
        faults = [Fault(f"{path}:1", name, "column is missing.") for name in missing]
        raise CardError(path.name, faults)
    for gpu, part in frame.groupby("hardware"):
        batch = Batch(str(gpu), "splitwise")
        shape = {
            "dtype_a": "bf16",
            "dtype_w": "bf16",
            "batch": "batch_size",
            "gpus": "tensor_parallel",
        }
        prompt = {
            **shape,
            "variant": part["model"] + " prompt",
            "phase": "prefill",
            "q_len": "prompt_size",
            "kv_len": 0,
        }
        # a token's time is the mean over the answer: half of it stands in the context
        token = {
            **shape,
            "variant": part["model"] + " token",
            "phase": "decode",
            "kv_len": part["prompt_size"] + part["token_size"] // 2,
        }
        batch.frames = [
            rows_of("whole_model", part, prompt, 1e3, "prompt_time"),
            rows_of("whole_model", part, token, 1e3, "token_time"),
        ]
        yield batch
