"""Writes docs/commands.md from the command line itself: ``python tests/api/command_page.py``."""

import re

from blocks import CHECKOUT
from typer.main import get_command

from llmsim.cli.app import app

PAGE = CHECKOUT / "docs" / "commands.md"
HEAD = """\
# Every command

Made by `python tests/api/command_page.py`; do not edit. Results go to standard output, talk to
standard error. Exit codes: 0 done, 2 wrong input, 3 the machine's fault, such as a full disk, 130
interrupted. `--json` changes what standard output gets and nothing else: one JSON document, numbers
in base units, null where there is none. `llmsim COMMAND --help` says the same as this page. Every
example below runs in a test, or is checked there word by word where it takes minutes.
"""


def commands(command=None, path=("llmsim",)):
    """Yield (words, command) of every command; groups that do something themselves included."""
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None or (command.params and len(path) > 1 and command.invoke_without_command):
        yield path, command
    for name, each in (inner or {}).items():
        yield from commands(each, (*path, name))


def example(command):
    """Return the example of a command's help, or None."""
    found = re.search(r"Example: (llmsim .*?)(?:\n\s*\n|$)", command.help or "", re.S)
    return re.sub(r"\s+", " ", found.group(1)).strip() if found else None


def page():
    """Return the text of the page."""
    parts = [HEAD]
    for path, command in commands():
        told = re.sub(r"\s*Example: .*", "", command.help or "", flags=re.S).strip()
        parts += [f"## {' '.join(path)}", "", re.sub(r"\s+", " ", told), ""]
        shown = example(command)
        if shown:
            parts += ["```sh", shown, "```", ""]
        rows = [_row(each) for each in command.params if each.name != "help"]
        if rows:
            parts += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts).rstrip() + "\n"


def _row(param):
    names = [param.metavar or param.name.upper()] if param.param_type_name == "argument" else []
    names += [*param.opts, *param.secondary_opts] if not names else []
    default = param.default
    shown = "" if default in (None, False, (), []) or callable(default) else str(default)
    told = re.sub(r"\s+", " ", getattr(param, "help", "") or "").replace("|", "\\|")
    required = " (needed)" if param.required and param.param_type_name == "option" else ""
    names = ", ".join(f"`{name}`" for name in names)
    return f"| {names}{required} | {shown} | {told} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
