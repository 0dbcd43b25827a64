"""The table of programs, from calls whose times are known."""

from __future__ import annotations

import math

import pytest
from example_runs import INFO, S, facts_of, queue_run, row

from llmsim.core.errors import InputError
from llmsim.results.columns import PROGRAM_COLUMNS
from llmsim.results.metrics import PROGRAM_METRICS
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.results.store import RequestSink


def call(request, program, turn, final, arrival_s, start_s, end_s, outcome="finished", **given):
    times = {
        "arrival_ns": int(arrival_s * S),
        "scheduled_ns": int(start_s * S),
        "first_token_ns": int(start_s * S),
        "end_ns": int(end_s * S),
    }
    tokens = {"prompt_tokens": 100, "cached_tokens": 40, "output_tokens": 10}
    return (*row(request, outcome, session=program, **times, **(tokens | given)), turn, final)


def result_of(rows, slo=None, warmup_s=0.0):
    sink = RequestSink(("main",), ("alice", "bob"), programs=True)
    sink.rows.extend(rows)
    table = sink.close()
    return Result(table, facts_of(len(rows), 30 * S), INFO, slo, warmup_s)


ROWS = [
    call(0, 0, 0, 0, 0.0, 1.0, 2.0, client=1),
    call(1, 1, 0, 0, 0.5, 1.0, 3.0),
    call(3, 1, 1, 1, 4.0, 4.0, 5.0, "timed_out", output_tokens=2),
    call(2, 0, 1, 0, 5.0, 5.5, 7.0, client=1, preemptions=2),
    call(4, 0, 2, 1, 7.0, 7.0, 9.0, client=1),
    call(5, 2, 0, 1, 8.0, 8.0, 10.0),
]


def test_a_program_runs_from_its_first_call_to_its_last_token():
    frame = result_of(ROWS).programs
    assert list(frame.columns) == [column.name for column in PROGRAM_COLUMNS]
    assert frame.program.tolist() == [0, 1, 2]
    assert frame.client.tolist() == ["bob", "", ""]
    assert frame.outcome.tolist() == ["finished", "timed_out", "finished"]
    assert frame.jct_s.tolist()[::2] == [9.0, 2.0]
    assert math.isnan(frame.jct_s[1])
    assert frame.pause_s.tolist() == [3.0, 1.0, 0.0]
    assert frame.queue_s.tolist() == [1.5, 0.5, 0.0]
    assert frame.calls.tolist() == [3, 2, 1]
    assert frame.prompt_tokens.tolist() == [300, 200, 100]
    assert frame.cached_tokens.tolist() == [120, 80, 40]
    assert frame.output_tokens.tolist() == [30, 12, 10]
    assert frame.preemptions.tolist() == [2, 0, 0]


def test_a_program_between_two_calls_has_not_finished():
    frame = result_of(ROWS[:1]).programs
    assert frame.outcome.tolist() == ["running_at_end"]
    assert math.isnan(frame.jct_s[0])


def test_metrics_of_programs():
    values = result_of(ROWS, Slo(jct_s=8.0)).metrics
    assert values["programs"] == 3
    assert values["programs_finished"] == 2
    assert values["jct_mean_s"] == 5.5
    assert values["jct_p50_s"] == 5.5
    assert values["slo_jct_attained_frac"] == pytest.approx(1 / 3)
    assert values["program_calls_mean"] == 2.0
    assert values["program_pause_mean_s"] == pytest.approx(4 / 3)
    late = result_of(ROWS, Slo(jct_s=8.0), warmup_s=8.0).metrics
    assert (late["jct_mean_s"], late["slo_jct_attained_frac"]) == (2.0, 1.0)
    assert math.isnan(result_of(ROWS).metrics["slo_jct_attained_frac"])


def test_other_runs_have_no_programs():
    plain = queue_run(0.5, 50)
    assert not {metric.name for metric in PROGRAM_METRICS} & set(plain.metrics)
    with pytest.raises(InputError, match="has no programs"):
        _ = plain.programs


def test_a_saved_run_keeps_its_programs(tmp_path):
    made = result_of(ROWS, Slo(jct_s=8.0))
    again = Result.load(made.save(tmp_path / "run"))
    assert again.metrics.keys() == made.metrics.keys()
    assert again.programs.equals(made.programs)
    assert (tmp_path / "run" / "programs.parquet").is_file()
    assert again.slo.jct_s == 8.0
