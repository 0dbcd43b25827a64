"""The command line: exit codes, what goes where, nothing written on an error."""

import json
import re
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import llmsim.api
from llmsim.cli.app import app
from llmsim.cli.running import default_folder, progress_bar
from llmsim.core.errors import InvariantError, OutputError
from llmsim.scenario import Scenario

SMALL = ["--set", "traffic.requests=150"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLMSIM_PATH", raising=False)
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_run_prints_the_table_and_saves_the_folder(empty_folder):
    result = call("run", "quickstart", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    (folder,) = (empty_folder / "runs").iterdir()
    assert re.fullmatch(r"quickstart-\d{8}-\d{6}", folder.name)
    assert f"runs/{folder.name}" in result.stdout
    assert "150 finished" in result.stdout
    saved = Scenario.load(folder / "scenario.yaml")
    assert saved == Scenario.load("quickstart", {"traffic.requests": 150})


def test_run_json_is_json_and_names_the_folder():
    result = call("run", "quickstart", *SMALL, "--json", "--out", "here", "--seed", 3)
    told = json.loads(result.stdout)
    assert told["folder"] == "here"
    assert told["metrics"]["requests_finished"]["value"] == 150
    again = json.loads(call("run", "quickstart", *SMALL, "--json", "--set", "seed=3").stdout)
    other = json.loads(call("run", "quickstart", *SMALL, "--json", "--seed", 4).stdout)
    assert told["digest"] == again["digest"] != other["digest"]


def test_run_quiet_prints_the_folder_only():
    assert call("run", "quickstart", *SMALL, "--quiet", "--out", "a/b").stdout == "a/b\n"


def test_a_taken_folder_is_refused_before_anything_is_simulated(empty_folder, monkeypatch):
    assert call("run", "quickstart", *SMALL, "--out", "here").exit_code == 0
    before = (empty_folder / "here" / "meta.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(llmsim.api, "run", lambda *_, **__: pytest.fail("it was simulated"))
        result = call("run", "quickstart", *SMALL, "--out", "here")
    assert result.exit_code == 2
    assert "here is not empty" in result.stderr
    assert (empty_folder / "here" / "meta.json").read_bytes() == before
    assert call("run", "quickstart", *SMALL, "--out", "here", "--force").exit_code == 0
    (empty_folder / "mine").mkdir()
    (empty_folder / "mine" / "thesis.tex").write_text("years of work")
    assert call("run", "quickstart", *SMALL, "--out", "mine", "--force").exit_code == 2
    assert (empty_folder / "mine" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "nowhere.yaml"],
        ["run", "quickstart", "--set", "seed"],
        ["run", "quickstart", "--set", "fleet.pools.main.gpu=h100"],
        ["run", "quickstart", "--set", "model=llama-3.1-70b"],
        ["run", "quickstart", "--out"],
        ["run"],
        ["check", "nowhere"],
        ["check", "azure-conversation"],
        ["list", "gpu"],
        ["show", "gpu", "h100"],
        ["show", "model", "./nowhere.json"],
        ["show", "link", "nvlink"],
        ["show", "price", "h100"],
        ["show", "scenario", "quickstrt"],
        ["show", "step", "--model", "llama-3.1-8b", "--gpu", "h100-sxm"],
        ["show", "step", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--prefill", "a:b"],
        [
            "show",
            "step",
            "--model",
            "llama-3.1-8b",
            "--gpu",
            "h100-sxm",
            "--batch",
            "1",
            "--tp",
            "3",
        ],
        ["nonsense"],
    ],
)
def test_wrong_input_ends_with_2_and_writes_nothing(words, empty_folder):
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr
    assert "Traceback" not in result.stderr
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            OSError(28, "No space left on device", "x.parquet"),
            3,
            "No space left on device: x.parquet",
        ),
        (PermissionError(13, "Permission denied", "runs"), 3, "Permission denied: runs"),
        (MemoryError(), 3, "no memory left"),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was written."),
        (InvariantError("a block was lost"), 2, "please report it: a block was lost"),
    ],
)
def test_each_failure_has_its_exit_code(error, code, words, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(llmsim.api, "run", fail)
    result = call("run", "quickstart")
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr


def test_a_full_disk_inside_the_writer_is_a_machine_fault(monkeypatch):
    def fail(*_, **__):
        raise OutputError("cannot write here: No space left on device") from OSError(28, "full")

    monkeypatch.setattr(llmsim.api, "run", fail)
    assert call("run", "quickstart").exit_code == 3


def test_an_interrupted_run_prints_what_there_is_and_ends_with_130(monkeypatch):
    real = llmsim.api.run

    def interrupted(*args, **kwargs):
        def stop(done, total):
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, while the run is under way

        return real(*args, **{**kwargs, "progress": stop})

    monkeypatch.setattr(llmsim.api, "run", interrupted)
    result = call("run", "quickstart", "--out", "here", "--set", "traffic.requests=40000", "--json")
    assert result.exit_code == 130
    assert "Interrupted: the result covers the run up to that point." in result.stderr
    assert json.loads(result.stdout)["metrics"]["requests_finished"]["value"] < 40000


def test_check_judges_each_scenario():
    result = call("check", "quickstart", "azure-conversation", "assistants-h200")
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", "quickstart"], ["ok", "assistants-h200"]]
    assert "azure-conversation.yaml:14  traffic.trace.path: no such file" in result.stderr
    assert call("check", "quickstart", "assistants").exit_code == 0


def test_check_reads_the_first_rows_of_a_trace(empty_folder):
    (empty_folder / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,1,1\n")
    result = call("check", "azure-conversation", "--set", "traffic.trace.path=t.csv")
    assert result.exit_code == 2
    assert "t.csv:2" in result.stderr


def test_list_names_everything_and_one_sort():
    everything = call("list").stdout
    for word in ("gpus", "h100-sxm", "llama-3.1-8b", "nvlink4", "quickstart", "prefix-affinity"):
        assert word in everything
    assert max(map(len, everything.splitlines())) <= 80
    routing = call("list", "routing").stdout.splitlines()
    assert max(map(len, routing)) <= 80
    # what is said of one goes on below itself
    named = [line.split()[0] for line in routing if not line.startswith(" ")]
    assert named == list(llmsim.api.names("routing"))
    told = " ".join(" ".join(routing).split())
    for row in json.loads(call("list", "routing", "--json").stdout)["routing"]:
        assert row["about"] in told


def test_a_policy_of_a_broken_package_is_told_and_the_others_are_there(monkeypatch):
    broken = EntryPoint("broken", "nowhere.at_all:Nothing", "llmsim.routing")
    monkeypatch.setattr("llmsim.core.registry._installed", lambda path: (broken,))
    found = call("list", "routing")
    assert found.exit_code == 0
    told = " ".join(found.stdout.split())
    assert "published as nowhere.at_all:Nothing, which cannot be loaded: ModuleNotFound" in told
    assert "round-robin" in told
    found = call("run", "quickstart", "--set", "fleet.routing=broken")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "fleet.routing: routing 'broken' is published as" in found.stderr


def test_show_gives_unit_and_source_of_each_number():
    for words in (["gpu", "h100-sxm"], ["link", "nvlink4"], ["price", "h100-sxm"]):
        told = call("show", *words).stdout
        assert max(map(len, told.splitlines())) <= 80
        numbers, sources = told.split("\n\nsources\n")
        head, *rows = numbers.splitlines()
        assert head.split() == ["field", "value", "unit", "source"]
        starts = [head.index(word) for word in head.split()]
        for row in rows:
            cells = [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            assert all(cells), row
            assert f"\n{cells[-1]}" in f"\n{sources}"
    assert "num_hidden_layers" in call("show", "model", "llama-3.1-8b").stdout


def test_show_scenario_prints_what_loads_again(empty_folder):
    result = call("show", "scenario", "quickstart", "--set", "seed=11")
    (empty_folder / "again.yaml").write_text(result.stdout)
    assert Scenario.load("again.yaml") == Scenario.load("quickstart", {"seed": 11})


def test_show_step_of_a_pipeline():
    words = "show step --model llama-3.1-70b --gpu h100-sxm --tp 2 --pp 2 --batch 32"
    result = call(*words.split())
    assert result.exit_code == 0, result.stderr
    total_ms = float(re.search(r"^step +([\d.]+) ms", result.stdout, re.MULTILINE).group(1))
    stations = re.search(r"^stations +(.*) ms$", result.stdout, re.MULTILINE).group(1)
    times = {part.rsplit(" ", 1)[0]: float(part.rsplit(" ", 1)[1]) for part in stations.split(", ")}
    assert list(times) == ["host", "stage 0", "link 0", "stage 1"]
    assert sum(times.values()) == pytest.approx(total_ms, abs=0.01)
    assert "2 such micro-batches" in result.stdout


def test_show_step_adds_up():
    words = "show step --model llama-3.1-70b --gpu h100-sxm --tp 4 --batch 32 --context 2000"
    result = call(*words.split(), "--prefill", "512:0", "--prefill", "256:1024")
    assert result.exit_code == 0, result.stderr
    head, *rows = result.stdout.split("\n\n")[0].splitlines()
    at = head.index("time [us]")
    times = [float(row[at : at + 10].split()[0].replace(",", "")) for row in rows]
    total_ms = float(re.search(r"^step +([\d.]+) ms", result.stdout, re.MULTILINE).group(1))
    assert sum(times) / 1e3 == pytest.approx(total_ms, abs=0.002 + 0.05e-3 * len(rows))
    assert any(row.startswith("all-reduce") for row in rows)
    assert "32 decoded, 768 of prompts" in result.stdout


def test_version_is_the_installed_one():
    pattern = r"llmsim \d+\.\d+\.\d+\S*, Python 3\.\d+\.\d+, (compiled|pure Python) engine\n"
    assert re.fullmatch(pattern, call("version").stdout)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from llmsim.cli.app import app; from typer.main import get_command; "
        "get_command(app); "
        "print([m for m in ('pydantic', 'yaml', 'numpy', 'pandas', 'matplotlib', 'simpy') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert "simulate" in call("--help").stdout.lower()


def test_default_folders_never_collide(empty_folder):
    first = default_folder("x")
    first.mkdir(parents=True)
    second = default_folder("x")
    assert second != first
    assert not second.exists()


def test_progress_is_drawn_for_a_terminal_only(monkeypatch):
    with progress_bar("x", quiet=False) as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, write=len, flush=int))
    with progress_bar("x", quiet=True) as progress:
        assert progress is None
    with progress_bar("x", quiet=False) as progress:
        assert progress is not None
        progress(10, None)
        progress(20, 40)
