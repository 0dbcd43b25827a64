"""`llmsim validate` from outside: tables, files, scenarios that run, faults that help."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llmsim as ls
from llmsim.cli.app import app
from llmsim.cli.validating import _print_memory
from llmsim.fidelity import validation
from llmsim.fidelity.kvmemory import KvRow
from llmsim.scenario import Scenario

HEADER = (
    "case_id,quality,source,source_path,model,model_key,gpu,n_gpu,tp,dp,engine,engine_version,"
    "workload,isl,osl,arrival,rate_rps,concurrency,num_requests,metric,stat,value,unit\n"
)
RUNS = [("1", 7.0), ("2", 7.5), ("4", 8.0), ("8", 9.0)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = []
    for slots, tpot in RUNS:
        row = f"c{slots},A,lab,runs/x,llama,llama-3.1-8b,h100-sxm,1,1,1,vllm,0.15.1,random,"
        row += f"200,8,closed loop,inf,{slots},{slots},"
        rows += [f"{row}tpot,mean,{tpot},ms", f"{row}ttft,mean,40,ms"]
    rows.append(
        "d,B,lab,runs/x,llama,llama-3.1-8b,h100-sxm,1,1,1,tgi,2,r,9,9,single,,1,1,tpot,mean,9,ms"
    )
    rows.append(
        "e,C,lab,runs/x,llama,llama-3.1-8b,h100-sxm,1,1,1,vllm,2,r,9,9,single,,1,1,tpot,mean,9,ms"
    )
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "e2e.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return tmp_path / "lab"


def call(*words, code=0):
    asked = ["validate", *map(str, words)]
    result = CliRunner().invoke(app, asked, env={"COLUMNS": "80"})
    assert result.exit_code == code, result.output
    return result.output


def test_a_folder_is_validated(folder, tmp_path):
    out, scenarios = tmp_path / "out", tmp_path / "scenarios"
    told = call(folder, "--jobs", 1, "--out", out, "--save-scenarios", scenarios)
    assert "all cases" in told
    line = next(text for text in told.splitlines() if text.startswith("all cases"))
    assert line.split()[2:5] == ["4", "of", "5"]  # C is never scored, tgi is not simulated
    assert "tgi: the engine has no model here" in told
    assert "all ladders" in told  # four loads make a capacity
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["case_id"] for row in rows} == {f"c{slots}" for slots, _ in RUNS}
    assert "With coverage" in (out / "report.html").read_text()
    assert "<svg" in (out / "report.html").read_text()
    saved = sorted(scenarios.glob("*.yaml"))
    assert len(saved) == 4
    assert Scenario.load(saved[0]).traffic.arrivals.params["in_flight"] == 1


def test_the_answer_in_json_is_the_report(folder):
    told = json.loads(call(folder, "--jobs", 1, "--json"))
    (everything,) = told["groups"]["all"]
    assert (everything["cases"], everything["simulated"]) == (5, 4)
    by_hand = ls.validate(folder).summary("all").set_index("metric").loc["tpot"]
    assert everything["errors"]["tpot"]["median"] == by_hand["median_frac"]
    assert told["not_simulated"] == {"tgi: the engine has no model here": 1}
    (ladder,) = told["capacity"]
    ratio = ladder["predicted_tokens_per_s"] / ladder["measured_tokens_per_s"]
    assert ladder["error_frac"] == pytest.approx(ratio - 1)


def test_a_disk_that_is_full_leaves_no_half_report(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    call(folder, "--jobs", 1, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    told = call(folder, "--jobs", 1, "--out", out, "--fresh", code=3)
    assert "No space left on device" in told
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_page_of_the_docs_is_made_by_it(folder, tmp_path):
    page = tmp_path / "page.md"
    call(folder, "--jobs", 1, "--model", "llama-3.1-8b", "--docs", page)
    text = page.read_text()
    assert text.startswith("# How wrong is llmsim?")
    assert "## By source" in text


@pytest.mark.parametrize("option", ["--docs", "--ceilings"])
def test_a_folder_that_is_not_there_is_told_before_anything_is_simulated(
    option, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(validation, "validate", lambda *_: pytest.fail("it was simulated"))
    told = call(folder, option, tmp_path / "nowhere" / "page.md", code=2)
    assert "no such folder" in told


def test_long_notes_of_a_terminal_table_go_on_below_themselves(capsys):
    note = "batch limit or version not logged, defaults assumed; weights 14.96 against 14.99 GiB"
    rows = [
        KvRow("meta-llama/Llama-3.1-8B-Instruct on 1 x H100-80G-SXM, vllm 0.11.0", 2, 51.38, 51.17,
              False, note),
        KvRow("Qwen/Qwen3-32B on 1 x H100-80G-SXM", 3, 4.45, None, True, ""),
    ]  # fmt: skip
    _print_memory(rows)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for word in (*note.split(), *rows[0].name.split(), "51.38", "51.17", "-0.21", "no", "yes"):
        assert word in said


def test_runs_with_prefill_and_decode_apart_can_be_had_alone(folder):
    table = folder / "e2e.csv"
    head, *rows = table.read_text().splitlines()
    rows = [row + "," for row in rows]
    split = "f,A,lab,runs/x,llama,llama-3.1-8b,h100-sxm,2,1,1,vllm,0.15.1,random,200,8,closed loop,"
    rows.append(split + "inf,4,8,tpot,mean,9,ms,1 prefill x TP1 + 1 decode x TP1")
    table.write_text("\n".join([head + ",disagg", *rows]) + "\n")
    everything = ls.validate(folder)
    assert everything.summary("disaggregated")["cases"].max() == 1
    apart = ls.validate(folder, disaggregated=True)
    (group,) = apart.groups["disaggregated"]
    assert (group.name, group.cases) == ("vllm on h100-sxm", 1)
    assert {each.case.case_id for each in apart.replayed} == {"f"}
    told = call(folder, "--disaggregated", "--jobs", 1)
    assert "all cases" in told


def test_a_selection_that_takes_nothing_says_what_there_is(folder):
    told = call(folder, "--source", "labs", code=2)
    assert "Did you mean 'lab'?" in told


def test_the_same_in_python(folder):
    report = ls.validate(folder, gpus=["h100*"])
    table = report.table()
    scored = table[table["reason"] == ""]
    assert set(scored["case_id"]) == {f"c{slots}" for slots, _ in RUNS}
    one = scored[(scored["case_id"] == "c1") & (scored["metric"] == "tpot")].iloc[0]
    assert one["measured"] == pytest.approx(7e-3)
    assert one["error_frac"] == pytest.approx(one["predicted"] / 7e-3 - 1)
    assert table[table["case_id"] == "d"]["reason"].iloc[0].startswith("tgi")
    groups = report.summary("engine").set_index(["group", "metric"])
    assert groups.loc[("vllm", "tpot"), "cases"] == len(RUNS)
    assert report.priced == {"roofline": 4}
    with pytest.raises(ls.InputError, match="Did you mean 'engine'"):
        report.summary("engines")
