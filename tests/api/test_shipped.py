"""Every shipped scenario is right, or says what has to be fetched for it."""

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.core.paths import list_data

SCENARIOS = list_data("scenarios", ".yaml")
FETCHED = {
    "azure-conversation": "AzureLLMInferenceTrace_conv.csv",
    "mooncake-affinity": "conversation_trace.jsonl",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMSIM_PATH", raising=False)


def test_there_are_scenarios():
    assert {"quickstart", *FETCHED} <= set(SCENARIOS)


@pytest.mark.parametrize("name", sorted(set(SCENARIOS) - set(FETCHED)))
def test_it_is_right(name):
    done = CliRunner().invoke(app, ["check", name])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"ok  {name} ")


@pytest.mark.parametrize("name", sorted(FETCHED))
def test_it_names_what_it_needs(name):
    done = CliRunner().invoke(app, ["check", name])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"1 problem in {name}")
    assert "traffic.trace.path: no such file: '" in done.stderr
    assert FETCHED[name] in done.stderr
    assert "Say where it is with --set traffic.trace.path=FILE." in done.stderr
    # where to get it stands at the top of the file
    head = SCENARIOS[name].read_text(encoding="utf-8").split("llmsim: 1")[0]
    assert "Fetch" in head
    assert "https://github.com/" in head
    assert f"llmsim run {name} --set traffic.trace.path={FETCHED[name]}" in head
