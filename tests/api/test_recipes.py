"""CONTRIBUTING.md: each recipe is carried out as it is written, in a copy of the checkout."""

import shutil
import sys
from pathlib import Path

import pytest
from blocks import CHECKOUT, block, call

PAGE = "CONTRIBUTING.md"


@pytest.fixture
def copy(tmp_path):
    """A copy of all that a recipe touches or runs."""
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("llmsim", "profiles", "scenarios", "traces"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(CHECKOUT / name, folder)
    return folder


def command(copy, *words, code=0):
    """Run llmsim's command line from the copy."""
    line = "import sys; sys.argv[0] = 'llmsim'; from llmsim.cli import main; main()"
    return call([sys.executable, "-c", line, *words], copy, code, PYTHONPATH=str(copy))


def append(path: Path, code: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{code}", encoding="utf-8")


def checked(copy, *paths):
    """Hold new code to the house's style."""
    for words in (["check"], ["format", "--check"]):
        call(["ruff", *words, "--no-cache", *paths], copy)


@pytest.mark.slow
def test_add_a_router(copy):
    append(copy / "llmsim" / "policies" / "routing.py", block(PAGE, "python", "class BestOf"))
    test = copy / "tests" / "unit" / "test_best_of.py"
    test.parent.mkdir(parents=True)
    test.write_text(block(PAGE, "python", "choice_beats_chance"), encoding="utf-8")
    checked(copy, "llmsim/policies/routing.py", "tests")
    pytest_words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(test)]
    assert "2 passed" in call(pytest_words, copy, PYTHONPATH=str(copy)).stdout

    listed = command(copy, "list", "routing").stdout
    assert "best-of" in listed
    assert "[choices]" in listed
    (copy / "mine.yaml").write_text(
        "extends: quickstart\n" + block(PAGE, "yaml", "best-of"), encoding="utf-8"
    )
    assert command(copy, "check", "mine.yaml").stdout.startswith("ok  mine.yaml")
    wrong = command(copy, "check", "mine.yaml", "--set", "fleet.routing.choices=0", code=2)
    assert "fleet.routing.choices: Input should be greater than or equal to 1" in wrong.stderr
    few = ["--set", "traffic.requests=300", "--quiet", "--out"]
    assert command(copy, "run", "mine.yaml", *few, "run").stdout == "run\n"

    (line,) = block(PAGE, "markdown", "Router").splitlines()
    assert "Changes API" in (copy / "CHANGELOG.md").read_text(encoding="utf-8")
    assert line.startswith("- ")


@pytest.mark.slow
def test_a_router_from_another_package(copy):
    code = block(PAGE, "python", "class BestOf")
    head = "\n".join(
        [
            "from dataclasses import dataclass, field",
            "from typing import Annotated",
            "import numpy as np",
            "from annotated_types import Ge",
            "from llmsim.policies import ROUTING, FleetView, RequestView",
        ]
    )
    package = copy / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "routers.py").write_text(f"{head}\n\n\n{code}", encoding="utf-8")
    group = block(PAGE, "toml", "entry-points")
    name = group.split('"')[1]
    installed = copy / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entry = group.splitlines()[1].replace('"', "")
    (installed / "entry_points.txt").write_text(f"[{name}]\n{entry}\n")
    assert "best-of" in command(copy, "list", "routing").stdout
    words = ["run", "quickstart", "--set", "fleet.routing=best-of", "--set", "traffic.requests=300"]
    assert "300 finished" in command(copy, *words).stdout


@pytest.mark.slow
def test_add_a_batching_policy(copy):
    append(copy / "llmsim" / "policies" / "batching.py", block(PAGE, "python", "StaticBatching"))
    checked(copy, "llmsim/policies/batching.py")
    overrides = {"traffic.requests": 1500, "traffic.arrivals.rate_rps": 24}
    code = (
        "import llmsim as ls\n"
        "for kind in ('vllm', 'static'):\n"
        f"    found = ls.run('quickstart', {overrides!r} | {{'fleet.pools.main.batching': kind}})\n"
        "    told = found.metrics\n"
        "    print(told['requests_finished'], told['queue_mean_s'], told['itl_p99_s'])\n"
    )
    said = call([sys.executable, "-c", code], copy, PYTHONPATH=str(copy)).stdout
    continuous, static = ([float(x) for x in row.split()] for row in said.splitlines())
    assert continuous[0] == static[0] == 1500
    assert static[1] > 3 * continuous[1]  # whoever comes late waits for a whole batch
    assert static[2] < continuous[2]  # nobody's prefill comes between two tokens


@pytest.mark.slow
def test_add_a_trace_format(copy):
    module = copy / "llmsim" / "workload" / "jsonlog.py"
    module.write_text(block(PAGE, "python", "class JsonLog"), encoding="utf-8")
    readers = copy / "llmsim" / "workload" / "readers.py"
    text = readers.read_text(encoding="utf-8")
    text = text.replace(
        '    "mooncake": Mooncake,\n', '    "mooncake": Mooncake,\n    "json-log": JsonLog,\n'
    )
    text = text.replace(
        "from llmsim.workload.lengths", "from llmsim.workload.jsonlog import JsonLog\n"
        "from llmsim.workload.lengths", 1
    )  # fmt: skip
    readers.write_text(text, encoding="utf-8")
    checked(copy, "llmsim/workload/jsonlog.py")
    rows = ['{"at": 12.5, "prompt": 812, "output": 164}', '{"at": 13, "prompt": 20, "output": 0}']
    (copy / "good.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (copy / "bad.jsonl").write_text("\n".join([*rows, '{"at": 14}', "[1]", "x"]), encoding="utf-8")
    (copy / "mine.yaml").write_text(
        "llmsim: 1\nmodel: llama-3.1-8b\n"
        "traffic:\n  trace: {kind: json-log, path: good.jsonl}\n"
        "fleet:\n  pools:\n    main: {gpu: l40s}\n",
        encoding="utf-8",
    )
    assert "2 finished" in command(copy, "run", "mine.yaml").stdout
    told = command(copy, "run", "mine.yaml", "--trace", "bad.jsonl", code=2).stderr
    assert told.startswith("3 problems in ")
    assert all(f"bad.jsonl:{line}" in told for line in (3, 4, 5))
    other = command(copy, "run", "mine.yaml", "--trace", "mine.yaml", code=2).stderr
    assert "expected JSON lines with the keys at, prompt, output" in other
