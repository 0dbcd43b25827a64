"""Runs README.md as it is written; as a script it writes what is printed into the page.

A block ```console is a command after ``$``, and what it prints. Blocks ```bash and ```python are
run as they stand, in one folder that holds a ``.venv`` like that of `make run`.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path

from blocks import CHECKOUT, call

PAGE = CHECKOUT / "README.md"
_CONSOLE = re.compile(r"^```console\n\$ (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def render(text: str, folder: Path) -> str:
    """Return the page with the output of its commands as it is now."""

    def block(match: re.Match[str]) -> str:
        said = call(shlex.split(match.group(1)), folder).stdout
        lines = [line.rstrip() for line in said.splitlines()]
        return "\n".join([f"```console\n$ {match.group(1)}", *lines, "```"])

    return _CONSOLE.sub(block, text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")
        sys.stdout.write(f"wrote {PAGE}\n")
