"""The format of kernel profiles: what is written is what is read, and every fault is named."""

import json

import numpy as np
import pytest

from llmsim.core.errors import CardError
from llmsim.specs.profile_meta import ProfileMeta, read_meta, write_meta
from llmsim.specs.profile_rows import (
    BY_NAME,
    OPS,
    check_rows,
    read_rows,
    row_key,
    rows_checksum,
    write_rows,
)

GOOD = {
    "op": "gemm",
    "kernel_id": "torch.linear",
    "dtype_a": "bf16",
    "dtype_w": "bf16",
    "m": 8,
    "n": 4096,
    "k": 1024,
    "cold": True,
    "graph": False,
    "t_median_us": 12.25,
}


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_rows_come_back_as_they_were_written(tmp_path, name):
    path = tmp_path / name
    write_rows(path, [GOOD])
    write_rows(path, [{**GOOD, "m": 16, "status": "oom", "t_median_us": None}], append=True)
    table = read_rows(tmp_path)
    assert len(table) == 2
    assert check_rows(table) == []
    assert row_key(table.row(0)) == row_key(GOOD)
    assert table["t_median_us"][0] == 12.25
    assert np.isnan(table["t_median_us"][1])
    assert list(table.usable) == [True, False]
    assert table["cold"][0] == 1
    assert table["graph"][0] == 0
    assert "kv_len" not in table.row(0)


def test_every_fault_has_its_line_and_the_nearest_word(tmp_path):
    path = tmp_path / "rows.csv"
    wrong = [GOOD, {**GOOD, "op": "gem", "m": 2}, {**GOOD, "k": None}, {**GOOD, "m": -3}, GOOD]
    write_rows(path, [*wrong, {**GOOD, "m": 5, "t_median_us": None}])
    text = "\n".join(str(fault) for fault in check_rows(read_rows(path)))
    assert f"{path}:3  op: unknown word 'gem'. Did you mean 'gemm'?" in text
    assert f"{path}:4  k: is empty, and gemm needs it." in text
    assert f"{path}:5  m: must not be negative (got -3)." in text
    assert f"{path}:6: stands twice" in text
    assert f"{path}:7  t_median_us: needs a time" in text


def test_unknown_columns_are_refused_on_both_ways(tmp_path):
    with pytest.raises(CardError, match="Did you mean 'kernel_id'"):
        write_rows(tmp_path / "rows.csv", [{**GOOD, "kernelid": "x"}])
    (tmp_path / "rows.csv").write_text("op,t_median_us,batchs\ngemm,1,2\n")
    with pytest.raises(CardError, match="Did you mean 'batch'"):
        read_rows(tmp_path)


def test_operators_need_columns_that_exist():
    assert {name for needed in OPS.values() for name in needed} <= set(BY_NAME)


def test_checksum_is_that_of_the_text(tmp_path):
    write_rows(tmp_path / "rows.csv", [GOOD])
    write_rows(tmp_path / "rows.csv.gz", [GOOD])
    plain, packed = (rows_checksum(tmp_path / name) for name in ("rows.csv", "rows.csv.gz"))
    assert plain == packed
    write_rows(tmp_path / "rows.csv", [{**GOOD, "m": 9}], append=True)
    assert rows_checksum(tmp_path / "rows.csv") != plain


def test_meta_comes_back_and_its_faults_come_together(tmp_path):
    meta = ProfileMeta("x", "measured", {"name": "cpu"}, "2026-11-25T00:00:00Z", drift_frac=0.01)
    path = write_meta(tmp_path, meta)
    assert read_meta(tmp_path) == meta
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "origin": "importd", "drift_frac": -1, "licens": ""}))
    with pytest.raises(CardError, match="Did you mean 'licence'"):
        read_meta(path)
    path.write_text(json.dumps({**raw, "origin": "importd", "drift_frac": -1}))
    with pytest.raises(CardError) as caught:
        read_meta(path)
    assert [fault.path for fault in caught.value.faults] == ["drift_frac", "origin"]
    path.write_text(json.dumps({**raw, "origin": "imported"}))
    with pytest.raises(CardError, match="licence"):
        read_meta(path)
