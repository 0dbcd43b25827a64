"""`llmsim trace` as it is typed; every example of its help runs."""

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app

COMMANDS = ("inspect", "head", "convert", "scale", "anonymise")


def call(*words):
    found = CliRunner().invoke(app, ["trace", *map(str, words)])
    return found.exit_code, found.stdout, found.stderr


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.csv"
    rows = [f"{n * n},{100 + n},{n},{'ann' if n % 3 else 'bob'}" for n in range(40)]
    path.write_text("\n".join(["arrival_ms,prompt_tokens,output_tokens,client", *rows]))
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.many
def test_the_example_of_the_help_runs(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, said, _ = call(command, "--help")
    assert code == 0
    text = re.sub(r"\s+", " ", said.split("Example: ")[1].split("╭")[0].split("Arguments")[0])
    words = shlex.split(text)
    assert words[:3] == ["llmsim", "trace", command]
    limit = [] if "limit" in text or command == "head" else ["--set", "limit=500"]
    code, said, stderr = call(*words[2:], *limit)
    assert (code, stderr.count("problem")) == (0, 0)
    assert said


def test_inspect_fits_a_terminal_and_has_json_and_a_page(table):
    code, said, stderr = call("inspect", table, "--html", "page.html")
    assert code == 0
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["requests", "40"] for line in lines)
    assert any("ann 65.0%, bob 35.0%" in line for line in lines)
    assert "page.html" in stderr
    page = table.with_name("page.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"(src|href)=\"http", page)
    code, said, _ = call("inspect", table, "--json")
    told = json.loads(said)
    assert (told["requests"], told["prompt_p50_tokens"], told["reused_frac"]) == (40, 119, None)


def test_a_table_without_times_is_said_to_have_none(table, tmp_path):
    (tmp_path / "lengths.csv").write_text("prompt_tokens,output_tokens\n10,2\n20,3\n")
    (tmp_path / "one.csv").write_text("arrival_s,prompt_tokens,output_tokens\n5,10,2\n")
    _, told, _ = call("inspect", tmp_path / "lengths.csv", "--html", "page.html")
    assert re.search(
        "^times +none: all requests come at once; rate_rps draws times for a table$",
        told,
        re.MULTILINE,
    )
    assert "per minute" not in told
    assert "2 requests at once" in (tmp_path / "page.html").read_text()
    _, told, _ = call("inspect", tmp_path / "one.csv")
    assert "span" in told
    assert "at once" not in told


def test_long_names_of_clients_are_wrapped_not_cut(table):
    rows = [f"{n},9,9,{'client ' * 5}{n % 4}" for n in range(40)]
    table.write_text("\n".join(["arrival_ms,prompt_tokens,output_tokens,client", *rows]))
    code, said, _ = call("inspect", table)
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    words = " ".join(said.split())
    assert all(f"{'client ' * 5}{n} 25.0%" in words for n in range(4))


def test_head_prints_rows_as_read_and_json(table):
    code, said, _ = call("head", table, "-n", 2)
    assert code == 0
    head, first, second = (line.split() for line in said.splitlines())
    assert head == ["arrival_s", "prompt_tokens", "output_tokens", "session", "client", "failed"]
    assert first == ["0.000000", "100", "1", "bob", "False"]
    assert second[0] == "0.001000"
    _, said, _ = call("head", table, "-n", 2, "--json")
    assert [row["client"] for row in json.loads(said)] == ["bob", "ann"]


def test_what_is_written_is_named_on_stdout_and_counted_on_stderr(table):
    code, said, stderr = call("convert", table, "out.jsonl", "--set", "limit=7")
    assert (code, said, stderr) == (0, "out.jsonl\n", "7 requests\n")
    code, said, stderr = call("convert", table, "out.jsonl")
    assert (code, said) == (2, "")
    assert "is there already" in stderr
    assert call("scale", table, "out.jsonl", "--rate-scale", 2, "--force")[0] == 0
    assert call("anonymise", "out.jsonl", "shared.csv.zst")[0] == 0
    _, said, _ = call("head", "shared.csv.zst", "-n", 3, "--json")
    assert {row["client"] for row in json.loads(said)} == {"client-1", "client-2"}


def test_wrong_words_end_with_code_2(table):
    for words in (
        ("inspect", "own.csf"),
        ("inspect", "none.csv", "--kind", "csv"),
        ("inspect", table, "--kind", "csv", "--set", "time_unit=hours"),
        ("inspect", table, "--set", "limit"),
        ("inspect", table, "--set", "limit=[1"),
        ("scale", table, "o.csv"),
        ("convert", table, "o.txt"),
    ):
        code, said, stderr = call(*words)
        assert (code, said) == (2, ""), words
        assert "problem" in stderr
        assert "Traceback" not in stderr
    assert "Did you mean 'own.csv'?" in call("inspect", "own.csf")[2]
