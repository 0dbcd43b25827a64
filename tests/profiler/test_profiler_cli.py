"""`llmsim profile` from outside: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llmsim.cli.app import app
from llmsim.specs.profile_meta import read_meta
from llmsim.specs.profile_rows import check_rows, read_rows

RUNNER = CliRunner()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    result = RUNNER.invoke(app, ["profile", "--device", "cpu", "--out", str(tmp_path / "p")])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "llmsim profile needs torch and the kernels: pip install 'llmsim[profile]'"
    ]
    assert not (tmp_path / "p").exists()


def test_the_command_line_alone_imports_no_torch():
    code = (
        "import sys; from llmsim.cli.app import app; import llmsim_kernels.profiler.run;"
        "print(sorted({'torch', 'triton', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.torch
def test_wrong_devices_and_blocks_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    cases = [
        (["--device", "gpu0"], "Did you mean"),
        (["--device", "cpu", "--block", "99"], "there is no block 99. Blocks: 0 environment"),
    ]
    if not torch.cuda.is_available():
        cases.append(([], "sees 0 CUDA devices"))
    for given, message in cases:
        result = RUNNER.invoke(app, ["profile", *given, "--out", str(tmp_path / "p")])
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.torch
@pytest.mark.slow
def test_a_quick_cpu_profile_end_to_end(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "p"
    first = _profile("--device", "cpu", "--quick", "--budget", "25", "--out", str(out))
    assert first.returncode == 0, first.stderr
    rows = (out / "rows.csv").read_text()
    meta = read_meta(out)
    assert check_rows(read_rows(out)) == []
    assert meta.state in ("partial", "ok", "unstable", "failed")  # never judged by its times
    assert meta.device["kind"] == "cpu"
    assert meta.notes.startswith("a CPU profile: it proves the plumbing")
    assert meta.method["threads"] == 1
    second = _profile("--device", "cpu", "--quick", "--budget", "600", "--out", str(out))
    assert second.returncode == 0, second.stderr
    assert (out / "rows.csv").read_text().startswith(rows)
    table = read_rows(out)
    assert check_rows(table) == []
    assert {"ceiling", "host", "gemm", "attention_prefill", "attention_decode", "norm"} <= (
        set(table["op"])
    )
    assert set(table["status"]) <= {"ok", "unsupported"}
    assert {"fit", "holdout"} == set(table["split"])
    assert read_meta(out).created == meta.created
    # the budget may end the first run before its middle; the second then has one of its own
    for moment in ("start", "middle", "end"):
        assert {f"copy.{moment}", f"copy.{moment}2"} & set(table["variant"])
    # larger products take longer, whatever the machine does meanwhile
    gemm = table.where((table["op"] == "gemm") & (table["n"] == 1024) & (table["k"] == 1024))
    times = {int(m): float(t) for m, t in zip(gemm["m"], gemm["t_median_us"], strict=True)}
    assert times[max(times)] > times[min(times)]


@pytest.mark.torch
def test_gpu_kernels_are_rows_without_a_time_on_a_cpu(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "p"
    done = _profile("--device", "cpu", "--block", "11", "--budget", "60", "--out", str(out))
    assert done.returncode == 0, done.stderr
    table = read_rows(out)
    energy = table.where(table["op"] == "energy")
    assert set(energy["status"]) == {"unsupported"}
    assert set(energy["note"]) == {"needs cuda"}
    assert json.loads((out / "meta.json").read_text())["origin"] == "measured"


def _profile(*given: str) -> subprocess.CompletedProcess[str]:
    """Call the command in a process of its own: it sets torch's threads."""
    code = "from llmsim.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, "profile", *given],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
