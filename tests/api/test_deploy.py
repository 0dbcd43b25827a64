"""`llmsim deploy` from outside: a folder, its notes, and what happens when something is wrong."""

import json

import pytest
from typer.testing import CliRunner

from llmsim import api
from llmsim.cli.app import app
from llmsim.core.errors import OutputError


def invoke(*words):
    return CliRunner().invoke(app, ["deploy", *map(str, words)])


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_command_writes_what_the_call_makes(tmp_path):
    done = invoke("disaggregated", "-o", tmp_path / "pd")
    assert done.exit_code == 0
    made = api.deploy("disaggregated")
    assert files_in(tmp_path / "pd") == made.files
    assert done.output.splitlines()[-1] == str(tmp_path / "pd")
    assert len(done.output.splitlines()) == len(made.notes) + 1
    assert (tmp_path / "pd" / "launch" / "prefill.sh").stat().st_mode & 0o111


def test_the_same_fleet_gives_the_same_folder():
    assert api.deploy("two-models").files == api.deploy("two-models").files


def test_json_is_the_record(tmp_path):
    done = invoke("quickstart", "-o", tmp_path / "q", "--engine", "sglang", "--json")
    told = json.loads(done.output)
    assert told["pools"]["main"]["engine"] == "SGLang 0.5.23"
    assert {note["key"] for note in told["notes"]} >= {"fleet.pools.main.engine.version"}
    assert set(told["files"]) == set(files_in(tmp_path / "q")) - {"deploy.json"}


@pytest.mark.parametrize(
    "words",
    [
        ["lanes"],
        ["no-such-scenario"],
        ["quickstart", "--engine", "vlm"],
        ["quickstart", "--checkpoint", "llama-3.1-8b"],
        ["quickstart", "--set", "engine.version=trtllm-1.0"],
        ["quickstart", "--set", "fleet.pools.main.gpu=sn40l"],
        ["quickstart", "--set", "engine.quantisation=nvfp4"],
    ],
)
def test_what_cannot_be_deployed_leaves_nothing_behind(words, tmp_path):
    done = invoke(*words, "-o", tmp_path / "x")
    assert done.exit_code == 2
    assert "problem" in done.output
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine_gets_the_nearest(tmp_path):
    done = invoke("quickstart", "--engine", "vlm", "-o", tmp_path / "x")
    assert "Did you mean 'vllm'?" in done.output


def test_only_a_deployment_is_replaced(tmp_path):
    folder = tmp_path / "x"
    api.deploy("quickstart", out=folder)
    with pytest.raises(OutputError, match="not empty"):
        api.deploy("quickstart", out=folder)
    api.deploy("disaggregated", out=folder, force=True)
    assert not (folder / "launch" / "main.sh").exists()
    (folder / "deploy.json").unlink()
    with pytest.raises(OutputError, match=r"holds no deploy\.json"):
        api.deploy("quickstart", out=folder, force=True)
    assert (folder / "launch" / "prefill.sh").exists()
