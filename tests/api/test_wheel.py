"""A wheel in an empty environment, away from the checkout, runs every command.

Slow: builds a wheel and an environment. The wheel is pure Python, to save the minute of the
compiler; the compiled one is what `make test` runs all other tests with.
"""

import subprocess
import sys
import zipfile

import pytest
from blocks import CHECKOUT, environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "."]
    subprocess.run(
        [*words, str(CHECKOUT)],
        cwd=folder,
        env=environment(LLMSIM_PURE="1"),
        check=True,
    )
    (found,) = folder.glob("llmsim-*.whl")
    return found


@pytest.fixture(scope="module")
def call_installed(wheel, tmp_path_factory):
    """Return a function that runs the installed command in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "venv"], cwd=folder, check=True)
    python = folder / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, str(wheel)], cwd=folder, check=True)
    work = folder / "work"
    work.mkdir()

    def call(*words, code=0):
        kept = {k: v for k, v in environment().items() if not k.startswith(("PYTHON", "LLMSIM"))}
        command = [str(folder / "venv" / "bin" / "llmsim"), *words]
        done = subprocess.run(
            command, cwd=work, env=kept, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return call, work


def test_the_wheel_is_pure_and_holds_the_data(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("profiles", "scenarios", "traces"):
        shipped = [path for path in (CHECKOUT / folder).rglob("*") if path.is_file()]
        assert shipped
        for path in shipped:
            assert f"llmsim/_data/{path.relative_to(CHECKOUT)}" in names
    assert "llmsim/py.typed" in names
    assert "llmsim_kernels/ops/paged_decode.py" in names
    assert "llmsim/report/report.html.j2" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_every_command_runs(call_installed):
    call, work = call_installed
    assert call("version").strip().endswith("pure Python engine")
    assert "saved in run" in call("run", "quickstart", "--out", "run")
    assert (work / "run" / "report.html").stat().st_size > 10_000
    assert "h100-sxm" in call("list")
    assert "bytes/s" in call("show", "gpu", "h100-sxm")
    assert "num_hidden_layers" in call("show", "model", "llama-3.1-8b")
    assert "bytes_per_s" in call("show", "link", "nvlink4")
    assert "USD" in call("show", "price", "h100-sxm")
    assert "llmsim: 1" in call("show", "scenario", "quickstart")
    step = ["show", "step", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--batch", "8"]
    assert "tokens/s" in call(*step)
    told = call("check", "quickstart", "assistants", "assistants-h200", "burstgpt")
    assert told.count("ok  ") == 4
    assert "no such file" in call("check", "azure-conversation", code=2)
    few = ["--set", "traffic.trace.limit=500", "--out", "trace", "--quiet"]
    assert call("run", "burstgpt", *few).strip() == "trace"
