"""Fidelity does not rot unseen: a fixed sample of measured cases, each under its ceiling."""

from pathlib import Path

import pytest

from llmsim.fidelity.cases import Case, read_cases
from llmsim.fidelity.kvmemory import BAR_GIB, check_kv_memory
from llmsim.fidelity.replay import prepare, simulate_all
from llmsim.fidelity.requests import RequestFiles
from llmsim.fidelity.sample import (
    CASES,
    ceilings_of,
    draw_sample,
    read_ceilings,
    write_ceilings,
)
from llmsim.fidelity.scores import headline_scores, score_case

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "ground_truth"
CEILINGS = Path(__file__).with_name("ceilings.csv")

needs_data = pytest.mark.skipif(not MEASURED.is_dir(), reason="the measurements are not here")


@pytest.mark.slow
@needs_data
def test_no_case_is_worse_than_it_was(tmp_path):
    cases = read_cases(MEASURED)
    sample = draw_sample(cases)
    work, left = prepare(sample, RequestFiles(MEASURED, tmp_path, cases))
    replayed = [*simulate_all(work, jobs=2), *left]
    scores = headline_scores(score for each in replayed for score in score_case(each))
    ceilings = read_ceilings(CEILINGS)
    lost = sorted({case_id for case_id, _ in ceilings} - {case_id for case_id, _ in scores})
    assert lost == []
    worse = {
        key: (round(abs(scores[key].error_frac), 3), ceiling)
        for key, ceiling in ceilings.items()
        if abs(scores[key].error_frac) > ceiling
    }
    assert worse == {}


@needs_data
def test_the_sample_is_spread_and_fixed():
    cases = read_cases(MEASURED)
    sample = draw_sample(cases)
    assert len(sample) <= CASES <= 150
    assert {case.quality for case in sample} == {"A"}
    assert [c.case_id for c in draw_sample(reversed(cases))] == [c.case_id for c in sample]
    assert len({case.text("source") for case in sample}) >= 5
    assert len({case.model_key for case in sample}) >= 5
    drawn = {case.case_id for case in sample}
    assert {case_id for case_id, _ in read_ceilings(CEILINGS)} <= drawn


@needs_data
def test_kv_memory_is_within_its_bar_where_the_log_says_enough():
    rows = [row for row in check_kv_memory(MEASURED) if row.scored]
    assert len(rows) >= 8
    wrong = [(row.name, row.error_gib) for row in rows if abs(row.error_gib) > BAR_GIB]
    assert wrong == []


def test_ceilings_come_back_as_written(tmp_path):
    case = Case("a", "A", {"source": "s", "arrival": "closed loop"}, {("tpot", "mean"): 1.0})
    from llmsim.fidelity.scores import Score

    scores = {("a", "tpot"): Score(case, "tpot", "mean", 1.0, 1.234)}
    ceilings = ceilings_of([case], scores)
    assert ceilings == {("a", "tpot"): pytest.approx(0.24)}
    write_ceilings(ceilings, tmp_path / "c.csv")
    assert read_ceilings(tmp_path / "c.csv") == ceilings
