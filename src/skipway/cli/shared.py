"""What the commands share: the app, the options that recur, and answers as JSON."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.errors import harmless
from skipway.shares import percent

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(
    name="skipway",
    help="Residual networks, from the paper to production.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON value on one line on stdout.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a weight or ONNX file, a shipped model or a hub's name."
    ),
]
Weights = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a weight file, a shipped model or a hub's name; not ONNX."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; the CPU where it is not given.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of computation.")]


class OnBad(enum.StrEnum):
    error = "error"
    skip = "skip"


class Precision(enum.StrEnum):
    float32 = "float32"
    bf16 = "bf16"


def version(asked: bool) -> None:
    if asked:
        from skipway.version import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def skipway(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (anywhere).")] = False,
) -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("skipway").setLevel(logging.INFO)  # of others, warnings alone


def emit(value: Any) -> None:
    """One JSON value on one line on stdout."""
    print(json.dumps(value, ensure_ascii=True))


@dataclass
class Remarks:
    """What must be known of an answer: told on stderr as it comes, and with the answer as JSON."""

    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Why each image that was left out could not be read."""

    def note(self, *notes: str) -> None:
        self._tell("note", self.notes, notes)

    def skip(self, reasons: Iterable[str]) -> None:
        self._tell("skipped", self.skipped, reasons)

    def trained(self, model: str, images: int | None) -> None:
        """That a model was trained on so many of the images that it is scored on, if any; None
        where its data has changed since, so that nobody knows."""
        if images is None:
            self.note(
                f"{harmless(model)} may have been trained on these images: its data has changed"
            )
        elif images:
            self.note(f"{harmless(model)} was trained on {images:,} of these images")

    def to_json(self) -> dict[str, list[str]]:
        return {"notes": self.notes, "skipped": self.skipped}

    @staticmethod
    def _tell(kind: str, told: list[str], lines: Iterable[str]) -> None:
        for line in lines:
            print(f"{kind}: {line}", file=sys.stderr)
            told.append(line)


class Bar:
    """How far a command is, on a terminal; see `bar`."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._task = progress, progress.add_task("", total=total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._task, n)

    def reach(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def say(self, text: str) -> None:
        """A line on stderr, above the bar where there is one."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def bar(what: str, total: int, quiet: bool) -> Iterator[Bar]:
    """A bar on stderr while the block runs, gone after it; none where that is no terminal, or where
    `quiet`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (TextColumn(what), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield Bar(progress, total)


def within(ends: tuple[float, float] | None) -> str:
    """The interval of a share, to stand behind it; nothing where there is none."""
    return "" if ends is None else f"  (95 % interval {percent(ends[0])} to {percent(ends[1])})"


def bracketed(ends: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    """The same of any figure, which `form` puts in words, where it is said what brackets are."""
    return "" if ends is None else f" ({form(ends[0])} to {form(ends[1])})"


def points(difference: float) -> str:
    """A difference of shares in points."""
    return f"{100 * difference:+.2f}"


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Rows in columns that are as wide as they must be."""
    lines = [tuple(map(harmless, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
