"""`skipway check-weights`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.shared import Json, Threads, app, emit, within
from skipway.errors import harmless, missing_part
from skipway.shares import percent

if TYPE_CHECKING:
    from skipway.doctor import Diagnosis, Finding, Outcome

WORDS = {
    "stride_in": "stride",
    "bn_eps": "epsilon",
    "antialias": "blur",
    "resize": "framing",
}
"""Traits that the terminal calls by another name."""
LINE_EVERY = 25
"""Readings between two lines of progress, where the output is not a terminal."""


@app.command("check-weights")
def check_weights(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A weight file, a run, or a hub's name.")
    ],
    on: Annotated[str, typer.Option("--on", metavar="DATA", help="Labelled images, as for eval.")],
    images: Annotated[int, typer.Option(help="Images to look at, at most: 32 to 2,048.")] = 256,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; by default test, val, all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the file as it should be read: safetensors.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask images whether a weight file is read rightly.

    Labelled images tell how it was trained to be read. Exit code 1 where that is otherwise.
    """
    from skipway.files import check_new
    from skipway.machine import cores

    try:
        from skipway.doctor import check, correct
    except ImportError as error:
        raise missing_part("check-weights", "train", error) from None
    if out is not None:
        check_new(Path(out))
    with _telling() as progress:
        diagnosis = check(file, on, images, split, threads or cores(), progress)
    if out is not None and not diagnosis.withheld:
        correct(diagnosis, out)
    if as_json:
        emit(as_value(diagnosis))
    else:
        print("\n".join(lines(diagnosis)))
    if out is not None:
        said = f"not written: {diagnosis.withheld}" if diagnosis.withheld else "written"
        print(f"{harmless(out)}: {said}", file=sys.stderr)
    if diagnosis.verdict != "right":
        raise typer.Exit(1)


@contextlib.contextmanager
def _telling() -> Iterator[Callable[[int, int], None]]:
    """What tells on stderr how far it is: a line that changes in a terminal, else some lines."""
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False)
    told = 0
    live = console.is_terminal
    with console.status("reading") if live else contextlib.nullcontext() as line:

        def tell(readings: int, passes: int) -> None:
            nonlocal told
            text = f"{readings} readings tried, {passes:,} images through the network"
            if line is not None:
                line.update(text)
            elif readings >= told + LINE_EVERY:
                told = readings
                console.print(text, markup=False, soft_wrap=True)

        yield tell


def as_value(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as JSON has it."""

    def outcome(found: Outcome) -> dict[str, Any]:
        return dataclasses.asdict(found)

    return {
        "verdict": diagnosis.verdict,
        "file": diagnosis.file,
        "data": diagnosis.data,
        "split": diagnosis.split,
        "card": diagnosis.carded,
        "assumed": outcome(diagnosis.assumed),
        "diagnosed": outcome(diagnosis.diagnosed),
        "comparison": dataclasses.asdict(diagnosis.comparison),
        "traits": [dataclasses.asdict(f) | {"state": f.state} for f in diagnosis.findings],
        "classes": None if diagnosis.order is None else list(diagnosis.names),
        "classes_not_told": [diagnosis.classes[k] for k in diagnosis.untold],
        "class_order_asked": diagnosis.order_asked,
        "tried": {"readings": diagnosis.readings, "images": diagnosis.passes},
    }


def lines(diagnosis: Diagnosis) -> list[str]:
    """The diagnosis for the terminal."""
    from skipway.doctor.bench import A_CLASS

    assumed, found = diagnosis.assumed, diagnosis.diagnosed
    said = "as its card says" if diagnosis.carded else "no card: as Skipway assumes"
    told = [
        f"{harmless(diagnosis.file)} on {harmless(diagnosis.data)}, {diagnosis.split}: "
        f"{found.n:,} of {diagnosis.of:,} images",
        f"read {said}: accuracy {scored(assumed)}",
    ]
    if diagnosis.verdict == "unclear":
        told.append("unclear: none of the readings that were tried does better than guessing")
    else:
        told += [finding(f) for f in diagnosis.findings]
    if diagnosis.order is not None:
        names = listed("?" if name is None else harmless(name) for name in diagnosis.names)
        told.append(f"{'classes':<15}WRONG: the outputs follow another order: {names}")
    if diagnosis.untold:
        names = listed(harmless(diagnosis.classes[k]) for k in diagnosis.untold)
        told.append(
            f"{'':<15}not told which outputs stand for {len(diagnosis.untold):,} of "
            f"{len(diagnosis.classes):,} classes: {names}"
        )
    if not diagnosis.order_asked:
        needed = A_CLASS * len(diagnosis.classes)
        told.append(
            f"{'class order':<15}not asked: it needs {A_CLASS} images a class, {needed:,} in all"
        )
    if diagnosis.verdict == "wrong":
        told.append(f"read as diagnosed: accuracy {scored(found)}")
        p = diagnosis.comparison.p
        told.append(
            f"wrong: {assumed.accuracy:.1%} as assumed, {found.accuracy:.1%} as diagnosed "
            f"(sign test p {p:.2g})"
        )
    elif diagnosis.verdict == "right":
        told.append("right: no other reading is better")
    told.append(
        f"tried {diagnosis.readings} readings, {diagnosis.passes:,} images through the network"
    )
    return told


def listed(names: Iterable[str]) -> str:
    """The first five of them."""
    names = [*names]
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def scored(found: Outcome) -> str:
    return percent(found.accuracy) + within((found.low, found.high))


def finding(f: Finding) -> str:
    """One line: the trait, the verdict and its evidence."""
    start = f"{WORDS.get(f.trait, f.trait):<15}"
    against = ""
    if f.comparison is not None:
        c = f.comparison
        against = (
            f"loss {c.loss:+.3f} ({c.low:+.3f} to {c.high:+.3f}), accuracy {c.accuracy:.1%} "
            f"of {c.n} images"
        )
    if f.untried:
        against += f"; {len(f.untried)} further values not compared"
    if f.state == "undecided":
        others = ", ".join(shown(value) for value in f.undecided)
        return f"{start}{shown(f.found)}: not told from {others}: {against}"
    if f.state == "right":
        return f"{start}{shown(f.found)}: right; {shown(f.rival)}: {against}"
    others = ", ".join(shown(value) for value in f.undecided)
    also = f" (not told from {others})" if others else ""
    return f"{start}WRONG: {shown(f.found)}{also}, not {shown(f.declared)}: {against}"


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
