"""Rows of public tables that show something else than the kernel that serves.

**A launch.** A kernel timed outside of a CUDA graph cannot be seen to be faster than the host that
launches it. Where the host is slow (an operator of several Python calls), all small shapes share
one time; an engine that replays a graph never pays it. The larger shapes of such a kernel do not
help: what is fitted to them carries the host's share down to the small ones (MiniMax-M2.5 on B200:
+249% in TPOT with only the shapes at the floor left out, -9% by the roofline).

**A disturbed row.** A product of few rows can always be made as one of more, so that none takes
much longer than a larger one. In vLLM's per-tensor fp8 table of B200 (0.24.0) 8.6% of the rows take
half as long again as one with more tokens, most of them twice as long as both their neighbours
(10240 x 8192: 22.0, 45.2 and 23.4 us for 6, 7 and 8 tokens); on H100 and H200 it is 0.4% at most.

**A kernel that nobody has tuned.** TensorRT-LLM's products in NVFP4 ask its tuner which tile and
split of k to use. The server tunes when it starts; out of a tuning context the tuner answers with a
fallback and says so in the log (NVIDIA/TensorRT-LLM, pull request 8873). aiconfigurator's collector
(``collector/trtllm/collect_gemm.py``) calls the layer out of one, where that of experts
(``collect_moe.py``) tunes first. It shows: on B200, 2560 x 8192 for one token takes 21.5 us, twice
what the 16-bit product with four times the bytes takes (10.9 us) and what FlashInfer's takes in
vLLM's table (11.1 us), and it goes by k alone (10240 x 8192: 22.4 us; 8192 x 2048: 10.4 us).
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

DISTURBED: Final = 1.5
"""A product that takes longer than a larger one by this factor was timed on a disturbed GPU.
Choices of tiles alone make up 1.2 in one row of 20 (16-bit products on B200), 1.5 in one of 200."""

_SHORTEST_QUANTILE: Final = 0.02
_FEWEST_ROWS: Final = 50


def without_host_bound(table: DataFrame, batch: Batch) -> DataFrame:
    """Leave out GEMM kernels whose shortest time is the host's; noted in the batch.

    Parameters
    ----------
    table : DataFrame
        With the columns of profile rows.
    batch : Batch
    """
    drop = table["t_median_us"] < 0.0
    gemm = table[table["op"] == "gemm"]
    for (kernel, dtype, _), rows in gemm.groupby(["kernel_id", "dtype_a", "dtype_w"], dropna=False):
        shortest = float(rows["t_median_us"].quantile(_SHORTEST_QUANTILE))
        if len(rows) < _FEWEST_ROWS or shortest < HOST_BOUND_US:
            continue
        drop.loc[rows.index] = True
        batch.notes.append(
            f"{len(rows)} GEMM rows of {kernel} ({dtype}) left out: none is shorter than "
            f"{shortest:.0f} us, which is the host's launch and not the kernel"
        )
    return table[~drop]


def without_disturbed(table: DataFrame, batch: Batch) -> DataFrame:
    """Leave out GEMM rows that take far longer than a larger product; noted in the batch.

    Parameters
    ----------
    table : DataFrame
        With the columns of profile rows.
    batch : Batch
    """
    keys = ["kernel_id", "dtype_a", "dtype_w", "n", "k"]
    gemm = table[table["op"] == "gemm"].sort_values("m", ascending=False, kind="stable")
    least = gemm.groupby(keys, dropna=False)["t_median_us"].cummin()
    odd = gemm[gemm["t_median_us"] > DISTURBED * least]
    for (kernel, dtype, weights), rows in odd.groupby(keys[:3], dropna=False):
        batch.notes.append(
            f"{len(rows)} GEMM rows of {kernel} ({dtype}, {weights}) left out: a product with more "
            f"tokens takes less than {1.0 / DISTURBED:.0%} of their time"
        )
    return table.drop(index=odd.index)


UNTUNED: Final = {"trtllm": "nvfp4"}
"""Engine, and ``gemm_dtype`` of the products that its collector times without tuning."""


def without_untuned(gemms: DataFrame, engine: str, batch: Batch) -> DataFrame:
    """Leave out products that were timed before the engine's tuner had run; noted in the batch.

    Parameters
    ----------
    gemms : DataFrame
        With a column ``gemm_dtype``.
    engine : str
    batch : Batch
    """
    untuned = (gemms["gemm_dtype"] == UNTUNED.get(engine)).to_numpy()
    if untuned.any():
        batch.notes.append(
            f"{int(untuned.sum())} GEMM rows of {UNTUNED[engine]} left out: they were timed with "
            "the tile of a product that has not been tuned, and the engine tunes when it starts"
        )
    return gemms[~untuned]
