"""Shipped runs of the reference engine on a real GPU, beside their simulation."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from llmsim.core.errors import InputError
from llmsim.core.paths import find_data
from llmsim.costmodel.measured import load_profile
from llmsim.fidelity.measuredrun import MeasuredRequest, MeasuredRun, MeasuredStep
from llmsim.fidelity.measuredruns import (
    _label,
    compare_runs,
    figures_of,
    host_terms,
    kernel_gap_s,
)
from llmsim.fidelity.runpages import BEGIN, END, repetitions, write_page

PROFILE = "nvidia-h100-80gb-hbm3/20261126T2239"
COST = {"kind": "measured", "profile": PROFILE}
TALK = "conversation-like"
DECODE, PRODUCT = "triton.paged_decode.v1", "triton.wna16_gemm.v1"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two runs and the one for host terms, compared once."""
    folder = tmp_path_factory.mktemp("runs")
    whole = find_data("profiles", *PROFILE.split("/"), "engine")
    for name in ("load50-seed9", "load70-seed1", "load70-seed1-again1"):
        for path in whole.glob(f"{TALK}-{name}_*"):
            shutil.copy(path, folder)
    return compare_runs(folder, "llama-3.1-8b", "h100-sxm", COST, folder / "scratch")


def test_every_decision_of_the_engine_is_the_simulators(compared):
    runs = {run.name: run for run in compared.runs}
    for name in ("load70-seed1", "load70-seed1-again1"):
        run = runs[f"{TALK}-{name}"]
        assert run.same_decisions == run.steps > 2000


def test_errors_stay_what_the_page_says(compared):
    # ceilings a little above what docs/measured-on-an-h100.md prints
    regimes = {regime.name: regime.errors for regime in compared.regimes}
    assert regimes["all"].median < 0.04
    assert regimes["decode, 1 to 7 requests, even contexts"].median < 0.045
    assert regimes["decode, 8 to 31 requests, uneven contexts"].median < 0.03
    for run in compared.runs:
        if not run.name.endswith("seed9"):
            assert abs(run.predicted.tpot_s / run.measured.tpot_s - 1.0) < 0.01
            rates = run.predicted.output_tokens_per_s / run.measured.output_tokens_per_s
            assert abs(rates - 1.0) < 0.025
    ((first, again),) = repetitions(compared.runs)
    assert abs(again.measured.tpot_s / first.measured.tpot_s - 1.0) < 0.01


AGAIN = "nvidia-h100-80gb-hbm3/20261127T0955"


@pytest.fixture(scope="module")
def graphed(tmp_path_factory):
    """Runs whose steps with prompts ran from graphs, by the second profile."""
    folder = tmp_path_factory.mktemp("graphed")
    whole = find_data("profiles", *AGAIN.split("/"), "engine")
    for name in (f"{TALK}-load50-seed9", f"{TALK}-load70-seed1", "burstgpt-like-load70-seed1"):
        for path in whole.glob(f"{name}_*"):
            shutil.copy(path, folder)
    kernels = {"attention_prefill": "triton.varlen_attention.v1"}
    cost = {"kind": "measured", "profile": AGAIN, "mixed": "split", "kernels": kernels}
    return compare_runs(folder, "llama-3.1-8b", "h100-sxm", cost, folder / "scratch")


def test_steps_with_prompts_are_met_where_they_run_from_graphs(graphed):
    # ceilings a little above what docs/measured-on-an-h100.md prints
    regimes = {regime.name: regime.errors for regime in graphed.regimes}
    assert regimes["all"].median < 0.03
    assert regimes["all"].p90 < 0.075
    assert regimes["mixed, 512 to 2047 tokens of prompts"].median < 0.04
    assert regimes["mixed, from 2048 tokens of prompts"].median < 0.02
    for run in graphed.runs:
        assert run.same_decisions == run.steps > 1000
        if not run.name.endswith("seed9"):
            assert abs(run.predicted.tpot_s / run.measured.tpot_s - 1.0) < 0.03
            assert abs(run.predicted.ttft_p50_s / run.measured.ttft_p50_s - 1.0) < 0.07


def test_host_terms_are_those_that_made_the_steps():
    steps = [
        MeasuredStep(0, round(1e9 * (0.005 + 3e-4 + 5e-6 * n)), "decode", part, (), 1e-4, 0.005)
        for n in (1, 2, 4, 8)
        for part in [tuple((i, 1, 20) for i in range(n))] * 12
    ]
    both = ((0, 5, 0), (1, 1, 20))
    steps.append(MeasuredStep(0, 30_000_000, "mixed", both, (), 0.024, 0.025))
    steps.append(MeasuredStep(0, 99_000_000, "mixed", both, (), 0.010, 0.098))  # not host-bound
    requests = tuple(MeasuredRequest(0, 10, 500, 0.1, 1.0) for _ in range(8))
    run = MeasuredRun(requests, tuple(steps), {"gpu": "none", "config": {}})
    terms = host_terms(run, layers=32)
    assert terms["host_base_s"] == pytest.approx(3e-4, rel=1e-3)
    assert terms["host_per_request_s"] == pytest.approx(5e-6, rel=1e-2)
    assert terms["eager_layer_s"] == terms["prefill_layer_s"] == pytest.approx(0.024 / 32)
    with pytest.raises(InputError, match="too few"):
        host_terms(replace(run, steps=run.steps[:12]), layers=32)


def test_steps_with_prompts_from_graphs_launch_nothing_but_cost_the_host_by_prompt():
    steps = [
        MeasuredStep(0, round(1e9 * (0.005 + 3e-4 + 5e-6 * n)), "decode", part, (), 1e-4, 0.005)
        for n in (1, 2, 4, 8)
        for part in [tuple((i, 1, 20) for i in range(n))] * 12
    ]
    both = ((0, 5, 0), (1, 6, 4), (2, 1, 20))  # two prompts, one of them in its second part
    after = 0.02 + 3e-4 + 3 * 5e-6 + 2 * 7e-5
    steps += [MeasuredStep(0, round(1e9 * after), "mixed", both, (), 1e-4, 0.02)] * 12
    long = ((0, 100, 0),)
    steps.append(MeasuredStep(0, 99_000_000, "context", long, (), 0.016, 0.098))
    requests = tuple(MeasuredRequest(0, 10, 500, 0.1, 1.0) for _ in range(8))
    meta = {"gpu": "none", "config": {"max_graph_tokens": 64}}
    terms = host_terms(MeasuredRun(requests, tuple(steps), meta), layers=32)
    assert terms["host_base_s"] == pytest.approx(3e-4, rel=1e-3)
    assert terms["host_gap_per_chunk_s"] == pytest.approx(7e-5, rel=1e-3)
    assert terms["prefill_layer_s"] == 0.0
    assert terms["eager_layer_s"] == pytest.approx(0.016 / 32)  # none waits for the host


def test_kernels_whose_cut_is_known_meet_the_bar_on_rows_that_were_not_fitted():
    profile = load_profile(find_data("profiles", *PROFILE.split("/")))
    for op, kernel in (("attention_decode", DECODE), ("gemm", PRODUCT)):
        (unseen,) = (
            table
            for table in profile.holdout_tables().values()
            if (table.family.op, table.kernel_id) == (op, kernel)
        )
        (table,) = (each for each in profile.tables(op) if each.key == unseen.key)
        assert table.known_fit is not None  # as the profile states it, not fitted at start
        off = np.abs(table.price(unseen.columns).seconds / unseen.measured_s - 1.0)
        assert len(off) >= 12
        assert np.median(off) < 0.06
        assert np.quantile(off, 0.9) < 0.18


def test_the_gap_between_kernels_is_the_median_of_whole_steps():
    gap_s = kernel_gap_s(find_data("profiles", *PROFILE.split("/")))
    assert 10e-6 < gap_s < 25e-6


def test_figures_of_a_stopped_run_count_what_was_made_until_then():
    nan = math.nan
    figures = figures_of(
        np.array([1.0, 2.0, nan]),
        np.array([3.0, 12.0, nan]),
        np.zeros(3),
        np.array([11, 101, 50]),
        stop_s=7.0,
        peak_kv_blocks=5,
    )
    # the first made 11 tokens; the second, by half of its time, 1 + 50; the third none
    assert figures.output_tokens_per_s == pytest.approx((11 + 51) / 7.0)
    assert figures.ttft_p50_s == 1.0
    assert figures.tpot_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("decisions", "label"),
    [
        (((0, 1, 20), (1, 1, 25)), "decode, 1 to 7 requests, even contexts"),
        (((0, 1, 20), (1, 1, 20), (2, 1, 400)), "decode, 1 to 7 requests, uneven contexts"),
        (((0, 1, 20), (3, 600, 0)), "mixed, 512 to 2047 tokens of prompts"),
        (((3, 9, 0),), "prefill, 1 to 511 tokens of prompts"),
    ],
)
def test_steps_are_told_apart_by_what_is_in_them(decisions, label):
    short = MeasuredRequest(0, 10, 500, 0.1, 1.0)
    run = MeasuredRun((short, short, short, replace(short, prompt=900)), (), {})
    assert _label(MeasuredStep(0, 1, "decode", decisions, ()), run) == label


def test_a_folder_of_runs_is_compared_by_one_command(compared, tmp_path):
    from llmsim.cli.app import app

    whole = find_data("profiles", *PROFILE.split("/"), "engine")
    for path in whole.glob(f"{TALK}-load50-seed9_*"):
        shutil.copy(path, tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for path in whole.glob(f"{TALK}-load40-seed1_*"):
        shutil.copy(path, tmp_path)
    cost = f"{{kind: measured, profile: {PROFILE}}}"
    words = [
        "validate",
        str(tmp_path),
        "--engine",
        "reference",
        "--cost",
        cost,
        "--docs",
        str(page),
    ]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "decode, 1 to 7 requests, even contexts" in told.stdout
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"| {TALK}-load40-seed1 | decisions alike [steps] | 1767 | 1767 of 1767 |" in text
    empty = CliRunner().invoke(app, ["validate", str(tmp_path / "none"), *words[2:6]])
    assert empty.exit_code == 2
    assert "no runs here" in empty.output


def test_a_page_has_a_drawing_of_every_kind_of_step_and_every_run_but_the_hosts(compared, tmp_path):
    from xml.etree import ElementTree

    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, compared)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "](page.svg)" in text
    drawing = ElementTree.parse(tmp_path / "page.svg")
    words = "\n".join(drawing.getroot().itertext())
    for regime in compared.regimes:
        assert f"{regime.name} ({regime.errors.count:,})" in words
    for run in compared.runs:
        assert (run.name in words) != run.name.endswith("-seed9")
