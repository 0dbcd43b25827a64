import math

import pytest
from example_runs import POOL, S, facts_of, queue_run, row, table_of

from llmsim.results.intervals import Interval
from llmsim.results.slo import Slo
from llmsim.results.summary import LENGTH_NOTE, summarize
from llmsim.results.timeline import Timeline
from llmsim.results.verdict import Verdict, claim

SLO = Slo(ttft_s=0.5, attained_frac=0.9)


@pytest.mark.slow
def test_a_queue_at_70_percent_is_stable():
    values = [queue_run(0.7, 2_500, seed).evaluate().verdict.value for seed in range(20)]
    assert values.count("stable") >= 18
    assert values.count("overloaded") <= 1


@pytest.mark.slow
def test_a_queue_at_120_percent_is_overloaded():
    values = [queue_run(1.2, 4_000, seed).evaluate().verdict.value for seed in range(20)]
    assert values.count("overloaded") >= 18
    assert "stable" not in values


def test_growth_is_measured_in_requests_per_second():
    found = queue_run(1.5, 6_000, seed=1).evaluate().verdict
    # arrivals at 15/s and service at 10/s leave 5/s behind
    assert 0 < found.slope.low < found.slope.value < found.slope.high
    assert found.slope.value == pytest.approx(5, rel=0.2)
    assert found.end_s == pytest.approx(400, rel=0.1)
    assert found.start_s == pytest.approx(found.end_s / 2, rel=0.01)
    assert "it grows" in found.reason


def test_an_overloaded_run_marks_its_latencies_and_claims_nothing():
    summary = queue_run(1.2, 4_000, slo=Slo(tpot_s=1.0)).evaluate()
    noted = {m.name for m in summary.metrics if m.note == LENGTH_NOTE}
    assert {"ttft_p99_s", "e2e_p99_s", "queue_p90_s", "slo_attained_frac"} <= noted
    assert not {"throughput_rps", "kv_used_peak_frac"} & noted
    assert summary.values()["slo_attained_frac"] == 1.0
    assert summary.claim.value == "not claimed"
    assert any("overloaded" in text for text in summary.warnings)


def test_a_stable_run_marks_nothing():
    assert not any(m.note for m in queue_run(0.5, 2_000).evaluate().metrics)


def test_few_requests_are_too_short_to_tell():
    summary = queue_run(0.7, 150, slo=SLO).evaluate()
    assert summary.verdict.value == "too short to tell"
    assert math.isnan(summary.verdict.slope.value)
    assert summary.claim.value == "undecided"


def test_a_batch_that_arrives_at_once_has_no_arrival_period():
    rows = [row(i, end_ns=S, output_tokens=2) for i in range(500)]
    summary = summarize(table_of(rows), facts_of(500, S), Slo())
    assert summary.verdict.value == "too short to tell"


def steady(outcomes, **given):
    """Evenly spaced arrivals over 100 s, nothing ever waiting, with these outcomes."""
    timeline = Timeline()
    timeline.span(0, 100 * S, 1, 0, 0, 0, 0, 0, True)
    n = len(outcomes)
    rows = [
        row(i, outcome, arrival_ns=i * 100 * S // n, end_ns=100 * S)
        for i, outcome in enumerate(outcomes)
    ]
    return summarize(table_of(rows), facts_of(n, 100 * S, timeline, **given), Slo()).verdict


@pytest.mark.parametrize("outcome", ["queued_at_end", "running_at_end", "rejected", "timed_out"])
def test_more_than_one_percent_not_served_is_overload(outcome):
    assert steady(["finished"] * 990 + [outcome] * 10).value == "stable"
    found = steady(["finished"] * 989 + [outcome] * 11)
    assert found.value == "overloaded"
    assert f"11 {outcome.replace('_', ' ')}" in found.reason
    assert found.not_served_frac == pytest.approx(0.011)


@pytest.mark.parametrize("outcome", ["unservable", "aborted", "provider_failed"])
def test_what_no_fleet_could_serve_is_no_overload(outcome):
    assert steady(["finished"] * 900 + [outcome] * 100).value == "stable"


def test_an_interrupted_run_is_judged_by_its_slope_alone():
    outcomes = ["finished"] * 900 + ["running_at_end"] * 100
    assert steady(outcomes).value == "overloaded"
    assert steady(outcomes, interrupted=True).value == "stable"


def test_a_fleet_that_still_fills_up_is_not_called_stable():
    timeline = Timeline()
    for second in range(100):
        timeline.span(second * S, (second + 1) * S, 5 * second, 0, 0, 0, 0, 0, True)
    rows = [row(i, arrival_ns=i * S // 10, end_ns=100 * S) for i in range(1_000)]
    found = summarize(table_of(rows), facts_of(1_000, 100 * S, timeline), Slo()).verdict
    assert found.value == "too short to tell"
    assert "filling up" in found.reason


def verdict_of(value):
    return Verdict(value, "", Interval(0, 0, 0), 0, 1, 0)


@pytest.mark.parametrize(
    ("attained", "saturation", "wanted"),
    [
        ((0.95, 0.93, 0.97), "stable", "met"),
        ((0.85, 0.80, 0.89), "stable", "missed"),
        ((0.91, 0.89, 0.93), "stable", "undecided"),
        ((1.0, math.nan, math.nan), "stable", "undecided"),
        ((math.nan, math.nan, math.nan), "stable", "undecided"),
        ((0.95, 0.93, 0.97), "too short to tell", "undecided"),
        ((0.85, 0.80, 0.89), "too short to tell", "missed"),
        ((0.95, 0.93, 0.97), "overloaded", "not claimed"),
    ],
)
def test_what_may_be_claimed(attained, saturation, wanted):
    assert claim(SLO, Interval(*attained), verdict_of(saturation)).value == wanted


def test_no_objective_no_claim():
    assert claim(Slo(), Interval(1, 1, 1), verdict_of("stable")).value == "not set"


def test_growth_must_be_material():
    # certain, but 0.4 requests over half a run of 1,000 on one replica is nothing
    timeline = Timeline()
    for part in range(100):
        timeline.span(part * S, (part + 1) * S, 0, part // 50, 0, 0, 0, 0, True)
    rows = [row(i, arrival_ns=i * S // 10, end_ns=100 * S) for i in range(1_000)]
    assert summarize(table_of(rows), facts_of(1_000, 100 * S, timeline), Slo()).verdict.value == (
        "stable"
    )
    assert POOL.replicas == 1
