"""The command line: a thin skin over `llmsim.api`.

Start with `app` (every command and its options); `running` is `llmsim run`, `looking` is
`llmsim list` and `llmsim show`. Results go to standard output, talk to standard error. Exit code
0: done; 2: the input is wrong, and the message says what; 3: the machine failed (disk full, no
permission); 130: interrupted.
"""

from llmsim.core.interrupt import watch


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    watch()  # before anything else is imported: a Ctrl-C in an import can get lost
    from llmsim.cli.app import app

    app()


__all__ = ["main"]
