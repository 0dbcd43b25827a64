"""Which llmsim is under test (`make test` wants the installed one), and which examples."""

import os
from pathlib import Path

import pytest
from drawing import QUICK, examples, some_variants
from hypothesis import Phase, settings

import llmsim
from llmsim.cli.looking import engine_is_compiled

CHECKOUT = Path(__file__).parents[1]
LAWS = CHECKOUT / "tests" / "laws"
PACKAGE = Path(llmsim.__file__).resolve().parent

WANTED = os.environ.get("LLMSIM_TESTS_WANT", "")

# No deadlines: how long an example takes depends on what else the machine does. `make test` draws
# the same examples every time, so that a red build can be repeated, and does not look for smaller
# ones, which takes minutes for each law that fails; a plain pytest explores and does.
INSTALLED = WANTED == "installed"
PHASES = (Phase.explicit, Phase.generate) if INSTALLED else tuple(Phase)
settings.register_profile(
    "llmsim",
    deadline=None,
    derandomize=INSTALLED,
    max_examples=examples(100),
    phases=PHASES,
)
settings.load_profile("llmsim")


def pytest_configure(config):
    if WANTED == "installed" and PACKAGE.is_relative_to(CHECKOUT / "llmsim"):
        raise pytest.UsageError(
            f"the installed package is wanted, but llmsim comes from {PACKAGE}; "
            "call .venv/bin/pytest rather than `python -m pytest`, or run `make test`"
        )


def pytest_collection_modifyitems(config, items):
    """In `make quick`, try some variants of each law and of each test of `many`."""
    if not QUICK or [Path(word).name for word in config.args] != ["tests"]:
        return  # who names tests wants all of them
    many = [item for item in items if item.get_closest_marker("many") or LAWS in item.path.parents]
    kept = some_variants(item.nodeid for item in many)
    dropped = [item for item in many if item.nodeid not in kept]
    config.hook.pytest_deselected(items=dropped)
    gone = {*dropped}
    items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(terminalreporter):
    engine = "compiled" if engine_is_compiled() else "pure Python"
    terminalreporter.write_line(f"llmsim under test: {PACKAGE}, {engine} engine")
