"""The errors a user can meet, and user text made harmless for terminals.

Exit codes: 0 fine, 1 a gate not met, 2 the user's input, 3 our fault.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class SkipwayError(Exception):
    """An error that Skipway explains itself: its text is all that the user needs to read.

    The text names the file or key and says what to do, in at most three lines.
    """

    exit_code = 3


class InputError(SkipwayError):
    """Something the user gave cannot be used: a file, a flag, a key, a value, a full disk."""

    exit_code = 2


class GateNotMet(SkipwayError):
    """All went well, and what was found is not good enough to go on."""

    exit_code = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM: what Ctrl-C is, sent by a service manager, so that what was begun is put away."""

    exit_code = 143


def missing_part(command: str, extra: str, error: ImportError) -> InputError:
    """The error for a command whose optional install is absent, naming what brings it.

    Raises `error` itself where what is absent is a part of this package: a defect of ours.
    """
    if error.name is not None and error.name.partition(".")[0] == "skipway":
        raise error
    why = "is not installed"
    if not isinstance(error, ModuleNotFoundError):  # it is there, and something of it is broken
        why = f"cannot be imported: {harmless(error)[:200]}"
    package = f"the package {error.name!r}" if error.name else "a package"
    return InputError(
        f"{command} needs {package}, which {why}.\n"
        f"In Skipway's own folder: pip install '.[{extra}]'"
    )


def harmless(text: object) -> str:
    """User text that can be printed anywhere: control and direction characters are escaped.

    File and class names may hold escape sequences, line breaks, bidirectional overrides or bytes
    that are no text; each such character is shown as its escape (``\\x1b``), everything else is
    left as it is.
    """
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in _UNSAFE and char not in _JOINERS
        else char
        for char in str(text)
    )


_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format, lone surrogate, line and paragraph separator."""
_JOINERS = "\u200c\u200d"
"""Format characters that Persian, Indic scripts and emoji are spelt with."""


def plain_words(message: str) -> str:
    """A message of pydantic's, or of Typer's that quotes one, without what it puts before the words
    of a validator."""
    return message.replace("Value error, ", "", 1)


def nearest(name: str, choices: Iterable[str], start: str = "") -> str:
    """`` Did you mean 'x'?`` for the closest of the choices, or an empty string where none is
    close. start: what to show before it."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=_CLOSE)
    return f" Did you mean {start + found[0]!r}?" if found else ""


_CLOSE = 0.65
"""Share of letters in common from which on a name may be a slip of another."""
