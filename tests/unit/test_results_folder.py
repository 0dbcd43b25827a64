import json

import numpy as np
import pandas as pd
import pytest
from example_runs import INFO, MS, POOL, S, facts_of, queue_run, row, table_of

from llmsim.core.errors import InputError, OutputError
from llmsim.results.columns import TIMELINE_COLUMNS
from llmsim.results.histogram import LogHistogram
from llmsim.results.result import Result
from llmsim.results.slo import Slo
from llmsim.results.timeline import Timeline

FILES = {"scenario.yaml", "meta.json", "requests.parquet", "timelines.parquet", "summary.json"}


@pytest.fixture
def result():
    return queue_run(0.6, 400, slo=Slo(ttft_s=0.5), warnings=("2 rows were skipped",))


def test_a_saved_run_comes_back_as_it_was(result, tmp_path):
    folder = result.save(tmp_path / "run")
    assert {p.name for p in folder.iterdir()} == FILES
    back = Result.load(folder)
    pd.testing.assert_frame_equal(back.requests, result.requests)
    pd.testing.assert_frame_equal(back.summary(), result.summary())
    pd.testing.assert_frame_equal(back.timeline(), result.timeline())
    assert back.info == INFO
    assert back.slo == result.slo
    assert back.warnings == result.warnings
    assert back.digest == "d1"
    assert back.facts.itl.counts == result.facts.itl.counts
    for name in ("end_ns", "requests", "events", "interrupted", "pools", "warnings"):
        assert getattr(back.facts, name) == getattr(result.facts, name)
    (one,), (other,) = back.facts.replicas, result.facts.replicas
    assert one.timeline.bin_ns == other.timeline.bin_ns
    for name, values in other.timeline.levels.items():
        assert np.array_equal(one.timeline.levels[name], values)


def test_saving_what_was_loaded_gives_the_same_folder(result, tmp_path):
    first = result.save(tmp_path / "a")
    second = Result.load(first).save(tmp_path / "b")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_streamed_table_is_saved_too(tmp_path):
    table = table_of([row(0, end_ns=S, output_tokens=2)], tmp_path / "spilled.parquet")
    folder = Result(table, facts_of(1, S), INFO).save(tmp_path / "deep" / "er" / "run")
    assert len(Result.load(folder).requests) == 1


def test_what_the_files_say(result, tmp_path):
    folder = result.save(tmp_path / "run")
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["schema"] == 1
    assert (meta["seed"], meta["digest"], meta["events"]) == (7, "d1", 4_321)
    assert meta["llmsim_version"] == "0.1.0"
    assert meta["hashes"] == {"model": "abc"}
    assert meta["outcomes"]["finished"] == 400
    assert sum(meta["outcomes"].values()) == 400
    assert meta["interrupted"] is False
    assert meta["wall_s"] == 1.25
    assert (folder / "scenario.yaml").read_text() == INFO.scenario_yaml
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["throughput_rps"]["value"] == result.metrics["throughput_rps"]
    timelines = pd.read_parquet(folder / "timelines.parquet")
    assert list(timelines.columns) == [c.name for c in TIMELINE_COLUMNS]
    assert {c.name: str(timelines[c.name].dtype) for c in TIMELINE_COLUMNS} == {
        c.name: c.dtype for c in TIMELINE_COLUMNS
    }


def test_a_folder_in_use_is_refused(result, tmp_path):
    folder = result.save(tmp_path / "run")
    before = (folder / "meta.json").read_bytes()
    with pytest.raises(OutputError, match="not empty"):
        queue_run(0.5, 300).save(folder)
    assert (folder / "meta.json").read_bytes() == before
    queue_run(0.5, 300).save(folder, force=True)
    assert len(Result.load(folder).requests) == 300
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_force_never_deletes_what_is_no_run(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="no run folder"):
        result.save(tmp_path, force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_or_link_is_no_folder(result, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OutputError, match="is not a folder"):
            result.save(tmp_path / name, force=True)


def test_an_empty_folder_may_be_used(result, tmp_path):
    (tmp_path / "run").mkdir()
    result.save(tmp_path / "run")
    assert Result.load(tmp_path / "run").digest == "d1"


def test_a_loaded_run_can_replace_itself(result, tmp_path):
    folder = result.save(tmp_path / "run")
    again = Result.load(folder)
    again.save(folder, force=True)
    assert len(again.requests) == 400


def test_nothing_is_left_when_saving_fails(result, tmp_path):
    def broken(_):
        raise RuntimeError("no paper")

    failing = Result(result.table, result.facts, INFO, render=broken)
    with pytest.raises(RuntimeError, match="no paper"):
        failing.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*: .*/file is not a folder$") as caught:
        result.save(tmp_path / "file" / "a" / "run")
    assert caught.value.__cause__ is None  # a wrong name is no fault of the machine
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_report_is_written_by_what_was_handed_in(result, tmp_path):
    with_report = Result(result.table, result.facts, INFO, render=lambda r: f"<p>{r.digest}</p>")
    assert (with_report.save(tmp_path / "run") / "report.html").read_text() == "<p>d1</p>"


def test_folders_that_are_no_runs(result, tmp_path):
    with pytest.raises(InputError, match="is this a run folder"):
        Result.load(tmp_path)
    folder = result.save(tmp_path / "run")
    (folder / "timelines.parquet").unlink()
    (folder / "scenario.yaml").unlink()
    with pytest.raises(InputError) as caught:
        Result.load(folder)
    assert len(caught.value.faults) == 2


def bins(meta, width):
    """Return a run whose timelines have bins of this width."""
    first, *others = meta["replicas"]
    return meta | {"replicas": [first | {"bin_ns": width}, *others]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda meta: meta | {"schema": 99}, "read 99, but this llmsim reads version 1"),
        (lambda meta: {k: v for k, v in meta.items() if k != "pools"}, "'pools'"),
        (lambda meta: [], "read None"),
        (lambda meta: meta | {"requests": 7}, "holds 400 rows, but meta.json says 7"),
        (lambda meta: bins(meta, 1e300), "bin_ns is 1e[+]300, not a whole number"),
        (lambda meta: bins(meta, 0), "bin_ns is 0"),
        (lambda meta: meta | {"end_ns": 10**30}, "end_ns is 1e[+]30, which no run reaches"),
        (lambda meta: meta | {"end_ns": 1.5}, "end_ns is 1.5, not a whole number"),
    ],
)
def test_damaged_meta_is_named(result, tmp_path, change, told):
    folder = result.save(tmp_path / "run")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(change(meta)))
    with pytest.raises(InputError, match=told):
        Result.load(folder)


def test_text_that_is_no_json_and_a_table_that_is_none(result, tmp_path):
    folder = result.save(tmp_path / "run")
    (folder / "timelines.parquet").write_text("hello")
    with pytest.raises(InputError, match="is not Parquet"):
        Result.load(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Result.load(folder)


def test_requests_come_in_order_of_arrival():
    rows = [row(i, arrival_ns=i * MS, end_ns=(10 - i) * S) for i in (3, 1, 0, 2)]
    requests = Result(table_of(rows), facts_of(4, 10 * S), INFO).requests
    assert requests["request"].tolist() == [0, 1, 2, 3]
    assert requests["end_s"].tolist() == [10, 9, 8, 7]


def test_the_words_of_a_notebook(result):
    text = repr(result)
    assert "400 of 400 requests" in text
    assert "warning: 2 rows were skipped" in text
    page = result._repr_html_()
    assert "llama-3.1-8b on 1 x h100-sxm" in page
    assert "ttft_p99_s" in page


def test_markup_in_names_is_escaped(result):
    odd = Result(result.table, facts_of(400, S, warnings=("<b>",)), INFO)
    assert "&lt;b&gt;" in odd._repr_html_()


def test_timelines_of_pools_without_replicas_and_empty_bins(tmp_path):
    facts = facts_of(0, 0, Timeline(), LogHistogram(), pools=(POOL,))
    back = Result.load(Result(table_of([]), facts, INFO).save(tmp_path / "run"))
    assert back.facts.replicas[0].timeline.bin_ns == 10_000_000
    assert len(back.timeline()) == 1
    assert (back.timeline()["running"] == 0).all()
