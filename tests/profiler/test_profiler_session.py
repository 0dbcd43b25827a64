"""What a run of the profiler writes, on a device that answers by formula: no torch needed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from llmsim_kernels.profiler.blocks import BLOCKS, whole
from llmsim_kernels.profiler.blocks.ceilings import MOMENTS
from llmsim_kernels.profiler.blocks.decode import skewed
from llmsim_kernels.profiler.blocks.gemm import gemm
from llmsim_kernels.profiler.blocks.prefill import causal_pairs
from llmsim_kernels.profiler.plan import ALL_BLOCKS, QUICK_BLOCKS, Plan, Rates, choose
from llmsim_kernels.profiler.report import each_ceiling
from llmsim_kernels.profiler.run import ProfileOrder, run_profile
from llmsim_kernels.profiler.session import Session, Silent
from llmsim_kernels.profiler.spec import timing_of
from llmsim_kernels.profiler.synthetic import Malice, SyntheticDevice, Truth

from llmsim.core.errors import InputError
from llmsim.specs.profile_meta import read_meta
from llmsim.specs.profile_rows import check_rows, read_rows, row_key

FAST = Rates(1e15, 5e12)


def plan(quick: bool = False, **others) -> Plan:
    return Plan(SyntheticDevice().facts, quick, FAST, **others)


def profiled(folder, *, malice: Malice | None = None, watcher=None, **order):
    device = SyntheticDevice(malice=malice or Malice())
    return run_profile(ProfileOrder(out=folder, **order), watcher, device)


class Stopper(Silent):
    """A user who presses Ctrl-C after some rows of the grid."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.seen: list[tuple[str, ...]] = []

    def measured(self, spec, status) -> None:
        if spec.block:
            self.seen.append(row_key(spec.key))
            if len(self.seen) == self.after:
                raise KeyboardInterrupt


def grid_rows(folder) -> set[tuple[str, ...]]:
    """Return the keys of all rows but the ceilings, which every run has for itself."""
    table = read_rows(folder)
    return {row_key(table.row(i)) for i in range(len(table)) if table["op"][i] != "ceiling"}


# --- what is written --------------------------------------------------------------------------


def test_a_whole_run_writes_valid_rows_of_every_block(tmp_path):
    outcome = profiled(tmp_path / "p")
    table = read_rows(outcome.folder)
    assert check_rows(table) == []
    assert set(table["split"]) == {"fit", "holdout"}
    ops = set(table["op"])
    assert {"gemm", "attention_prefill", "attention_decode", "attention_mixed", "moe"} <= ops
    assert {"ceiling", "host", "norm", "rope", "activation", "kv_write", "act_quant"} <= ops
    assert read_meta(outcome.folder) == outcome.meta
    assert (outcome.meta.state, outcome.meta.origin) == ("ok", "synthetic")


def test_grid_sizes_are_those_of_the_design():
    found = {
        number: len(choose([BLOCKS[number]], plan()).rows) for number in (1, 2, 3, 4, 5, 6, 14)
    }
    assert found[1] == 9 * 12 * 3 + 5
    assert found[14] == 5 * 7
    assert found[4] == 24 * 2  # heads packed and not
    assert found[5] == 7 * 7 * 2 + 2 * 14
    assert found[6] == 42 + 2 * 7  # all experts of three layers; a rank's share of the widest
    # 13 of 15 (batch, length) are within 64 Ki tokens; over pages, with shorter ones, 14 of 15
    assert found[2] == 13 * 4 + 9 + 6 + 14 + 9
    # 20 of 25 (batch, context) are within 2 Mi tokens; tile steps, windows, skew, KV types, MLA
    assert found[3] == 20 * 5 + 6 + 2 + 6 + 20 * 2 + 16


def test_a_rank_holds_and_computes_its_share_of_the_experts():
    whole, shared = (
        next(
            spec
            for spec in BLOCKS[6].rows(plan())
            if (spec.key["experts"], spec.key["experts_local"], spec.key["tokens"])
            == (128, local, 2048)
        )
        for local in (128, 16)
    )
    assert whole.flops == pytest.approx(8 * shared.flops)
    assert whole.moved_bytes == pytest.approx(8 * shared.moved_bytes)


def test_a_quick_run_is_a_small_part_of_a_whole_one():
    def count(quick, numbers):
        return len(choose([BLOCKS[n] for n in numbers if n in BLOCKS], plan(quick)).rows)

    assert count(True, QUICK_BLOCKS) < 0.4 * count(False, ALL_BLOCKS)


def test_a_model_adds_its_exact_shapes():
    from llmsim.specs.load import load_model

    model = load_model("llama-3.1-8b")
    sites = {
        (spec.key["n"], spec.key["k"]) for spec in BLOCKS[1].rows(plan(quick=True, model=model))
    }
    # q, k and v joined; output; gate and up joined; down; LM head
    heads = {
        (spec.key["heads_q"], spec.key["heads_kv"], spec.key["head_dim"])
        for number in (2, 3)
        for spec in BLOCKS[number].rows(plan(quick=True, model=load_model("qwen3-32b")))
    }
    assert (64, 8, 128) in heads  # not among the two that a quick run has anyway
    assert {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)} <= sites


def test_the_holdout_is_the_same_in_every_run_and_off_the_grid():
    first = [row_key(spec.key) for spec in BLOCKS[12].rows(plan())]
    again = [row_key(spec.key) for spec in BLOCKS[12].rows(plan())]
    assert first == again
    grid = {row_key(spec.key) for number in (1, 2, 3, 5, 6) for spec in BLOCKS[number].rows(plan())}
    assert not grid & set(first)
    assert len(first) >= 55


def test_rows_too_long_for_a_slow_device_are_left_out_and_counted(tmp_path):
    slow = Plan(SyntheticDevice().facts, False, Rates(1e12, 5e8))
    chosen = choose([BLOCKS[1]], slow)
    assert chosen.too_long > 50
    assert max(slow.estimate_s(spec) for spec in chosen.rows) <= slow.row_limit_s


# --- going on ---------------------------------------------------------------------------------


def test_an_interrupted_run_keeps_its_rows_and_is_continued(tmp_path):
    folder = tmp_path / "p"
    first = profiled(folder, watcher=Stopper(after=40), quick=True)
    assert first.cut == "interrupted"
    assert first.meta.state == "partial"
    kept = (folder / "rows.csv").read_text()
    assert len(read_rows(folder)) >= 40
    second = profiled(folder, quick=True)
    assert (second.cut, second.meta.state) == ("", "ok")
    assert (folder / "rows.csv").read_text().startswith(kept)  # nothing was rewritten
    table = read_rows(folder)
    assert check_rows(table) == []  # no key stands twice
    whole = profiled(tmp_path / "whole", quick=True)
    assert grid_rows(second.folder) == grid_rows(whole.folder)
    assert len(second.meta.ceilings["copy_bytes_per_s"]) == 1 + 3  # what drifted in between shows
    assert first.meta.created == second.meta.created


def test_a_finished_run_measures_nothing_again(tmp_path):
    profiled(tmp_path / "p", quick=True)
    before = (tmp_path / "p" / "rows.csv").read_text()
    watcher = Stopper(after=1)
    assert profiled(tmp_path / "p", quick=True, watcher=watcher).cut == ""
    assert watcher.seen == []
    assert (tmp_path / "p" / "rows.csv").read_text() == before


def test_blocks_can_be_run_one_by_one(tmp_path):
    for number in QUICK_BLOCKS:
        profiled(tmp_path / "pieces", quick=True, blocks=(number,))
    pieces = profiled(tmp_path / "pieces", quick=True)
    assert check_rows(read_rows(pieces.folder)) == []
    assert grid_rows(pieces.folder) == grid_rows(profiled(tmp_path / "whole", quick=True).folder)


def test_a_lost_device_keeps_what_was_measured(tmp_path):
    outcome = profiled(tmp_path / "p", malice=Malice(lost_after=60))
    assert outcome.cut.startswith("the device was lost")
    assert outcome.meta.state == "partial"
    assert len(read_rows(outcome.folder)) == 60
    assert re.search(r"lost.*; \d+ rows were not measured", outcome.meta.notes)


def test_the_budget_ends_a_run_and_the_rest_is_counted(tmp_path):
    ticks = iter(range(10**6))
    session = Session(
        SyntheticDevice(), tmp_path / "rows.csv", budget_s=100, clock=lambda: next(ticks)
    )
    session.opening(plan())
    session.body(plan(), (1,))
    assert 50 < len(session.done) < 150
    total = len(choose([BLOCKS[1]], plan()).rows)
    measured = sum(row["op"] == "gemm" for row in session.done.values())
    assert session.missing == total - measured > 0
    assert any("budget" in note for note in session.notes)


# --- doubts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "state"), [(1.02, "ok"), (1.09, "unstable"), (1.3, "failed")])
def test_drift_decides_the_state(tmp_path, ratio, state):
    malice = Malice(throttle_after=120, throttle_ratio=ratio)
    outcome = profiled(tmp_path / "p", malice=malice, quick=True)
    assert outcome.meta.state == state
    assert "clocks were held down: power cap" in outcome.meta.notes
    for _, _, values in each_ceiling(outcome.meta.ceilings):
        assert len(values) == len(MOMENTS)


def test_what_does_not_run_stays_as_a_row(tmp_path):
    table = read_rows(profiled(tmp_path / "p").folder)
    without = table.where(table["status"] == "unsupported")
    assert set(without["dtype_a"]) == {"fp8"}
    assert set(without["note"]) == {"needs fp8"}


def test_more_than_the_memory_is_an_oom_row(tmp_path):
    device = SyntheticDevice()
    device.facts = replace(device.facts, free_bytes=1 << 30)
    table = read_rows(run_profile(ProfileOrder(out=tmp_path / "p"), None, device).folder)
    full = table.where(table["status"] == "oom")
    assert {"attention_decode", "moe"} <= set(full["op"])


def test_another_device_or_library_is_refused(tmp_path):
    profiled(tmp_path / "p", quick=True, blocks=(5,))
    other = SyntheticDevice()
    other.facts = replace(other.facts, name="another")
    with pytest.raises(InputError, match="holds a profile of synthetic, not of another"):
        run_profile(ProfileOrder(out=tmp_path / "p"), None, other)
    newer = SyntheticDevice()
    newer.libraries = lambda: {"synthetic": "2"}
    with pytest.raises(InputError, match="synthetic was 1 and is 2"):
        run_profile(ProfileOrder(out=tmp_path / "p"), None, newer)


def test_a_run_that_goes_on_with_the_rows_of_another_card_says_so_from_then_on(tmp_path):
    def on_card(uuid_hash):
        device = SyntheticDevice()
        device.facts = replace(device.facts, details={"uuid_hash": uuid_hash})
        order = ProfileOrder(quick=True, blocks=(5,), out=tmp_path / "p")
        return run_profile(order, None, device).meta.notes

    assert "another device" not in on_card("a")
    assert "another device" not in on_card("a")
    told = "earlier rows are of another device of this kind (a, not b)"
    assert told in on_card("b")
    assert told in on_card("b")


def test_wrong_orders_are_refused_with_what_would_be_right(tmp_path):
    with pytest.raises(InputError, match=r"no block 77.*1 GEMM"):
        profiled(tmp_path / "p", blocks=(77,))
    with pytest.raises(InputError, match="'gpu' is no device"):
        run_profile(ProfileOrder(device="gpu", out=tmp_path / "p"))


# --- arithmetic -------------------------------------------------------------------------------


def test_pairs_by_counting():
    for new, past, window in ((5, 0, 0), (7, 3, 0), (9, 0, 4), (6, 2, 4), (6, 10, 4)):
        counted = sum(min(past + i + 1, window or 10**9) for i in range(new))
        assert causal_pairs(new, past, window) == counted


def test_skewed_contexts_keep_their_mean():
    contexts = skewed(32, 1024, 4.0)
    assert contexts[0] == 4096
    assert abs(sum(contexts) / 32 - 1024) < 1


def test_timing_statistics():
    timing = timing_of([3.0, 1.0, 2.0, 10.0, 2.5])
    assert (timing.median_s, timing.min_s, timing.mad_s, timing.repeats) == (2.5, 1.0, 0.5, 5)


def test_the_synthetic_device_answers_its_formula():
    truth = Truth(4e-6, 0.5, 0.8, 2.0)
    device = SyntheticDevice({"gemm": truth})
    spec = gemm(plan(), 4096, 4096, 4096, "bf16")
    compute = 2 * 4096**3 / (0.5 * 1e15)
    memory = 3 * 2 * 4096**2 / (0.8 * 3.35e12)
    assert device.true_s(spec) == pytest.approx(4e-6 + (compute**2 + memory**2) ** 0.5)
    noisy = SyntheticDevice({"gemm": truth}, Malice(noise_log=0.1))
    ratios = [
        noisy.time(gemm(plan(), m, 4096, 4096, "bf16"), None).median_s
        / noisy.true_s(gemm(plan(), m, 4096, 4096, "bf16"))
        for m in range(1, 401)
    ]
    spread = sum((ratio - 1) ** 2 for ratio in ratios) / len(ratios)
    assert 0.08 < spread**0.5 < 0.12


def test_a_device_lost_at_once_still_leaves_a_profile(tmp_path):
    outcome = profiled(tmp_path / "p", malice=Malice(lost_after=3))
    assert outcome.cut.startswith("the device was lost")
    assert outcome.meta.state == "partial"
    assert len(read_rows(outcome.folder)) == 3


def test_whole_steps_stand_beside_the_sum_of_their_operators(tmp_path):
    outcome = profiled(tmp_path / "p", blocks=(13,))
    checks = {(e["step"], e["batch"], e["tokens"]): e for e in outcome.meta.whole_model_check}
    assert len(checks) == 8 * 2  # steps, by graph and eagerly
    table = read_rows(outcome.folder)
    assert set(table.where(table["op"] == "whole_model")["split"]) == {"holdout"}
    for entry in checks.values():
        assert entry["ratio"] == pytest.approx(entry["measured_us"] / entry["sum_us"])
        # one smooth formula for the whole step is cheaper than for each of its operators
        assert entry["ratio"] < 1.0
    # by hand: 8 layers of Llama-3.1-8B and its head read these weights once in a decode step
    row = next(
        table.row(i)
        for i in range(len(table))
        if table["variant"][i] == "decode.graph" and table["batch"][i] == 1
    )
    weights = 8 * (6144 * 4096 + 4096 * 4096 + 3 * 14336 * 4096) + 128256 * 4096
    kv = 8 * 2 * 8 * 128 * 1024
    assert row["moved_bytes"] == pytest.approx(2 * (weights + kv), rel=0.01)


def test_a_whole_step_whose_operators_have_no_time_names_them(tmp_path):
    table = read_rows(profiled(tmp_path / "p", blocks=(13,)).folder)
    done = {row_key(table.row(i)): table.row(i) for i in range(len(table))}
    known = {key: row for key, row in done.items() if row["op"] != "sampler"}
    for entry in whole.check(plan(), known):
        assert entry["untimed"] == ["sampler"]
        assert "ratio" not in entry
