"""`llmsim run --trace FILE --on-bad-row fail|skip`: a damaged trace as a user meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app

ROWS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,oops,109\n"
    "2023-11-16 18:15:51.9951690,30,10\n"
)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "a trace: damaged.csv"
    path.write_text(ROWS)
    return path


def run(damaged: Path, folder: Path, *words: str) -> tuple[int, str, str]:
    found = CliRunner().invoke(
        app,
        ["run", "azure-conversation", "--trace", str(damaged), "--out", str(folder), *words],
    )
    return found.exit_code, found.stdout, found.stderr


def test_a_damaged_row_is_named_by_line_and_nothing_is_written(damaged: Path) -> None:
    folder = damaged.parent / "run"
    code, stdout, stderr = run(damaged, folder)
    assert code == 2
    assert stdout == ""
    assert f"{damaged}:3: ContextTokens" in stderr
    assert "'oops'" in stderr
    assert not folder.exists()


def test_skipped_rows_are_counted(damaged: Path) -> None:
    folder = damaged.parent / "run"
    code, stdout, _ = run(damaged, folder, "--on-bad-row", "skip", "--json")
    assert code == 0
    warnings = json.loads(stdout)["warnings"]
    assert any("1 damaged row" in text for text in warnings)
    assert (folder / "requests.parquet").is_file()


def test_an_unknown_choice_lists_the_right_ones(damaged: Path) -> None:
    code, _, stderr = run(damaged, damaged.parent / "run", "--on-bad-row", "skipp")
    assert code == 2
    assert "'fail', 'skip'" in " ".join(stderr.split()).replace("│ ", "")
