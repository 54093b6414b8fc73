"""`skipway predict`: it needs torch only where the model does."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.shared import Device, Json, Model, Precision, Threads, app, emit
from skipway.errors import InputError, harmless
from skipway.shares import hundredths

if TYPE_CHECKING:
    from skipway.locator import Locator
    from skipway.pixel_predictor import PixelPredictor
    from skipway.predictor import Predictor


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    top: Annotated[
        int | None, typer.Option(min=1, help="Classes an image, of a classifier; 5 by default.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least score of an object, of a detector; 0.5 by default."),
    ] = None,
    draw: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write each image with its objects, of a detector, or in the colours of its "
            "classes, of a segmenter; files there stay, and new ones are numbered.",
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the class of each pixel as an indexed PNG, of a segmenter; files there "
            "stay, and new ones are numbered.",
        ),
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            metavar="one|flip|scales|slide",
            help="Views of an image that are averaged, of a segmenter: all of it; its mirror image "
            "too; both at six sizes; overlapping tiles at its full resolution.",
        ),
    ] = "one",
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option(help="float32 or bf16.")] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify images, or find the objects in them or the class of each pixel."""
    from skipway.machine import cores
    from skipway.predictor import Predictor, task_of

    task = task_of(model)
    if draw is not None and task == "classify":
        raise InputError(f"--draw: {harmless(model)} is a classifier, which finds no objects")
    for flag, given in (("--masks", masks is not None), ("--views", views != "one")):
        if given and task != "segment":
            raise InputError(
                f"{flag}: {harmless(model)} is of the task {task}; only models of the task segment "
                "tell the class of each pixel"
            )
    if top is not None and task != "classify":
        raise InputError(f"--top: {harmless(model)} is of the task {task}; it is of classifiers")
    if threshold is not None and task not in ("detect", "instance"):
        raise InputError(
            f"--threshold: {harmless(model)} is of the task {task}; it is of detectors"
        )
    if task == "embed":
        raise InputError(
            f"{harmless(model)} makes vectors, which name nothing; take skipway embed and search"
        )
    from skipway.loading import load

    loaded = load(model, threads or cores(), device, precision.value)
    paths = list(expand(images))
    answers: Iterator[Answer]
    if isinstance(loaded, Predictor):
        answers = classified(loaded, paths, 5 if top is None else top)
    else:
        from skipway.locator import Locator
        from skipway.pixel_predictor import PixelPredictor

        if isinstance(loaded, Locator):
            least = 0.5 if threshold is None else threshold
            answers = located(loaded, paths, least, _folder("--draw", draw))
        else:
            assert isinstance(loaded, PixelPredictor)
            drawings, maps = _folder("--draw", draw), _folder("--masks", masks)
            answers = mapped(loaded, paths, views, drawings, maps)
    found, failed = [], False
    for row, words in answers:
        if as_json:
            found.append(row)
        elif row["error"] is not None:
            print(f"skipway: {row['error']}", file=sys.stderr)
        else:
            print(f"{harmless(row['path'])}: {words}")
        failed |= row["error"] is not None
    if as_json:
        emit(found)
    if failed:
        raise typer.Exit(2)


Answer = tuple[dict[str, Any], str]
"""What is said of an image: as JSON, with `path` and `error`, and in words."""


def classified(loaded: Predictor, paths: list[str], top: int) -> Iterator[Answer]:
    """The classes of each image."""
    for found in loaded.stream(paths, top):
        scores = (f"{harmless(s.label)} {hundredths(s.score, 1)}%" for s in found.predictions)
        yield asdict(found), "  ".join(scores)


def located(
    loaded: Locator, paths: list[str], threshold: float, drawings: Path | None
) -> Iterator[Answer]:
    """How many objects of each class an image has; each drawn into a folder, where there is one."""
    from skipway.locator import write_drawing

    for found in loaded.stream(paths, threshold):
        drawing = None
        if drawings is not None and found.error is None:
            drawing = str(write_drawing(found, drawings, loaded.classes))
        counts = Counter(harmless(one.label) for one in found.objects)
        words = ", ".join(f"{n} {label}" for label, n in counts.most_common())
        yield asdict(found) | {"drawing": drawing}, _with_files(words or "nothing", drawing)


def mapped(
    loaded: PixelPredictor, paths: list[str], views: str, drawings: Path | None, maps: Path | None
) -> Iterator[Answer]:
    """The shares of the classes in each image; painted, and its map, in folders where they are."""
    from skipway.pixel_predictor import pixel_views, write_mask, write_painting

    for found in loaded.stream(paths, pixel_views(views)):
        drawing = mask = None
        if drawings is not None and found.error is None:
            drawing = str(write_painting(found, drawings, loaded.classes))
        if maps is not None and found.error is None:
            mask = str(write_mask(found, maps, loaded.classes))
        words = "  ".join(f"{harmless(s.label)} {hundredths(s.share, 1)}%" for s in found.shares)
        files = {"drawing": drawing, "mask": mask}
        yield found.to_json() | files, _with_files(words, drawing, mask)


def _with_files(words: str, *files: str | None) -> str:
    """The words, and the files that were written of the image."""
    return "  ".join([words, *(f"-> {harmless(file)}" for file in files if file is not None)])


def _folder(flag: str, name: str | None) -> Path | None:
    """The folder that a flag names, made where it is not there. Raises InputError."""
    if name is None:
        return None
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {harmless(name)}: {error.strerror}") from None
    return Path(name)


def expand(images: Iterable[str]) -> Iterable[str]:
    """The paths as given; a folder stands for the images in it, in the order of their names."""
    from skipway.data.forms.folders import walk

    for path in images:
        if os.path.isdir(path):
            names = walk(Path(path))
            if not names:
                raise InputError(f"{harmless(path)}: no images in this folder")
            yield from (os.path.join(path, name) for name in names)
        else:
            yield path
