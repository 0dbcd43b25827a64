"""`llmsim.run`: what comes back, the same everywhere, saved and read again."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from blocks import call

import llmsim as ls
from llmsim.results.columns import OUTCOMES, REQUEST_COLUMNS

MIXED = {  # rejections, timeouts, aborts, preemptions and prefix hits in one short run
    "traffic.duration_s": 60,
    "traffic.warmup_s": 10,
    "traffic.arrivals.rate_rps": 12,
    "traffic.timeout_s": 20,
    "engine.kv_blocks": 700,
    "engine.max_model_len": 8192,
    "fleet.pools.main.replicas": 2,
}


@pytest.fixture(scope="module")
def result():
    return ls.run("assistants", MIXED)


def test_the_run_meets_everything_it_was_chosen_for(result):
    outcomes = set(result.requests.outcome)
    assert {"finished", "timed_out", "aborted"} <= outcomes <= set(OUTCOMES)
    assert result.requests.preemptions.sum() > 0
    assert result.requests.cached_tokens.sum() > 0


def test_requests_are_one_row_each_with_the_columns_of_the_docs(result):
    frame = result.requests
    assert list(frame.columns) == [column.name for column in REQUEST_COLUMNS]
    assert frame.request.tolist() == list(range(len(frame)))
    assert frame.arrival_s.is_monotonic_increasing
    assert len(frame) == result.facts.requests == result.metrics["requests"]
    done = frame[frame.outcome == "finished"]
    assert (done.queue_s <= done.ttft_s).all()
    assert (done.ttft_s <= done.e2e_s).all()
    several = done[done.output_tokens > 1]
    gaps = several.tpot_s * (several.output_tokens - 1)
    np.testing.assert_allclose(several.ttft_s + gaps, several.e2e_s, rtol=0, atol=1e-8)
    assert (several.itl_max_s >= several.tpot_s - 1e-12).all()


def test_summary_is_the_rows_summed_up(result):
    table = result.summary().set_index("metric")
    assert {"value", "unit", "ci_low", "ci_high", "note"} <= set(table.columns)
    frame = result.requests
    counted = frame[frame.arrival_s >= 10]
    assert table.value["requests"] == len(frame)
    assert table.value["ttft_p90_s"] == pytest.approx(counted.ttft_s.quantile(0.9))
    kept = (counted.outcome == "finished") & (counted.ttft_s <= 1.5)
    kept &= (counted.output_tokens < 2) | (counted.tpot_s <= 0.08)
    kept &= counted.e2e_s <= 40
    assert table.value["slo_attained_frac"] == pytest.approx(kept.mean())
    assert table.value["preemptions"] == frame.preemptions.sum()
    assert "requests" in repr(result)


def test_other_objectives_need_no_other_run(result):
    from llmsim.results.slo import Slo

    strict = result.evaluate(Slo(ttft_s=0.05)).values()["slo_attained_frac"]
    loose = result.evaluate(Slo(ttft_s=60.0)).values()["slo_attained_frac"]
    assert strict < loose


def test_timeline_and_gaps_add_up_to_the_rows(result):
    line, rows = result.timeline(), result.requests
    made = rows.output_tokens.sum()
    binned = sum(r.timeline.totals["output_tokens"].sum() for r in result.facts.replicas)
    assert binned == pytest.approx(made, rel=1e-12)
    assert result.facts.itl.total == (rows.output_tokens - 1).clip(lower=0).sum()
    # the step that was running when the last client left ends after the run does
    width_s = np.diff([*line.t_s, result.facts.end_ns * 1e-9])
    assert (line.output_tokens_per_s * width_s).sum() == pytest.approx(made, abs=256)
    assert line.kv_used_frac.max() <= 1
    assert line.busy_frac.max() <= 1 + 1e-12


def test_overrides_and_scenarios_are_the_same_thing(result):
    scenario = ls.Scenario.load("assistants").override(MIXED)
    assert ls.run(scenario).digest == result.digest
    assert ls.run(scenario).digest == result.digest  # twice: a scenario keeps no state
    assert ls.run(scenario, seed=99).digest != result.digest
    assert ls.run(scenario, {"seed": 99}).digest == ls.run(scenario, seed=99).digest


@pytest.mark.slow
def test_a_fresh_process_decides_the_same(result, tmp_path):
    code = f"import llmsim; print(llmsim.run('assistants', {MIXED!r}).digest)"
    for salt in ("0", "1"):
        done = call([sys.executable, "-c", code], tmp_path, PYTHONHASHSEED=salt)
        assert done.stdout.strip() == result.digest


@pytest.mark.slow
def test_an_unrelated_registration_changes_nothing(result, tmp_path):
    code = (
        "from dataclasses import dataclass\n"
        "from llmsim.policies import ROUTING\n"
        "@ROUTING.register('a-router')\n"
        "@dataclass\n"
        "class Unused: ...\n"
        f"import llmsim; print(llmsim.run('assistants', {MIXED!r}).digest)"
    )
    assert call([sys.executable, "-c", code], tmp_path).stdout.strip() == result.digest


def test_merged_and_single_steps_are_the_same_run(result):
    stepped = ls.run("assistants", MIXED | {"engine.fast_forward": False})
    assert stepped.digest == result.digest
    pd.testing.assert_frame_equal(stepped.requests, result.requests)
    assert stepped.facts.events > 1.5 * result.facts.events


def test_a_saved_run_reads_back_as_it_was(result, tmp_path):
    folder = result.save(tmp_path / "run")
    again = ls.load(folder)
    pd.testing.assert_frame_equal(again.requests, result.requests)
    pd.testing.assert_frame_equal(again.summary(), result.summary())
    pd.testing.assert_frame_equal(again.timeline(), result.timeline())
    assert (again.digest, again.facts.events) == (result.digest, result.facts.events)
    assert again.warnings == result.warnings
    told = json.loads((folder / "summary.json").read_text())["metrics"]
    for name, value in result.metrics.items():
        assert told[name]["value"] == (None if math.isnan(value) else pytest.approx(value))
    rerun = ls.run(folder / "scenario.yaml")
    assert rerun.digest == result.digest


def test_out_saves_and_refuses_before_it_simulates(tmp_path):
    few = {"traffic.requests": 40}
    ls.run("quickstart", few, out=tmp_path / "run")
    with pytest.raises(ls.OutputError, match="is not empty"):
        ls.run("quickstart", few, out=tmp_path / "run", progress=lambda *_: pytest.fail("it ran"))
    assert ls.run("quickstart", few, out=tmp_path / "run", force=True).facts.requests == 40


def test_progress_counts_up_to_the_end():
    seen = []
    found = ls.run(
        "quickstart",
        {"traffic.requests": 20_000, "fleet.pools.main.replicas": 4},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found.facts.requests == 20_000
    assert [total for _, total in seen] == [20_000] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) >= 2


def test_names_and_cards():
    assert "least-loaded" in ls.names("routing")
    with pytest.raises(ls.RegistryError, match="Did you mean 'routing'"):
        ls.names("router")
    card = ls.card("gpu", "h100-sxm")
    assert all(row.unit and row.source for row in card.rows())
    with pytest.raises(ls.CardError, match="Did you mean 'h100-sxm'"):
        ls.card("gpu", "h100")
    with pytest.raises(ls.RegistryError, match="unknown kind of card 'gpus'"):
        ls.card("gpus", "h100-sxm")


def test_a_missing_run_folder_is_wrong_input(tmp_path):
    with pytest.raises(ls.InputError, match="is this a run folder"):
        ls.load(Path(tmp_path) / "nowhere")
