"""The Makefile: `make run` from nothing, and when it installs again."""

import os
import shutil
import sys

import pytest
from blocks import CHECKOUT, call

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", ".hypothesis", "runs"
)


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("LLMSIM_TESTS_WANT") != "installed",
    reason="compiles the engine, which takes minutes: `make test` runs it",
)
def test_make_run_in_a_fresh_copy(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(CHECKOUT, copy, ignore=NOT_COPIED)
    make = ["make", f"PYTHON={sys.executable}"]
    first = call([*make, "run"], copy).stdout
    assert "pip install" in first
    assert "4,800 finished" in first
    assert list((copy / "runs").glob("quickstart-*/report.html"))
    assert "pip install" not in call([*make, "--dry-run", "run"], copy).stdout
    assert "pip install" not in call([*make, "run"], copy).stdout

    # a new file counts, whatever its date; so does one that has gone
    shutil.copy2(copy / "scenarios" / "quickstart.yaml", copy / "scenarios" / "another.yaml")
    assert "pip install" in call([*make, "--dry-run", "run"], copy).stdout
    (copy / "scenarios" / "another.yaml").unlink()
    assert "pip install" not in call([*make, "--dry-run", "run"], copy).stdout
    (copy / "docs" / "errors.md").unlink()
    assert "pip install" not in call([*make, "--dry-run", "run"], copy).stdout


def test_ci_runs_make_test_and_nothing_else():
    script = CHECKOUT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    code = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert code[0] == "set -euo pipefail"
    assert code[-1] == "make test"
    assert len(code) == 3  # with the cd between them


def test_make_test_runs_every_check():
    plan = call(["make", "--dry-run", "test"], CHECKOUT).stdout
    for check in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "bin/pytest"):
        assert check in plan
    assert "not slow" not in plan
    quick = call(["make", "--dry-run", "quick"], CHECKOUT).stdout
    assert '-m "not slow and not torch"' in quick


def test_make_test_installs_torch_and_make_quick_does_not(tmp_path):
    environment = f"VENV={tmp_path / 'venv'}"  # no stamp says that all is there
    plans = {
        goal: call(["make", "--dry-run", environment, goal], CHECKOUT).stdout
        for goal in ("test", "quick")
    }
    assert "profile-requirements.txt" in plans["test"]
    assert "profile-requirements.txt" not in plans["quick"]
    assert "dev-requirements.txt" in plans["quick"]


def test_help_names_every_target():
    told = call(["make", "--no-print-directory", "help"], CHECKOUT).stdout
    targets = [line.split()[1] for line in told.splitlines()]
    assert targets == ["run", "test", "quick", "bench", "dev", "clean", "help"]
