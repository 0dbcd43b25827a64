import json
import math
from dataclasses import replace

import numpy as np
import pytest
from example_runs import MS, POOL, S, facts_of, queue_run, row, same, table_of

from llmsim.core.errors import InputError, InvariantError
from llmsim.results.columns import OUTCOMES
from llmsim.results.facts import ReplicaFacts
from llmsim.results.histogram import LogHistogram
from llmsim.results.metrics import METRICS
from llmsim.results.slo import Slo
from llmsim.results.summary import summarize
from llmsim.results.timeline import Timeline


def served(i, arrival_s, ttft_ms, tpot_ms, tokens, worst_ms=0, **given):
    first = int(arrival_s * S) + ttft_ms * MS
    return row(
        i,
        arrival_ns=int(arrival_s * S),
        scheduled_ns=int(arrival_s * S) + ttft_ms * MS // 2,
        first_token_ns=first,
        end_ns=first + tpot_ms * MS * (tokens - 1),
        prompt_tokens=100,
        output_tokens=tokens,
        itl_max_ns=worst_ms * MS,
        **given,
    )


ROWS = [
    served(0, 0, 100, 10, 11, 20),  # ends 0.2 s, e2e 0.2
    served(1, 1, 200, 20, 11, 30),  # ends 1.4 s, e2e 0.4
    served(2, 2, 300, 30, 11, 90),  # ends 2.6 s, e2e 0.6
    served(3, 3, 400, 40, 1),  # ends 3.4 s, e2e 0.4, no TPOT
    served(4, 4, 900, 10, 11, 10, recomputed_tokens=70),  # ends 5.0 s, e2e 1.0
    row(5, "rejected", arrival_ns=5 * S, scheduled_ns=-1, first_token_ns=-1, end_ns=5 * S, pool=-1),
    row(6, "running_at_end", arrival_ns=9 * S, scheduled_ns=9 * S, first_token_ns=9 * S + 500 * MS,
        end_ns=10 * S, prompt_tokens=100, output_tokens=5),
    row(7, "provider_failed", arrival_ns=6 * S, scheduled_ns=-1, first_token_ns=-1, end_ns=6 * S,
        pool=-1),
]  # fmt: skip


def summary_of(rows=ROWS, slo=None, warmup_s=0.0, end_s=10, **given):
    timeline = Timeline(S)
    timeline.span(0, 4 * S, 1, 2, 10, 30, 0, 0, True)
    timeline.span(4 * S, 10 * S, 0, 0, 50, 50, 0, 0, False)
    itl = LogHistogram()
    for gap_ms, count in ((10, 90), (20, 9), (1_000, 1)):
        itl.add(gap_ms * MS, count)
    facts = facts_of(len(rows), end_s * S, timeline, itl, **given)
    return summarize(table_of(rows), facts, slo or Slo(), warmup_s)


def test_every_metric_is_there_in_order():
    summary = summary_of()
    assert [m.name for m in summary.metrics] == [d.name for d in METRICS]
    assert len({d.name for d in METRICS}) == len(METRICS)
    assert list(summary.table().columns) == ["metric", "value", "unit", "ci_low", "ci_high", "note"]


def test_counts_by_outcome_add_up():
    value = summary_of().values()
    assert value["requests"] == 8
    assert value["requests_finished"] == 5
    assert value["requests_rejected"] == value["requests_running_at_end"] == 1
    assert value["requests_provider_failed"] == 1
    assert sum(value[f"requests_{o}"] for o in OUTCOMES) == 8
    assert value["not_served_frac"] == pytest.approx(2 / 7)


def test_latencies_by_hand():
    value = summary_of().values()
    # first tokens after 100, 200, 300, 400, 500 (never done) and 900 ms
    assert value["ttft_p50_s"] == pytest.approx(0.35)
    assert value["ttft_p90_s"] == pytest.approx(0.7)
    assert value["ttft_p99_s"] == pytest.approx(0.5 + 0.95 * 0.4)
    assert value["ttft_mean_s"] == pytest.approx(0.4)
    # TPOT 10, 10, 20, 30 ms: one request had a single token, one never finished
    assert value["tpot_p50_s"] == pytest.approx(0.015)
    assert value["tpot_mean_s"] == pytest.approx(0.0175)
    # E2E 0.2, 0.4, 0.4, 0.6, 1.0 s
    assert value["e2e_p50_s"] == pytest.approx(0.4)
    assert value["e2e_mean_s"] == pytest.approx(0.52)
    # queue 0, 50, 100, 150, 200, 450 ms
    assert value["queue_p50_s"] == pytest.approx(0.125)
    assert value["queue_mean_s"] == pytest.approx(0.95 / 6)


def test_gaps_come_from_the_histogram():
    value = summary_of().values()
    assert value["itl_p50_s"] == pytest.approx(0.010, rel=0.004)
    assert value["itl_p90_s"] == pytest.approx(0.010, rel=0.004)
    assert value["itl_p99_s"] == pytest.approx(0.020, rel=0.004)
    assert value["itl_mean_s"] == pytest.approx((0.9 + 0.18 + 1) / 100, rel=0.002)


def test_rates_by_hand():
    value = summary_of(slo=Slo(ttft_s=0.4)).values()
    assert value["window_s"] == 10
    assert value["throughput_rps"] == pytest.approx(0.5)
    assert value["goodput_rps"] == pytest.approx(0.4)
    assert value["output_tokens_per_s"] == pytest.approx((4 * 11 + 1 + 5) / 10)
    assert value["total_tokens_per_s"] == pytest.approx((50 + 500) / 10)
    # the last request comes after 9 s, and is still running after 10 s
    assert value["undrained_output_tokens_per_s"] == pytest.approx((4 * 11 + 1) / 9)


def test_the_time_in_which_a_fleet_empties_is_left_out():
    value = summary_of(rows=ROWS[:5]).values()  # the last comes after 4 s, and ends after 5 s
    assert value["undrained_output_tokens_per_s"] == pytest.approx((3 * 11 + 1) / 4)
    assert math.isnan(summary_of(rows=ROWS[:1]).values()["undrained_output_tokens_per_s"])


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        (Slo(ttft_s=0.4), 4),
        (Slo(ttft_s=0.3999), 3),
        (Slo(tpot_s=0.02), 4),  # the single token cannot break it
        (Slo(itl_s=0.02), 3),
        (Slo(itl_s=0.01), 2),
        (Slo(e2e_s=0.4), 3),
        (Slo(ttft_s=0.3, itl_s=0.05), 2),
        (Slo(ttft_s=9, tpot_s=9, itl_s=9, e2e_s=9), 5),
    ],
)
def test_attainment_counts_what_did_not_finish_as_a_miss(slo, kept):
    value = summary_of(slo=slo).values()
    # of eight requests one failed in the recorded service and asks nothing of the fleet
    assert value["slo_attained_frac"] == pytest.approx(kept / 7)
    assert value["goodput_rps"] == pytest.approx(kept / 10)


def test_attainment_of_each_objective_alone():
    value = summary_of(slo=Slo(ttft_s=0.3, itl_s=0.05)).values()
    assert value["slo_ttft_attained_frac"] == pytest.approx(3 / 7)
    assert value["slo_itl_attained_frac"] == pytest.approx(4 / 7)
    assert math.isnan(value["slo_e2e_attained_frac"])


def test_without_objectives_there_is_no_goodput():
    summary = summary_of()
    assert math.isnan(summary.values()["goodput_rps"])
    assert math.isnan(summary.values()["slo_attained_frac"])
    assert summary.claim.value == "not set"


def test_memory_and_work_by_hand():
    value = summary_of().values()
    # 100 blocks: 20 in the mean for 4 s, then 50 for 6 s
    assert value["kv_used_mean_frac"] == pytest.approx((20 * 4 + 50 * 6) / 10 / 100)
    assert value["kv_used_peak_frac"] == 0.8
    assert value["prefix_hit_frac"] == 0.25
    assert value["preemptions"] == 3
    assert value["recomputed_tokens"] == 70
    assert value["busy_mean_frac"] == value["busy_min_frac"] == pytest.approx(0.4)


def test_money_by_hand():
    value = summary_of().values()
    assert value["usd_per_hour"] == 6.0  # one replica of two GPUs at 3 USD
    assert value["usd_per_million_output_tokens"] == pytest.approx(6 / 3600 / 5 * 1e6)
    assert value["usd_per_million_tokens"] == pytest.approx(6 / 3600 / 55 * 1e6)


def test_no_price_no_cost():
    summary = summary_of(pools=(replace(POOL, usd_per_gpu_hour=math.nan),))
    assert math.isnan(summary.values()["usd_per_hour"])
    assert math.isnan(summary.values()["usd_per_million_tokens"])
    assert any("No price is known for h100-sxm" in text for text in summary.warnings)


def test_a_warm_up_cuts_each_population_its_own_way():
    value = summary_of(slo=Slo(ttft_s=0.4), warmup_s=2.0).values()
    # arrived from 2 s on: 2, 3, 4 (done), 5, 6 (not), 7 (not asked)
    assert value["slo_attained_frac"] == pytest.approx(2 / 5)
    assert value["ttft_mean_s"] == pytest.approx((0.3 + 0.4 + 0.9 + 0.5) / 4)
    # ended from 2 s on: 2, 3, 4
    assert value["throughput_rps"] == pytest.approx(3 / 8)
    assert value["window_s"] == 8
    # KV rises from 10 to 30 blocks in 4 s, so from 20 to 30 in the two that are left
    assert value["kv_used_mean_frac"] == pytest.approx((25 * 2 + 50 * 6) / 8 / 100)
    assert value["busy_mean_frac"] == pytest.approx(2 / 8)
    assert value["requests"] == 8


def test_a_run_that_ends_in_its_warm_up_says_nothing():
    summary = summary_of(slo=Slo(ttft_s=1), warmup_s=20)
    value = summary.values()
    for name in ("ttft_p50_s", "throughput_rps", "slo_attained_frac", "kv_used_mean_frac"):
        assert math.isnan(value[name]), name
    assert "No request arrived after the warm-up." in summary.warnings


def test_an_empty_run_has_a_summary():
    value = summarize(table_of([]), facts_of(0, 0), Slo(ttft_s=1)).values()
    assert value["requests"] == 0
    assert math.isnan(value["ttft_p50_s"])


def test_replicas_one_by_one():
    idle = Timeline(S)
    idle.span(0, 10 * S, 0, 0, 0, 0, 0, 0, False)
    busy = Timeline(S)
    busy.span(0, 10 * S, 1, 0, 60, 60, 0, 0, True)
    replicas = tuple(
        ReplicaFacts("main", i, t.finish(), 1, 1, i, 60 * i, 0, 0, 0)
        for i, t in enumerate((idle, busy))
    )
    summary = summary_of(pools=(replace(POOL, replicas=2),), replicas=replicas)
    assert [r.busy_frac for r in summary.replicas] == [0.0, 1.0]
    assert [r.kv_used_mean_frac for r in summary.replicas] == [0.0, pytest.approx(0.6)]
    value = summary.values()
    assert (value["busy_min_frac"], value["busy_mean_frac"], value["busy_max_frac"]) == (0, 0.5, 1)
    assert value["kv_used_mean_frac"] == pytest.approx(0.3)
    assert math.isnan(value["prefix_hit_frac"])


def test_rows_in_any_order_give_the_same_numbers():
    one = summary_of(slo=Slo(ttft_s=0.4)).values()
    other = summary_of(rows=ROWS[::-1], slo=Slo(ttft_s=0.4)).values()
    assert all(same(one[name], other[name]) for name in one)


def test_a_long_run_has_intervals_around_its_values():
    summary = queue_run(0.6, 12_000, slo=Slo(ttft_s=0.5)).evaluate()
    found = {m.name: m for m in summary.metrics}
    for name in ("ttft_p99_s", "e2e_mean_s", "slo_attained_frac", "goodput_rps", "throughput_rps"):
        metric = found[name]
        assert metric.ci_low < metric.value < metric.ci_high, name
    # M/M/1: mean time in system 1 / (mu - lambda) = 1 / (10 - 6) s
    assert found["e2e_mean_s"].ci_low < 0.25 < found["e2e_mean_s"].ci_high
    assert found["busy_mean_frac"].value == pytest.approx(0.6, rel=0.05)


def test_few_requests_are_said_to_be_few():
    summary = summary_of(slo=Slo(ttft_s=1))
    assert math.isnan(next(m for m in summary.metrics if m.name == "slo_attained_frac").ci_low)
    assert any("intervals need 200" in text for text in summary.warnings)
    assert any("1 requests failed in the recorded service" in text for text in summary.warnings)


def test_warnings_of_the_run_come_first():
    summary = summary_of(warnings=("3 rows were skipped",), interrupted=True)
    assert summary.warnings[0] == "3 rows were skipped"
    assert "interrupted" in summary.warnings[1]


def test_a_request_without_an_outcome_is_a_bug():
    with pytest.raises(InvariantError, match="9 requests arrived, but 8 have an outcome"):
        summary_of(requests=9)


@pytest.mark.parametrize("warmup_s", [-1.0, math.nan, math.inf])
def test_a_warm_up_must_be_a_time(warmup_s):
    with pytest.raises(InputError, match="warmup_s"):
        summary_of(warmup_s=warmup_s)


def test_summary_json_is_json():
    text = json.dumps(summary_of(slo=Slo(ttft_s=0.4)).as_json(), allow_nan=False)
    read = json.loads(text)
    assert read["metrics"]["requests"]["value"] == 8
    assert read["metrics"]["slo_attained_frac"]["ci_low"] is None
    assert read["saturation"]["value"] == "overloaded"
    assert read["slo"]["ttft_s"] == 0.4
    assert read["saturation"]["slope"]["low"] is None


def test_all_wrong_objectives_are_named():
    with pytest.raises(InputError) as caught:
        Slo(ttft_s=-1, tpot_s=math.inf, itl_s=0.0, e2e_s=1, attained_frac=1.5)
    assert [f.path for f in caught.value.faults] == [
        "slo.ttft_s",
        "slo.tpot_s",
        "slo.itl_s",
        "slo.attained_frac",
    ]


def test_other_objectives_need_no_other_run():
    result = queue_run(0.6, 2_000)
    strict = result.evaluate(Slo(ttft_s=0.05)).values()["slo_attained_frac"]
    loose = result.evaluate(Slo(ttft_s=50)).values()["slo_attained_frac"]
    assert strict < 0.5 < loose == 1.0
    ttft = result.requests["ttft_s"]
    assert strict == pytest.approx(np.mean(ttft <= 0.05))
    assert math.isnan(result.metrics["slo_attained_frac"])
