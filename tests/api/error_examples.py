"""Runs the examples of docs/errors.md; as a script it writes their output into the page.

An example is a block ```yaml whose first line names a file (``# bad.yaml``), or a block
```console whose first line is a command (``$ llmsim check bad.yaml``), followed by what it prints.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from llmsim.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
BLOCK = re.compile(r"^```(yaml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^exit code (\d+)$")


def render(text: str, folder: Path) -> str:
    """Return the page with the output of every command as it is now."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return BLOCK.sub(lambda match: _block(match.group(1), match.group(2)), text)
    finally:
        os.chdir(before)


def _block(kind: str, body: str) -> str:
    first = body.split("\n", 1)[0]
    if kind == "yaml":
        Path(first.removeprefix("# ")).write_text(body, encoding="utf-8")
        return f"```yaml\n{body}```"
    command = shlex.split(first.removeprefix("$ llmsim "))
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    folder = str(Path.cwd().resolve())
    said = (result.stdout + result.stderr).replace(folder, "/home/you")
    return f"```console\n{first}\n{said.rstrip()}\n```"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")
        sys.stdout.write(f"wrote {PAGE}\n")
