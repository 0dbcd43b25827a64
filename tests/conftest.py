"""Which llmsim is under test: `make test` wants the installed package, not the checkout."""

import os
from pathlib import Path

import pytest

import llmsim
from llmsim.cli.looking import engine_is_compiled

CHECKOUT = Path(__file__).parents[1]
PACKAGE = Path(llmsim.__file__).resolve().parent


def pytest_configure(config):
    wanted = os.environ.get("LLMSIM_TESTS_WANT")
    if wanted == "installed" and PACKAGE.is_relative_to(CHECKOUT / "llmsim"):
        raise pytest.UsageError(
            f"the installed package is wanted, but llmsim comes from {PACKAGE}; "
            "call .venv/bin/pytest rather than `python -m pytest`, or run `make test`"
        )


def pytest_terminal_summary(terminalreporter):
    engine = "compiled" if engine_is_compiled() else "pure Python"
    terminalreporter.write_line(f"llmsim under test: {PACKAGE}, {engine} engine")
