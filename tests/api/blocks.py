"""Fenced blocks of the repository's documents, and how to run what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    """Return the blocks of one language in a document, in order."""
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    return [body for found, body in _BLOCK.findall(text) if found == language]


def block(document: str, language: str, holding: str) -> str:
    """Return the one block of a document that holds some text."""
    (found,) = [body for body in blocks(document, language) if holding in body]
    return found


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which `llmsim` and `python` are those that run the tests."""
    # what make hands down to the commands of its recipes would change a make that a test runs
    dropped = {"LLMSIM_PATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"} | more


def call(
    words: list[str], folder: Path, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder and hold it to its exit code."""
    done = subprocess.run(
        words, cwd=folder, env=environment(**more), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
