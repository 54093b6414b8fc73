"""`skipway explain`: occlusion needs no torch by itself, Grad-CAM does."""

from __future__ import annotations

import enum
import itertools
import sys
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from skipway.cli.shared import Device, Json, Model, Threads, app, emit
from skipway.cli.using import expand
from skipway.errors import InputError, harmless, nearest

E = TypeVar("E", bound=enum.StrEnum)


@app.command()
def explain(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Which; by default each image's answer."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="grad-cam|occlusion",
            help="From gradients, which takes weights; or by covering parts of the image, which "
            "takes any model and longer.",
        ),
    ] = "grad-cam",
    stage: Annotated[
        str | None,
        typer.Option(help="For grad-cam: c2 onwards, earlier ones finer; by default the last."),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="For occlusion: side of the square that covers, in pixels of the model's input; "
            "by default a seventh of it.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="For occlusion: its steps; by default half of it."),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="probability|logit",
            help="For occlusion: what is measured; by default the probability.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder for the pictures; those of the same name are replaced.")
    ] = Path("explained"),
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show where in images a model sees a class.

    For each image a PNG: the image, and beside it in colour what spoke for the class.
    """
    from skipway.explain import Method, Of, open_explainer
    from skipway.files import atomic_write
    from skipway.images import DecodeError
    from skipway.machine import cores

    chosen, measured = one_of("--method", method, Method), one_of("--of", of or "probability", Of)
    for name, value, its in (
        ("--stage", stage, Method.grad_cam),
        ("--window", window, Method.occlusion),
        ("--stride", stride, Method.occlusion),
        ("--of", of, Method.occlusion),
    ):
        if value is not None and its is not chosen:
            raise InputError(f"{name}: goes with --method {its}, not with {chosen}")
    explainer = open_explainer(
        model, chosen, stage, window, stride, measured, threads or cores(), device
    )
    k = None if class_name is None else explainer.index(class_name)
    rows: list[dict[str, Any]] = []
    for path in expand(images):
        row: dict[str, Any] = {"path": path, "method": chosen.value, "error": None}
        rows.append(row)
        try:
            found = explainer(path, k)
        except DecodeError as error:
            row["error"] = str(error)
            if not as_json:
                print(f"skipway: {error}", file=sys.stderr)
            continue
        file = free_name(out, f"{Path(path).stem}-{chosen}", {row.get("file") for row in rows})
        with atomic_write(file) as target:
            target.write(found.picture())
        row |= {
            "class": found.asked.label,
            "probability": found.asked.score,
            "answer": found.best.label,
            "peak": found.peak,
            "file": str(file),
        }
        if not as_json:
            most = "nowhere" if found.peak is None else "most at {}, {}".format(*found.peak)
            asked = f"{harmless(found.asked.label)} {found.asked.score:.1%}"
            print(f"{harmless(path)}: {asked}, {most}: {harmless(file)}")
    if as_json:
        emit(rows)
    if any(row["error"] for row in rows):
        raise typer.Exit(2)


def one_of(flag: str, value: str, choices: type[E]) -> E:
    names = [choice.value for choice in choices]
    if value not in names:
        raise InputError(f"{flag} {harmless(value)}: {' or '.join(names)}.{nearest(value, names)}")
    return choices(value)


def free_name(folder: Path, stem: str, taken: Container[str | None]) -> Path:
    """A file for a picture, in a folder that is made where it is not there; numbered where this
    call has written one of that name. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {harmless(folder)}: {error.strerror}") from None
    names = (folder / f"{stem}{f'-{n}' if n > 1 else ''}.png" for n in itertools.count(1))
    return next(path for path in names if str(path) not in taken)
