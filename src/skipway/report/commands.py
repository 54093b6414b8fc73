"""Lines of the page that are copied into a terminal or a program."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from skipway.report.markup import Html, code_line, tag

Line = tuple[str, str]
"""What it does, and the line."""


def quoted(text: object) -> str:
    """One word of a shell."""
    return shlex.quote(str(text))


def loading(path: Path) -> str:
    """Python that loads the run."""
    return f"skipway.load({json.dumps(str(path), ensure_ascii=False)})"


def steps(lines: Iterable[Line]) -> Html:
    """Lines with what they do, in columns."""
    return tag(
        "div",
        *(tag("div", tag("p", said, class_="quiet"), code_line(line)) for said, line in lines),
        class_="steps",
    )
