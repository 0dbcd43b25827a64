"""The map of modules, made of the first lines of their docstrings.

Call it as ``python tests/api/module_map.py`` to write ``docs/modules.md`` anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "modules.md"

HEAD = """# Modules

What each file of the package is for, in the words of its own docstring, room by room from the top
of the ladder down ([ARCHITECTURE.md](../ARCHITECTURE.md) says how the rooms hang together).
`python tests/api/module_map.py` makes this page anew.
"""

ROOMS = (
    "cli", "", "api", "gallery", "fidelity", "deployment", "planner", "report", "study",
    "serving",
    "scenario", "systems", "policies", "workload", "workload/formats", "costmodel",
    "costmodel/measured", "kvcache", "results", "specs", "specs/importers", "core",
)  # fmt: skip
"""Folders of the package, highest first; the empty one is the package itself."""


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    told = ast.get_docstring(ast.parse(path.read_text()))
    assert told, f"{path} has no docstring"
    return told.splitlines()[0].replace("|", "\\|")


def folders() -> set[str]:
    """Return all folders of the package that hold modules."""
    package = CHECKOUT / "llmsim"
    found = {path.parent.relative_to(package).as_posix() for path in package.rglob("*.py")}
    return {"" if folder == "." else folder for folder in found}


def page() -> str:
    """Return the page as it should be."""
    parts = [HEAD]
    for room in ROOMS:
        folder = CHECKOUT / "llmsim" / room
        init = folder / "__init__.py"
        title = f"llmsim/{room}/" if room else "llmsim/"
        rows = [
            f"| `{path.stem}` | {first_line(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path != init
        ]
        parts.append(f"## `{title}`\n\n{first_line(init)}\n")
        if rows:
            parts.append("\n".join(["| module | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
