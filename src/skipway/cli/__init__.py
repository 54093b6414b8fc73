"""The command line: one command, one function. What a command needs is imported inside it.

The commands themselves are in `commands`, which `main` imports, so that Ctrl-C is answered from the
first import on.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from skipway.errors import SkipwayError, Terminated, harmless, plain_words


def __getattr__(name: str) -> Any:
    """The Typer `app`, imported where it is asked for."""
    if name != "app":
        raise AttributeError(f"module 'skipway.cli' has no attribute {name!r}")
    from skipway.cli.commands import app

    return app


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch has a type for that on a GPU only."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in said or "can't allocate memory" in said)
    )


def fail(text: str, code: int) -> NoReturn:
    """Print an error of at most three lines and leave."""
    if text:  # else another process has said it
        print("skipway: " + "\n".join(text.splitlines()[:3]), file=sys.stderr)
    sys.exit(code)


_REFUSALS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
    errno.EIO, errno.ESTALE,
)  # fmt: skip
"""Of the system, with a place that the user named or where it lies: no defect, wherever met."""


def _terminated(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the tidying off
    raise Terminated


def main() -> None:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding lacks are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        from skipway.cli.commands import run

        code = run(arguments or ["--help"])
        if sys.stdout is not None:  # None where it was closed
            sys.stdout.flush()  # here, where a reader that has gone is met
    except SkipwayError as error:
        if debug:
            traceback.print_exc()
        fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        fail("interrupted", stop.exit_code if isinstance(stop, Terminated) else 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail(f"the output cannot be written: {error.strerror}", 2)
        explain: Callable[[], str] | None = getattr(error, "format_message", None)
        if explain is not None:  # a usage error of Typer's parser
            place = getattr(getattr(error, "ctx", None), "command_path", "skipway")
            fail(f"{harmless(plain_words(explain()))}\nSee {place} --help", 2)
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in _REFUSALS and error.filename is not None:
            fail(f"{harmless(os.fsdecode(error.filename))}: {error.strerror}", 2)
        if out_of_memory(error):
            fail("out of memory: take a smaller --batch-size, data.size or model", 2)
        fail(
            f"internal error: {type(error).__name__}: {harmless(error)[:200]}\n"
            "This is a defect of Skipway; --debug shows where.",
            3,
        )
    sys.exit(code)
