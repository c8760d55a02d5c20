"""The ``chelate`` command: look at dispatches, cancel them, take them up again.

Exit codes: 0, 1 for an error of chelate's or when the reader of the output has gone, 2 for a
wrong call, 130 after Ctrl-C; ``fsck`` gives 1 for findings and 2 when it cannot check.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from chelate.cli.commands import app, print_json
from chelate.embedding import shutdown
from chelate.errors import ChelateError

__all__ = ["app", "main"]

# The click that typer is built on is a package of its own or part of typer, by version.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that the terminal's encoding lacks must not end the command.
            stream.reconfigure(errors="replace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, say `head`, has seen enough; what is still buffered must go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    finally:
        # Commands that want to wait have waited; nothing here waits at exit.
        shutdown()
    return code


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="chelate", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except _ClickError as error:
        if "--json" not in arguments:
            error.show()  # type: ignore[attr-defined]
            return 2 if isinstance(error, _UsageError) else 1
        _complain(error.format_message(), "UsageError", True)  # type: ignore[attr-defined]
        return 2 if isinstance(error, _UsageError) else 1
    except ChelateError as error:
        _complain(str(error), type(error).__name__, "--json" in arguments)
        return 2 if arguments[0] == "fsck" else 1  # where 1 means that it found something
    except (KeyboardInterrupt, typer.Abort):
        _complain("Interrupted.", "KeyboardInterrupt", "--json" in arguments)
        return 130


def _complain(message: str, kind: str, as_json: bool) -> None:
    if as_json:
        print_json({"error": message, "type": kind})
    typer.echo(f"chelate: {message}", err=True)
