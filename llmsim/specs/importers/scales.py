"""Products in 8 bits without the pass that finds a scale for their activations.

aiconfigurator times TensorRT-LLM's per-tensor fp8 products with scales found on the fly: before it
quantises, the engine reads the activations once for their maximum. Checkpoints that it serves in
this format (ModelOpt's) bring their scales, and the pass never runs. It is timed on its own
(``computescale_perf``: 8 us for few tokens on B200, where the product of 5120 x 5120 takes 19 with
it), and aiconfigurator itself subtracts it for such checkpoints (``fp8_static``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

    from llmsim.specs.importers.frames import Batch

    Floats = NDArray[np.float64]

SCALED: Final = "fp8"
"""``gemm_dtype`` of per-tensor products whose rows hold the pass."""


def without_scale_pass(gemms: DataFrame, passes: DataFrame, batch: Batch) -> DataFrame:
    """Return GEMM rows, those of `SCALED` without the pass; noted in the batch.

    Parameters
    ----------
    gemms : DataFrame
        Columns ``gemm_dtype``, ``m``, ``k`` and ``latency`` [ms].
    passes : DataFrame
        Columns ``quant_dtype``, ``m``, ``k`` and ``latency`` [ms].
    batch : Batch

    Notes
    -----
    Rows that would have nothing left are left out.
    """
    passes = passes[passes["quant_dtype"] == SCALED]
    held = (gemms["gemm_dtype"] == SCALED).to_numpy()
    if not len(passes) or not held.any():
        return gemms
    table = gemms.copy()
    m, k = (table.loc[held, name].to_numpy(dtype=float) for name in ("m", "k"))
    table.loc[held, "latency"] = table.loc[held, "latency"].to_numpy() - pass_ms(passes, m, k)
    batch.notes.append(
        f"{int(held.sum())} rows of per-tensor fp8 products less the pass that finds their scales, "
        "which checkpoints with scales of their own never run"
    )
    return table[table["latency"] > 0.0]


def pass_ms(passes: DataFrame, m: Floats, k: Floats) -> Floats:
    """Interpolate the pass at sizes: over log m in the two nearest k, then over k [ms].

    Parameters
    ----------
    passes : DataFrame
    m, k : ndarray (n,)
        Tokens, and channels of each.
    """
    widths = np.sort(passes["k"].unique().astype(float))
    curves = []
    for width in widths:
        rows = passes[passes["k"] == width].groupby("m")["latency"].median()
        curves.append(np.interp(np.log(m), np.log(rows.index.to_numpy(float)), rows.to_numpy()))
    grid = np.stack(curves)
    above = np.clip(np.searchsorted(widths, k), 0, len(widths) - 1)
    below = np.maximum(above - 1, 0)
    span = np.maximum(widths[above] - widths[below], 1.0)
    share = np.clip((k - widths[below]) / span, 0.0, 1.0)
    rows_of = np.arange(len(m))
    return np.asarray((1.0 - share) * grid[below, rows_of] + share * grid[above, rows_of])
