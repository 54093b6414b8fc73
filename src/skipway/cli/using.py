"""`skipway predict` and `models`: neither needs torch by itself."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipway.cli.shared import Device, Json, Model, Precision, Threads, app, emit
from skipway.errors import InputError, harmless

if TYPE_CHECKING:
    from skipway.answers import Prediction
    from skipway.locator import ObjectPrediction


@app.command()
def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES…", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes an image, of a classifier.")] = 5,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Least score of an object, of a detector.")
    ] = 0.5,
    draw: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Write each image with its objects, of a detector."),
    ] = None,
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option()] = Precision.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify images, or find the objects in them."""
    from skipway.machine import cores
    from skipway.predictor import Predictor, task_of

    if draw is not None and task_of(model) == "classify":
        raise InputError(f"--draw: {harmless(model)} is a classifier, which finds no objects")
    from skipway.loading import load

    loaded = load(model, threads or cores(), device, precision.value)
    paths = list(expand(images))
    predictions: Iterable[Prediction | ObjectPrediction]
    if isinstance(loaded, Predictor):
        predictions = loaded.stream(paths, top)
    else:
        predictions = loaded.stream(paths, threshold)
        if draw is not None:
            predictions = drawn_too(predictions, Path(draw), loaded.classes)
    found, failed = [], []
    for p in predictions:
        if as_json:
            found.append(asdict(p))
        elif p.error is not None:
            print(f"skipway: {p.error}", file=sys.stderr)
        else:
            print(f"{harmless(p.path)}: {in_words(p)}")
        if p.error is not None:
            failed.append(p.path)
    if as_json:
        emit(found)
    if failed:
        raise typer.Exit(2)


def in_words(prediction: Prediction | ObjectPrediction) -> str:
    """The classes of an image, or how many objects of each it has."""
    from skipway.answers import Prediction

    if isinstance(prediction, Prediction):
        scores = (f"{harmless(s.label)} {s.score:.1%}" for s in prediction.predictions)
        return "  ".join(scores)
    counts = Counter(harmless(found.label) for found in prediction.objects)
    return ", ".join(f"{n} {label}" for label, n in counts.most_common()) or "nothing"


def drawn_too(
    predictions: Iterable[ObjectPrediction], folder: Path, classes: tuple[str, ...]
) -> Iterator[ObjectPrediction]:
    """The predictions as they come, each image with its objects written into the folder as PNG."""
    from skipway.locator import write_drawing

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--draw {harmless(folder)}: {error.strerror}") from None
    for prediction in predictions:
        if prediction.error is None:
            write_drawing(prediction, folder, classes)
        yield prediction


@app.command()
def models(as_json: Json = False) -> None:
    """List the networks and the models that ship.

    With parameters and multiply-adds of each network.
    """
    from skipway import shipped
    from skipway.architecture import ARCHITECTURES, count
    from skipway.card import read_card

    networks = []
    for name, arch in ARCHITECTURES.items():
        params, macs = count(arch)
        networks.append(
            {
                "name": name,
                "params": params,
                "macs": macs,
                "input_size": arch.input_size,
                "source": arch.source,
            }
        )
    trained = []
    for name in shipped.NAMES:
        card = read_card(shipped.file(name, ".safetensors"))
        assert card is not None
        accuracy = card.metrics[0]
        trained.append(
            {
                "name": name,
                "network": card.model,
                "classes": len(card.classes),
                "accuracy": accuracy.value,
                "data": accuracy.data,
                "split": accuracy.split,
                "n": accuracy.n,
                "licence": card.licence,
            }
        )
    if as_json:
        emit({"networks": networks, "shipped": trained})
        return
    print(f"{'name':<18}{'parameters':>14}{'multiply-adds':>17}{'pixels':>8}  source")
    for row in networks:
        print(
            f"{row['name']:<18}{row['params']:>14,}{row['macs']:>17,}{row['input_size']:>8}"
            f"  {row['source']}"
        )
    print("\nTrained, in place of a file:")
    for model in trained:
        print(
            f"{model['name']:<24}{model['network']}, accuracy {model['accuracy']:.2%} on "
            f"{model['data']} {model['split']} ({model['n']:,} images)"
        )


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
