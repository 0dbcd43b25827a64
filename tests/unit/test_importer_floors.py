"""Rows of public tables that show a launch, not a kernel."""

import pandas as pd
import pytest

from llmsim.specs.importers.floors import (
    without_disturbed,
    without_host_bound,
    without_untuned,
)
from llmsim.specs.importers.frames import Batch


def rows(op, kernel, floor_us):
    """Return a kernel of 1 us per unit of work, timed by a host that takes `floor_us` to launch."""
    work = [float(2**power) for power in range(12)] * 10
    times = [max(floor_us, 2.0 + each) for each in work]
    made = pd.DataFrame({"k": work, "t_median_us": times})
    return made.assign(op=op, kernel_id=kernel, dtype_a="fp8_block", dtype_w="fp8_block")


@pytest.fixture
def batch():
    return Batch("h100-sxm", "vllm-1")


def test_a_kernel_behind_its_launch_is_left_out_and_others_stay(batch):
    both = [rows("gemm", "slow", 100.0), rows("gemm", "quick", 5.0)]
    kept = without_host_bound(pd.concat(both, ignore_index=True), batch)
    assert set(kept["kernel_id"]) == {"quick"}
    assert len(kept) == 120
    (note,) = batch.notes
    assert note.startswith("120 GEMM rows of slow")
    assert "100 us" in note


@pytest.mark.parametrize(("op", "floor_us"), [("gemm", 20.0), ("moe", 100.0)])
def test_other_kernels_keep_all_rows(batch, op, floor_us):
    table = rows(op, "quick", floor_us)
    assert len(without_host_bound(table, batch)) == len(table)
    assert batch.notes == []


def test_products_that_were_never_tuned_are_left_out_of_their_engine_s_tables_alone(batch):
    gemms = pd.DataFrame({"gemm_dtype": ["bfloat16", "nvfp4", "nvfp4", "fp8"], "latency": 0.02})
    assert without_untuned(gemms, "trtllm", batch)["gemm_dtype"].tolist() == ["bfloat16", "fp8"]
    (note,) = batch.notes
    assert note.startswith("2 GEMM rows of nvfp4 left out: they were timed with the tile")
    assert len(without_untuned(gemms, "vllm", batch)) == 4
    assert len(batch.notes) == 1


def curve(times_us, **other):
    """Return products of one shape, each with twice the tokens of the one before."""
    made = pd.DataFrame(
        {"m": [2**power for power in range(len(times_us))], "t_median_us": times_us}
    )
    shape = {"op": "gemm", "kernel_id": "cutlass", "dtype_a": "fp8", "dtype_w": "fp8"}
    return made.assign(**{**shape, "n": 1024, "k": 8192, **other})


def test_rows_that_a_larger_product_beats_by_half_are_left_out(batch):
    odd = curve([22.0, 45.2, 23.4, 30.0, 60.0, 41.0, 80.0])  # 45.2 > 1.5 x 23.4, 60 < 1.5 x 41
    plain = curve([20.0, 29.0, 20.0, 40.0], n=2048)  # tiles may be chosen badly
    others = curve([50.0, 10.0], op="moe")
    table = pd.concat([odd, plain, others], ignore_index=True)
    kept = without_disturbed(table, batch)
    assert sorted(set(table.index) - set(kept.index)) == [1]
    (note,) = batch.notes
    assert note.startswith("1 GEMM rows of cutlass (fp8, fp8) left out")


def test_rows_are_compared_with_those_of_their_own_shape_and_kernel(batch):
    parts = [curve([90.0]), curve([9.0, 9.0], k=1024), curve([9.0, 9.0], kernel_id="other")]
    table = pd.concat(parts, ignore_index=True)
    assert len(without_disturbed(table, batch)) == len(table)
    assert batch.notes == []
