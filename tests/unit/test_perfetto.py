"""A run as a trace: steps fill the busy time, requests are those of the table, everything nests."""

import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app
from llmsim.core.errors import InputError
from llmsim.report.perfetto import trace_lines

SMALL = {"traffic.requests": 150, "record.steps": True}
KINDS = {
    "quickstart": SMALL,
    "disaggregated": {"traffic.duration_s": 8, "traffic.warmup_s": 0, "record.steps": True},
    "pipeline": SMALL,
    "ranks": {"traffic.duration_s": 3, "traffic.warmup_s": 0, "record.steps": True},
    "two-nodes": {"traffic.duration_s": 3, "traffic.warmup_s": 0, "record.steps": True},
}


def told(result):
    return json.loads("".join(trace_lines(result)))


@pytest.mark.parametrize("name", KINDS)
def test_steps_fill_the_time_in_which_replicas_were_busy(name):
    run = ls.run(name, KINDS[name])
    steps = run.steps
    assert (steps.end_ns > steps.start_ns).all()
    for replica in run.facts.replicas:
        mine = steps[steps.replica == replica.index]
        totals = replica.timeline.totals
        assert mine.steps.sum() == replica.steps
        if name != "disaggregated":  # there a prompt's token is computed twice, delivered once
            assert mine.output_tokens.sum() == round(totals["output_tokens"].sum())
        assert mine.prefill_tokens.sum() == round(totals["prefill_tokens"].sum())
        lasted = (mine.end_ns - mine.start_ns).sum()
        assert lasted == pytest.approx(totals["busy_ns"].sum(), rel=1e-9)
    by_track = defaultdict(list)
    for event in told(run)["traceEvents"]:
        if event["ph"] == "X":
            by_track[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in by_track.values():
        ends = np.array(spans)
        assert (ends[1:, 0] >= ends[:-1, 1] - 1e-3).all()  # nothing overlaps on a track
    if name not in ("pipeline", "two-nodes"):
        assert len(by_track) == len({pid for pid, _ in by_track})


def test_requests_are_those_of_the_table_and_phases_nest():
    run = ls.run("quickstart", SMALL)
    opened, ends, names = defaultdict(list), {}, defaultdict(list)
    for event in told(run)["traceEvents"]:
        if event["ph"] == "b":
            opened[event["id"]].append(event)
            names[event["id"]].append(event["name"])
        elif event["ph"] == "e":
            begun = opened[event["id"]].pop()
            assert begun["name"] == event["name"]
            assert event["ts"] >= begun["ts"]
            ends[event["id"], event["name"]] = begun["ts"], event["ts"], begun
    assert not any(opened.values())
    for row in run.requests.itertuples():
        start, end, begun = ends[row.request, f"request {row.request}"]
        assert start == pytest.approx(row.arrival_s * 1e6, abs=1e-3)
        assert end == pytest.approx(row.end_s * 1e6, abs=1e-3)
        assert begun["pid"] == row.replica + 1
        assert begun["args"]["output_tokens"] == row.output_tokens
        assert names[row.request][1:] == ["queue", "prefill", "decode"]
        assert ends[row.request, "decode"][0] == pytest.approx(
            (row.arrival_s + row.ttft_s) * 1e6, abs=2e-3
        )


def test_every_step_is_its_own_where_none_are_merged():
    merged = ls.run("quickstart", SMALL)
    single = ls.run("quickstart", SMALL | {"engine.fast_forward": False})
    assert single.digest == merged.digest
    assert (single.steps.steps == 1).all()
    assert len(single.steps) == merged.steps.steps.sum() > len(merged.steps)


def test_a_saved_run_keeps_its_steps_and_gives_the_same_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run", "quickstart", "--set", "traffic.requests=60", "--out", "a", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--perfetto", "a.json"])
    assert (done.exit_code, done.stdout) == (0, "a\n")
    done = CliRunner().invoke(app, ["report", "a", "--perfetto", "b.json", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["metrics"]["requests_finished"]["value"] == 60
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    pd.testing.assert_frame_equal(
        ls.load("a").steps, ls.run("quickstart", SMALL | {"traffic.requests": 60}).steps
    )


def test_a_run_without_steps_has_a_trace_of_its_requests():
    run = ls.run("quickstart", {"traffic.requests": 20})
    kinds = {event["ph"] for event in told(run)["traceEvents"]}
    assert kinds == {"M", "C", "b", "e"}
    with pytest.raises(InputError, match=r"record\.steps"):
        run.steps  # noqa: B018
