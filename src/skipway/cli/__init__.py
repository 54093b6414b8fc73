"""The command line: one command, one function. What a command needs is imported inside it."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import typer

from skipway.cli import checking, comparing, doctoring, exporting, publishing, training, using
from skipway.cli.shared import app
from skipway.errors import SkipwayError, harmless

COMMANDS = (training, using, comparing, exporting, checking, doctoring, publishing)
"""The modules whose commands the app has, in the order in which help lists them."""
_PLACES = {module.__name__: place for place, module in enumerate(COMMANDS)}
app.registered_commands.sort(key=lambda c: _PLACES[getattr(c.callback, "__module__", "")])


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has a type for that on a GPU only."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in said or "can't allocate memory" in said)
    )


def fail(text: str, code: int) -> NoReturn:
    """Print an error of at most three lines and leave."""
    print("skipway: " + "\n".join(text.splitlines()[:3]), file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command line and leave with its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments or ["--help"], standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is met
    except SkipwayError as error:
        if debug:
            traceback.print_exc()
        fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail(f"the output cannot be written: {error.strerror}", 2)
        explain: Callable[[], str] | None = getattr(error, "format_message", None)
        if explain is not None:  # a usage error of Typer's parser
            fail(f"{harmless(explain())}\nSee skipway --help", 2)
        if debug:
            raise
        if out_of_memory(error):
            fail("out of memory: take a smaller --batch-size, data.size or model", 2)
        fail(
            f"internal error: {type(error).__name__}: {harmless(error)[:200]}\n"
            "This is a defect of Skipway; --debug shows where.",
            3,
        )
    sys.exit(code if isinstance(code, int) else 0)
