"""`llmsim init` writes a scenario that runs; `llmsim schema` knows every file that llmsim ships."""

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml
from blocks import CHECKOUT
from typer.testing import CliRunner

from llmsim.api.schemas import KINDS, schema_of
from llmsim.cli.app import app
from llmsim.scenario import Scenario

FILES = {
    "scenario": sorted(CHECKOUT.glob("scenarios/*.yaml")),
    "plan": sorted(CHECKOUT.glob("scenarios/plans/*.yaml")),
    "sweep": sorted(CHECKOUT.glob("scenarios/sweeps/*.yaml")),
}


def call(*words):
    found = CliRunner().invoke(app, [*map(str, words)])
    return found.exit_code, found.stdout, found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_file_is_right_by_its_schema(kind):
    code, stdout, _ = call("schema", kind)
    assert code == 0
    made = json.loads(stdout)
    jsonschema.Draft202012Validator.check_schema(made)
    check = jsonschema.Draft202012Validator(made)
    assert FILES[kind]
    for path in FILES[kind]:
        data = yaml.load(path.read_text(), yaml.CSafeLoader)
        assert [error.message for error in check.iter_errors(data)] == [], path.name


def test_a_wrong_file_is_wrong_by_the_schema():
    check = jsonschema.Draft202012Validator(schema_of("scenario"))
    data = yaml.safe_load((CHECKOUT / "scenarios" / "quickstart.yaml").read_text())
    assert check.is_valid(data)
    assert not check.is_valid(data | {"modle": "x"})
    assert not check.is_valid({key: data[key] for key in data if key != "traffic"})
    assert check.is_valid({"extends": "quickstart", "fleet": {"pools": {"main": {"tp": 2}}}})
    wrong = data | {"fleet": data["fleet"] | {"routing": {"kind": "nearest"}}}
    assert not check.is_valid(wrong)
    trace = {"kind": "csv", "path": "t.csv", "columns": {"arrival": "when"}, "time_unit": "ms"}
    assert check.is_valid(data | {"traffic": {"trace": trace}})
    assert not check.is_valid(data | {"traffic": {"trace": trace | {"time_unit": "hours"}}})


def test_keys_have_meanings_for_the_editor():
    definitions = schema_of("scenario")["$defs"]
    lacking = [
        f"{name}.{key}"
        for name, part in definitions.items()
        for key, item in part.get("properties", {}).items()
        if not item.get("description") and "$ref" not in item
    ]
    assert lacking == []


@pytest.mark.slow
def test_init_writes_what_runs(tmp_path):
    path = tmp_path / "my first.yaml"
    code, stdout, stderr = call(
        "init", path, "--model", "llama-3.1-70b", "--gpu", "h100-sxm", "--rate-rps", 2, "--yes"
    )
    assert (code, stdout) == (0, f"{path}\n"), stderr
    scenario = Scenario.load(path)
    assert scenario.name == "my-first"
    assert scenario.fleet.pools["main"].tp == 4  # 2 hold its 141 GB, but hardly any KV beside
    assert scenario.traffic.arrivals.params["rate_rps"] == 2
    jsonschema.Draft202012Validator(schema_of("scenario")).validate(
        yaml.load(path.read_text(), yaml.CSafeLoader)
    )
    assert call("init", path, "--yes")[0] == 2
    small = ("--set", "traffic.requests=20", "--out", tmp_path / "run", "--quiet")
    assert call("run", path, *small)[0] == 0


def test_init_takes_a_trace_and_says_what_is_wrong(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,2\n1,20,3\n")
    path = tmp_path / "mine.yaml"
    assert call("init", path, "--trace", trace, "--yes")[0] == 0
    assert Scenario.load(path).traffic.trace.params["path"] == str(trace)
    for words in (("--model", "llama-9"), ("--model", "deepseek-v3", "--gpu", "t4")):
        code, stdout, stderr = call("init", tmp_path / "other.yaml", *words, "--yes")
        assert (code, stdout) == (2, "")
        assert stderr
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.slow
def test_init_asks_where_somebody_can_answer(tmp_path):
    code = "import sys; sys.stdin.isatty = lambda: True\nfrom llmsim.cli.app import app; app()"
    answers = "qwen3-8b\nl40s\n2\n3\n\n5\n800\n100\n0.5\n0.04\n"
    words = [sys.executable, "-c", code, "init", str(tmp_path / "asked.yaml")]
    done = subprocess.run(words, input=answers, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "asked.yaml")
    scenario = Scenario.load(tmp_path / "asked.yaml")
    pool = scenario.fleet.pools["main"]
    assert (scenario.model, pool.gpu, pool.tp, pool.replicas) == ("qwen3-8b", "l40s", 2, 3)
    assert scenario.traffic.arrivals.params["rate_rps"] == 5
    assert scenario.slo.tpot_s == 0.04
