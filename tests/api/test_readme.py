"""README.md: every block runs as it is written, and prints what the page says.

The block of make commands is not run here: `make test` is what runs this file, and
test_make.py runs `make run` in a fresh copy.
"""

import sys
from pathlib import Path

import pytest
from blocks import CHECKOUT, blocks, call
from readme_examples import PAGE, render

import llmsim as ls

BASH = [body for body in blocks("README.md", "bash") if not body.startswith("make ")]


@pytest.fixture
def folder(tmp_path):
    """An empty folder whose .venv is the one that runs the tests."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return tmp_path


@pytest.mark.slow
def test_the_page_shows_what_is_printed(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, tmp_path) == page, "run: python tests/api/readme_examples.py"
    assert page.count("```console") == 1
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_the_first_block_is_the_two_make_commands():
    assert blocks("README.md", "bash")[0] == "make run\nmake test\n"
    for target in ("run", "test"):
        assert call(["make", "--dry-run", target], CHECKOUT).stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BASH)))
def test_bash_block(number, folder):
    done = call(["bash", "-euo", "pipefail", "-c", BASH[number]], folder)
    runs = BASH[number].count("\nllmsim run ")
    assert runs == len(list((folder / "runs").iterdir()))
    assert done.stdout.count("saved in runs/") == runs
    if "rate_rps=80" in BASH[number]:
        assert "overloaded" in done.stdout
        assert done.stdout.count("not claimed") == 1


@pytest.mark.slow
def test_python_block(folder):
    (body,) = blocks("README.md", "python")
    said = call([sys.executable, "-c", body], folder).stdout
    assert said.startswith("Result of quickstart: ")
    assert ls.load(folder / "runs" / "three").info.seed == 1
    assert all(f"result.{name}" in body for name in ("summary", "metrics", "requests", "timeline"))
