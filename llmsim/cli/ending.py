"""How a command ends: the exit code of each kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from llmsim.core.errors import InvariantError, LlmsimError, OutputError

WRONG_INPUT, MACHINE_FAULT, INTERRUPTED = 2, 3, 130


@contextmanager
def exit_code_for_errors() -> Iterator[None]:
    """Turn errors into a message on standard error and an exit code."""
    try:
        yield
    except InvariantError as error:
        typer.echo(f"llmsim found a fault in itself; please report it: {error}", err=True)
        raise typer.Exit(WRONG_INPUT) from None
    except LlmsimError as error:
        typer.echo(str(error), err=True)
        failed = isinstance(error, OutputError) and isinstance(error.__cause__, OSError)
        raise typer.Exit(MACHINE_FAULT if failed else WRONG_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has gone (`llmsim list | head`): typer ends this quietly.
        raise
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        typer.echo(f"{error.strerror or error}{place}", err=True)
        raise typer.Exit(MACHINE_FAULT) from None
    except MemoryError:
        typer.echo("The machine has no memory left.", err=True)
        raise typer.Exit(MACHINE_FAULT) from None
