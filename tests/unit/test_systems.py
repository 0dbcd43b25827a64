"""The room of published systems: what lies in it is found, and what is gone is not missed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmsim

STICK = '''"""Always the first replica."""

from dataclasses import dataclass

from llmsim.policies.routing import ROUTING


@ROUTING.register("first-only")
@dataclass
class FirstOnly:
    """The first replica."""

    def start(self, fleet, rng):
        """Nothing to note."""

    def choose(self, request):
        """Return the first."""
        return 0
'''

ASK = "import llmsim as ls; print(ls.names('routing'))"


def names(folder: Path) -> str:
    """Return what a fresh interpreter that imports llmsim from a folder lists as routers."""
    call = [sys.executable, "-c", ASK]
    told = subprocess.run(
        call, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.slow
def test_a_module_dropped_into_the_room_is_found_and_can_be_deleted(tmp_path):
    source = Path(llmsim.__file__).parent
    ignored = shutil.ignore_patterns("_data", "__pycache__")
    shutil.copytree(source, tmp_path / "llmsim", ignore=ignored)
    without = names(tmp_path)
    assert "first-only" not in without
    module = tmp_path / "llmsim" / "systems" / "stick.py"
    module.write_text(STICK, encoding="utf-8")
    assert "'first-only'" in names(tmp_path)
    module.unlink()
    assert names(tmp_path) == without
