"""`llmsim gallery run` from outside, with kept results in place of minutes of runs."""

import json

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.gallery import running
from llmsim.gallery.reading import find_exhibit
from llmsim.gallery.results import load_results

NAME = "orca"


@pytest.fixture
def call(tmp_path, monkeypatch):
    exhibit = find_exhibit(NAME)
    kept = load_results(exhibit.folder, NAME)
    assert kept is not None
    monkeypatch.setattr(running, "run_order", lambda order, progress: kept)
    monkeypatch.chdir(tmp_path)
    words = ["gallery", "run", NAME, "--out", str(tmp_path / "out")]
    return lambda *more: CliRunner().invoke(app, [*words, *more])


def test_the_answer_in_json_has_the_numbers_of_the_table(call):
    table, done = call().stdout, call("--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["system"] == NAME
    assert told["verdict"] in table
    for score in told["scores"]:
        if score["arm"] == "treatment":
            assert score["low"] <= score["gain"] <= score["high"]
            assert f"{score['gain']:.2f}"[:3] in table


def test_the_list_has_all_systems_in_80_columns():
    done = CliRunner().invoke(app, ["gallery"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    told = json.loads(CliRunner().invoke(app, ["gallery", "--json"]).stdout)
    named = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert named == [each["system"] for each in told]


def test_pages_for_a_folder_that_is_not_there_are_wrong_input(tmp_path):
    done = CliRunner().invoke(app, ["gallery", "--docs", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "no such folder" in done.stderr


def test_what_is_written_is_written_whole(call, tmp_path, monkeypatch):
    assert call().exit_code == 0
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"gains.svg", "gallery.html", "results.json"}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    done = call()
    assert done.exit_code == 3
    assert "No space left on device" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
