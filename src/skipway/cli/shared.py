"""What the commands share: the app, the options that recur, and answers as JSON."""

from __future__ import annotations

import enum
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from skipway.errors import harmless

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


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Rows in columns that are as wide as they must be."""
    lines = [tuple(map(harmless, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
