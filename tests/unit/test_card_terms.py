"""Terms of a GPU card from kernel rows: what is fitted, what is left out, and what is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measured_profiles import DEVICE, rows, write_profile
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.errors import CardError
from llmsim.costmodel.measured import FAMILIES, Types
from llmsim.costmodel.measured.card_files import write_card_terms
from llmsim.costmodel.measured.card_terms import (
    fit_card_terms,
    host_floor_s,
    padded,
    regimes,
    unspiked_s,
    usable_rows,
)
from llmsim.costmodel.measured.families import dealt_moe
from llmsim.costmodel.measured.means import MeanTerms, mean_s
from llmsim.costmodel.measured.profile import load_profile
from llmsim.costmodel.measured.tables import KernelTable
from llmsim.specs.cards import Sheet
from llmsim.specs.importers import import_tables

TIDY = Path(__file__).resolve().parents[2].parent / "shared" / "kernels"
BF16 = MeanTerms(4e-6, 0.7, 0.85, 2.5, idle=0.05, loop_s=3e-7)
FP8 = replace(BF16, t0_s=6e-6, memory_frac=0.8, gather_s_per_byte=7e-13)


class Rows:
    """A profile of tables that are made here."""

    name, meta, device = "made", None, DEVICE

    def __init__(self, *tables):
        self._tables = tables

    def tables(self, op):
        return [table for table in self._tables if table.family.op == op]


def gemm_table(types, terms, floor_s=0.0, name="kernel"):
    """Rows of one kernel that takes what `terms` say, and `floor_s` at least."""
    m, n, k = np.meshgrid(
        [1.0, 8, 32, 128, 512, 2048, 8192],
        [64.0, 1024, 4096, 6144, 16384, 28672],
        [64.0, 1024, 4096, 8192, 14336],
    )
    columns = {"m": m.ravel(), "n": n.ravel(), "k": k.ravel()}
    family = FAMILIES["gemm"]
    times = np.maximum(mean_s(family.work(columns, types, DEVICE), terms), floor_s)
    return KernelTable(family, types, name, "made 1", columns, times, DEVICE)


def test_a_gemm_is_recovered_in_spite_of_spikes() -> None:
    table = gemm_table(Types("fp8", "fp8"), FP8)
    spiked = table.measured_s.copy()
    spiked[np.random.default_rng(0).random(len(spiked)) < 0.1] += 2e-5  # as on public B200 tables
    table.measured_s = spiked
    (found,) = fit_card_terms([Rows(table)])
    assert found.path == "gemm.fp8"
    for name in ("t0_s", "compute_frac", "memory_frac", "gather_s_per_byte"):
        assert getattr(found.terms, name) == pytest.approx(getattr(FP8, name), rel=0.1), name
    assert set(found.errors) == {"decode", "prefill"}
    assert max(errors.median for errors in found.errors.values()) < 0.02


def test_only_what_exceeds_a_larger_size_is_a_spike() -> None:
    table = gemm_table(Types(), BF16)
    assert np.array_equal(unspiked_s(table), table.measured_s)
    small = np.flatnonzero(table.columns["m"] == 8)[0]
    table.measured_s = table.measured_s.copy()
    table.measured_s[small] = 1.0
    same = (table.columns["n"] == table.columns["n"][small]) & (
        table.columns["k"] == table.columns["k"][small]
    )
    later = same & (table.columns["m"] > 8)
    assert unspiked_s(table)[small] == table.measured_s[later].min()


def test_rows_bound_by_the_host_lend_their_compute_share_alone() -> None:
    own = gemm_table(Types("fp8", "fp8"), FP8)
    slow = gemm_table(
        Types("fp8_block", "fp8_block"), replace(FP8, compute_frac=0.45), floor_s=1.8e-4
    )
    assert host_floor_s(own) == 0.0
    assert host_floor_s(slow) == pytest.approx(1.8e-4)
    found = {each.path: each for each in fit_card_terms([Rows(own, slow)])}
    block, tensor = found["gemm.fp8_block"], found["gemm.fp8"]
    assert block.borrowed == "gemm.fp8"
    assert block.terms.compute_frac == pytest.approx(0.45, rel=0.05)
    assert replace(block.terms, compute_frac=tensor.terms.compute_frac) == tensor.terms
    sound = gemm_table(Types("fp8_block", "fp8_block"), FP8, name="other")
    (better,) = [
        each
        for each in fit_card_terms([Rows(own, slow), Rows(sound)])
        if each.path == "gemm.fp8_block"
    ]
    assert (better.table.kernel_id, better.borrowed) == ("other", "")


def test_dealt_experts_are_hit_once_before_any_is_hit_twice() -> None:
    shape = {
        "hidden": np.full(3, 2880.0),
        "inter": np.full(3, 1440.0),
        "topk": np.full(3, 4.0),
        "experts": np.full(3, 128.0),
        "experts_local": np.full(3, 64.0),
        "tokens": np.array([1.0, 16.0, 64.0]),
    }
    dealt = dealt_moe(shape, Types("bf16", "mxfp4"), DEVICE)
    assert dealt.units.tolist() == [2.0, 32.0, 64.0]  # half of 4, of 64, of 128: ep 2
    drawn = FAMILIES["moe"].work(shape, Types("bf16", "mxfp4"), DEVICE)
    assert drawn.units == pytest.approx(64 * (1 - (1 - 4 / 128) ** shape["tokens"]))


def test_experts_split_finer_than_a_node_dealt_out_or_skewed_are_left_out() -> None:
    shape = {
        "hidden": np.full(5, 4096.0),
        "topk": np.full(5, 8.0),
        "experts": np.full(5, 128.0),
        "inter": np.array([1536.0, 192.0, 96.0, 1536.0, 1536.0]),
        "experts_local": np.array([128.0, 128.0, 128.0, 64.0, 128.0]),
        "skew": np.array([0.0, 0.0, 0.0, 0.0, 1.2]),
    }
    assert usable_rows("moe", shape).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("op", ["gemm", "moe", "attention_decode", "attention_prefill"])
def test_regimes_are_all_rows(op) -> None:
    names = ("m", "tokens", "batch", "kv_len", "q_len", "head_dim", "heads_kv")
    shape = dict.fromkeys(names, np.array([1.0, 128.0, 4096.0]))
    assert np.array_equal(sum(mask.astype(int) for mask in regimes(op, shape).values()), [1, 1, 1])


def test_experts_are_fitted_as_their_kernel_holds_them() -> None:
    shapes = {"hidden": np.array([2880.0, 4096.0]), "inter": np.array([360.0, 512.0])}
    family = FAMILIES["moe"]
    for kernel, a, held in (
        ("vllm_gptossmxfp4moe_marlin_marlinexperts", "bf16", ([3072, 4096], [384, 512])),
        ("vllm_x_trtllm_trtllmmxfp4expertsmodular", "fp8", ([3072, 4096], [512, 512])),
        ("vllm_gptossmxfp4moe_triton_oaitriton", "bf16", ([2880, 4096], [360, 512])),
        ("moe_torch_flow", "fp8", ([3072, 4096], [384, 512])),
        ("moe_torch_flow", "bf16", ([2880, 4096], [360, 512])),
    ):
        types = Types(a, "mxfp4")
        table = KernelTable(family, types, kernel, "made 1", shapes, np.ones(2), DEVICE)
        found = padded(table)
        assert (found["hidden"].tolist(), found["inter"].tolist()) == held


def test_a_file_of_no_rows_is_refused(tmp_path) -> None:
    with pytest.raises(CardError, match="too few rows"):
        write_card_terms([Rows()], tmp_path / "none.yaml")


def test_the_command_fits_a_profile_of_ones_own_gpu(tmp_path) -> None:
    made = rows(ops=("gemm", "attention_decode", "attention_prefill"))
    folder = write_profile(tmp_path / "own", made, source="here", licence="mine, all of it")
    path = tmp_path / "terms.yaml"
    call = [
        *("profile", "fit", str(folder), "--kernels", str(path)),
        *("--without", "prefill_attention"),
    ]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    families = [line.split()[0] for line in shown.output.splitlines()[1:]]
    assert families == ["gemm.bf16", "gemm.bf16", *["decode_attention.bf16"] * len(families[2:])]
    sheet = Sheet(path)
    for name, true in (("compute_frac", 0.7), ("memory_frac", 0.85)):
        found = sheet.number(f"kernels.gemm.bf16.{name}", "1", 0.01, 1.0)
        assert found == pytest.approx(true, rel=0.05)
    assert "here (mine)" in sheet.rows[0].source
    assert not sheet.has("kernels.prefill_attention.t0_s")


@pytest.mark.slow
@pytest.mark.skipif(not TIDY.is_dir(), reason="shared kernel tables are not here")
def test_public_rows_become_a_file_with_one_source_per_block(tmp_path) -> None:
    source = tmp_path / "tables"
    source.mkdir()
    (source / "moe_rtx-pro-6000-96g.csv.gz").symlink_to(TIDY / "moe_rtx-pro-6000-96g.csv.gz")
    (folder,) = import_tables("tidy", source, tmp_path / "out")
    path = tmp_path / "terms.yaml"
    found = write_card_terms([load_profile(folder)], path)
    assert [each.path for each in found] == [
        "moe.bf16",
        "moe.fp8",
        "moe.fp4",
        "moe.w4a16",
        "moe.mxfp4",
    ]
    assert all(each.errors["decode"].median < 0.1 for each in found)
    sheet = Sheet(path)
    share = sheet.number("kernels.moe.mxfp4.memory_frac", "1", 0.01, 1.0)
    (row,) = sheet.rows
    assert (row.value, row.unit) == (share, "1")
    assert "vllm_gptossmxfp4moe_marlin" in row.source
    assert sheet.number("kernels.moe.mxfp4.hidden_multiple", "elements", 1) == 256
    assert sheet.number("kernels.moe.mxfp4.width_multiple", "elements", 1) == 128
    assert not sheet.has("kernels.moe.w4a16.hidden_multiple")
    assert "decode median" in row.source
    assert not sheet.faults
    text = path.read_text()
    assert text.count("source:") == len(found)
