"""Text files that come with images, read with errors that name the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipway.errors import InputError, harmless


def read_text(path: Path) -> str:
    """A file in UTF-8, with a byte order mark or without. Raises InputError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{harmless(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{harmless(path)}: not UTF-8 at byte {error.start:,}") from None


def read_json(
    path: Path,
    of_object: Callable[[dict[str, Any]], Any] | None = None,
    of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """What a file of JSON holds; what is made of objects, as `json.loads` has it. Raises
    InputError."""
    try:
        return json.loads(read_text(path), object_hook=of_object, object_pairs_hook=of_pairs)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno:,}, column {error.colno:,}"
        raise InputError(
            f"{harmless(path)}, {where}: damaged json: {error.msg}\n"
            "The file may have been cut off; write or fetch it again."
        ) from None
    except RecursionError:
        raise InputError(f"{harmless(path)}: damaged json: nested too deep") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise InputError(f"{harmless(path)}: damaged json: {harmless(error)[:100]}") from None
