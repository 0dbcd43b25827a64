"""Rows of public tables that show how long a launch took, not how long its kernel ran.

A kernel timed outside of a CUDA graph cannot be seen to be faster than the host that launches it.
Where the host is slow (an operator of several Python calls), all small shapes share one time; an
engine that replays a graph never pays it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pandas import DataFrame

    from llmsim.specs.importers.frames import Batch

HOST_BOUND_US: Final = 40.0
"""Shortest time of a GEMM kernel over all its shapes from which it is the host's [us]. In the
tables of aiconfigurator (095f58a51) the five block-scaled fp8 layers of vLLM have 57 to 293 us, at
every size up to hundreds of MFLOP; every other GEMM kernel has less than 20 us, and DeepGEMM called
by SGLang and TensorRT-LLM takes 9 us where vLLM's wrapper takes 60 (H100, 16 x 3072 x 3072)."""

NEAR: Final = 1.3
"""Rows below so many times the shortest time are left out: they are upper bounds of the kernel's.
The floor itself scatters by 12% (2nd percentile to the plateau's end)."""

_SHORTEST_QUANTILE: Final = 0.02
_FEWEST_ROWS: Final = 50


def without_host_bound(table: DataFrame, batch: Batch) -> DataFrame:
    """Leave out GEMM rows whose time is the host's; noted in the batch.

    Parameters
    ----------
    table : DataFrame
        With the columns of profile rows.
    batch : Batch
    """
    times = table["t_median_us"]
    drop = times < 0.0
    gemm = table[table["op"] == "gemm"]
    for (kernel, dtype, _), rows in gemm.groupby(["kernel_id", "dtype_a", "dtype_w"], dropna=False):
        shortest = float(rows["t_median_us"].quantile(_SHORTEST_QUANTILE))
        if len(rows) < _FEWEST_ROWS or shortest < HOST_BOUND_US:
            continue
        bound = rows.index[rows["t_median_us"] < NEAR * shortest]
        drop.loc[bound] = True
        batch.notes.append(
            f"{len(bound)} of {len(rows)} GEMM rows of {kernel} ({dtype}) left out: at "
            f"{shortest:.0f} us the host's launch was timed, not the kernel"
        )
    return table[~drop]
