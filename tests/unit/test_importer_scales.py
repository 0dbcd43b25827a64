"""Per-tensor fp8 products without the pass that finds their scales."""

import pandas as pd
import pytest

from llmsim.specs.importers.frames import Batch
from llmsim.specs.importers.scales import without_scale_pass


def passes():
    """Return a pass of 8 us and 1 us more for every doubling of m, as much again for every k."""
    sizes = [(m, k) for m in (1, 2, 4, 8) for k in (1024, 2048)]
    times = [(8.0 + m.bit_length() - 1) * k / 1024 for m, k in sizes]
    table = pd.DataFrame(sizes, columns=["m", "k"])
    return table.assign(quant_dtype="fp8", latency=[1e-3 * us for us in times])


def products(*rows):
    return pd.DataFrame(rows, columns=["gemm_dtype", "m", "k", "latency"]).assign(n=4096)


def test_only_per_tensor_products_lose_the_pass():
    batch = Batch("b200", "trtllm-1")
    table = products(("fp8", 4, 1024, 0.025), ("bfloat16", 4, 1024, 0.025), ("fp8", 2, 2048, 0.03))
    found = without_scale_pass(table, passes(), batch)
    assert found["latency"].tolist() == pytest.approx([0.015, 0.025, 0.012])
    assert batch.notes == [batch.notes[0]]
    assert batch.notes[0].startswith("2 rows of per-tensor fp8 products")


@pytest.mark.parametrize(
    ("m", "k", "us"),
    [(2.8284, 1024, 9.5), (1, 1536, 12.0), (64, 1024, 11.0), (1, 8192, 16.0), (1, 512, 8.0)],
)
def test_sizes_between_are_interpolated_and_beyond_are_the_nearest(m, k, us):
    found = without_scale_pass(products(("fp8", m, k, 0.1)), passes(), Batch("b200", "trtllm-1"))
    assert 0.1 - found["latency"].item() == pytest.approx(1e-3 * us, rel=1e-4)


def test_rows_with_nothing_left_are_left_out_and_tables_without_a_pass_stay():
    batch = Batch("b200", "trtllm-1")
    assert not len(without_scale_pass(products(("fp8", 4, 1024, 0.009)), passes(), batch))
    table = products(("fp8", 4, 1024, 0.009))
    assert without_scale_pass(table, passes()[:0], batch) is table
