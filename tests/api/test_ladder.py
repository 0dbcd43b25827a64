"""The import ladder, and the size of files and functions."""

import ast
import tomllib
from pathlib import Path

import pytest
from blocks import CHECKOUT, call

SOURCES = sorted((CHECKOUT / "llmsim").rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (CHECKOUT / "llmsim").glob("*/__init__.py"))
MOST_LINES, MOST_CODE_LINES = 500, 60


LINT_IMPORTS = ["lint-imports", "--no-cache", "--config", "pyproject.toml"]


def test_imports_go_down_only():
    assert "0 broken" in call(LINT_IMPORTS, CHECKOUT).stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("llmsim/workload/chunk.py", "import llmsim.kvcache", "the ladder"),
        ("llmsim/policies/routing.py", "import llmsim.scenario", "the ladder"),
        ("llmsim/report/html.py", "import simpy", "only serving knows"),
        ("llmsim/core/units.py", "import torch", "never needs a GPU stack"),
        ("llmsim/systems/first.py", "import llmsim.systems.second", "know one another"),
        ("llmsim/scenario/checks.py", "import llmsim.systems.second", "nobody imports"),
    ],
)
@pytest.mark.slow
def test_an_import_that_goes_up_is_found(module, line, contract, tmp_path):
    kernels = (CHECKOUT / "kernels" / "llmsim_kernels").rglob("*.py")
    copies = {source: tmp_path / source.relative_to(CHECKOUT) for source in SOURCES}
    copies |= {source: tmp_path / source.relative_to(CHECKOUT / "kernels") for source in kernels}
    for source, target in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (tmp_path / "llmsim" / "systems" / "second.py").touch()
    (tmp_path / "pyproject.toml").write_bytes((CHECKOUT / "pyproject.toml").read_bytes())
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    told = call(LINT_IMPORTS, tmp_path, code=1).stdout
    assert "1 broken" in told
    (broken,) = [row for row in told.splitlines() if row.endswith("BROKEN")]
    assert contract in broken


def test_every_room_stands_on_the_ladder():
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (ladder,) = [contract for contract in contracts if contract["type"] == "layers"]
    steps = [name for layer in ladder["layers"] for name in layer.split(" | ")]
    assert sorted(steps) == sorted(f"llmsim.{room}" for room in ROOMS)
    (clock,) = [each for each in contracts if each.get("forbidden_modules") == ["simpy"]]
    timeless = {f"llmsim.{room}" for room in ROOMS} - {"llmsim.serving", "llmsim.api", "llmsim.cli"}
    assert set(clock["source_modules"]) == timeless


def functions(path: Path):
    """Yield (lines of code without the docstring, where) of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield length, f"{path.relative_to(CHECKOUT)}:{node.lineno} {node.name}"


def test_files_stay_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert [str(path) for path, lines in lengths.items() if lines > MOST_LINES] == []


def test_functions_fit_one_screen():
    found = sorted((row for path in SOURCES for row in functions(path)), reverse=True)
    assert len(found) > 500
    assert [where for length, where in found if length > MOST_CODE_LINES] == []
