"""`llmsim run --from-vllm`: from the command that people have to a run and a scenario file."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.scenario import Scenario

COMMAND = "vllm serve Qwen/Qwen3-8B --max-num-seqs 64 --trust-remote-code"


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{n / 4},{100 + n},{9}" for n in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    return tmp_path


def call(*words):
    found = CliRunner().invoke(app, ["run", *words])
    return found.exit_code, found.stdout, found.stderr


def test_a_command_becomes_a_scenario_and_a_run(table):
    words = ("--from-vllm", COMMAND, "--gpu", "h100-sxm", "--trace", "t.csv", "--json")
    code, stdout, stderr = call(*words)
    assert code == 0, stderr
    assert json.loads(stdout)["scenario"] == "qwen3-8b-h100-sxm-vllm"
    assert "ignored: --trust-remote-code" in stderr
    assert "assumed: engine.max_num_batched_tokens: 8192" in stderr
    saved = Scenario.load(table / "qwen3-8b-h100-sxm-vllm.yaml")
    assert saved.fleet.pools["main"].engine.max_num_seqs == 64
    # the same again is the same file; another one does not go over it
    assert call(*words)[0] == 0
    changed = (words[0], f"{COMMAND} --enforce-eager", *words[2:])
    code, stdout, stderr = call(*changed)
    assert (code, stdout) == (2, "")
    assert "is there already" in stderr
    assert call(*changed, "--save-scenario", "other.yaml")[0] == 0


def test_what_is_missing_or_too_much_is_said(table):
    for words, expected in (
        ((), "exactly one of"),
        (("quickstart", "--from-vllm", COMMAND), "exactly one of"),
        (("quickstart", "--gpu", "l4"), "--gpu: is for --from-vllm"),
        (("--from-vllm", COMMAND), "--gpu: is missing"),
        (("--from-sglang", "x", "--gpu", "l4"), "--trace: is missing"),
        (("--from-sglang", COMMAND, "--gpu", "l4", "--trace", "t.csv"), "expected 'sglang"),
    ):
        code, stdout, stderr = call(*words)
        assert (code, stdout) == (2, ""), words
        assert expected in stderr
        assert not list(table.glob("*.yaml"))


def test_what_set_says_of_the_trace_is_saved_with_the_scenario(table):
    (table / "odd.csv").write_text("when;in;out\n0;10;2\n1;20;3\n")
    words = ("--from-vllm", COMMAND, "--gpu", "h100-sxm", "--trace", "odd.csv")
    code, _, stderr = call(*words)
    assert code == 2
    assert "columns={arrival: when, prompt_tokens: in, output_tokens: out}" in stderr
    columns = "traffic.trace.columns={arrival: when, prompt_tokens: in, output_tokens: out}"
    told = ("--set", columns, "--set", "traffic.trace.time_unit=s", "--save-scenario", "odd.yaml")
    assert call(*words, *told, "--json")[0] == 0
    assert call("odd.yaml", "--quiet")[0] == 0


def test_a_trace_takes_the_place_of_what_a_scenario_draws(table):
    code, stdout, stderr = call("quickstart", "--trace", "t.csv", "--json", "--out", "r")
    assert code == 0, stderr
    assert "traffic: t.csv, in place of what the scenario draws" in stderr
    rows = (table / "t.csv").read_text().splitlines()[1:]
    assert json.loads(stdout)["metrics"]["requests"]["value"] == len(rows)
    saved = yaml.safe_load((table / "r/scenario.yaml").read_text())["traffic"]
    assert saved["trace"]["kind"] == "csv"
    assert saved.get("arrivals") is None
    (table / "odd.csv").write_text("when,in,out\n0,10,2\n1,20,3\n")
    columns = "traffic.trace.columns={arrival: when, prompt_tokens: in, output_tokens: out}"
    told = (
        "--set",
        "traffic.trace.kind=csv",
        "--set",
        columns,
        "--set",
        "traffic.trace.time_unit=s",
    )
    assert call("quickstart", "--trace", "odd.csv", *told, "--quiet")[0] == 0
    code, _, stderr = call("quickstart", "--trace", "none.csv")
    assert (code, "no such file" in stderr) == (2, True)
