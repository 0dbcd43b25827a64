"""How `--help` looks: plain text, whole sentences.

typer would draw it with rich, whose import takes longer than all else that `llmsim --help` does.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_WHOLE = 1_000  # characters of a sentence; the usual 45 would cut it


class Group(TyperGroup):
    """A group whose list of commands says each command's first sentence whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write name and first sentence of each command."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(_WHOLE)) for name, each in found if each]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
